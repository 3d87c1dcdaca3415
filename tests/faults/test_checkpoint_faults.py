"""What may happen to checkpoints: damage, kill -9, a full disk, other devices and processes."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ipt_jax.training.checkpoints import CheckpointConfig, Checkpoints
from tests.faults.saved_run import (
    ALL,
    PADDING,
    Training,
    digest,
    flip_byte,
    largest_file,
    one_of_two,
    restore,
    restored,
    save_until_killed,
    step_and_save,
)
from tests.forked import Forked
from tests.training_runs import free_port, with_devices


def start(action: Callable[..., None], *arguments: Any, devices: int = 1) -> Forked:
    return Forked(action, *arguments, env=with_devices(devices))


def finish(process: Forked) -> list:
    """What the process reported."""
    said, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    return [json.loads(line[6:]) for line in said.splitlines() if line.startswith("found ")]


@pytest.fixture(scope="module")
def training() -> Training:
    return Training()


@pytest.fixture(scope="module")
def uninterrupted(training, tmp_path_factory) -> tuple[Path, dict[int, float], dict[int, str]]:
    """Checkpoints of positions 1 to 3, and the loss and state of each step up to the fourth."""
    folder = tmp_path_factory.mktemp("runs") / "checkpoints"
    state, losses, digests = training.start(), {}, {}
    with Checkpoints(folder, ALL) as checkpoints:
        for position in range(1, 5):
            state, losses[position] = training.step(state, position)
            digests[position] = digest(state)
            if position < 4:
                checkpoints.save(position, state, {})
    return folder, losses, digests


def truncate(folder: Path) -> Path:
    path = largest_file(folder)
    os.truncate(path, path.stat().st_size - 100)
    return path


def flip(folder: Path) -> Path:
    path = largest_file(folder)
    flip_byte(path)
    return path


def remove(name: str) -> Callable[[Path], Path]:
    def act(folder: Path) -> Path:
        (folder / name).unlink()
        return folder / name

    return act


@pytest.mark.parametrize(
    ("act", "reason", "slug"),
    [
        (truncate, "bytes instead of", "wrong-size"),
        (flip, "has other bytes than were written", "wrong-checksum"),
        (remove("state/_METADATA"), "is missing", "missing-file"),
        (remove("state/manifest.ocdbt"), "is missing", "missing-file"),
        (remove("checksums.json"), "has no list of checksums", "no-list"),
    ],
    ids=["truncate", "flip", "no-metadata", "no-manifest", "no-list"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    training, uninterrupted, tmp_path, capsys, act, reason, slug
):
    whole, losses, _ = uninterrupted
    folder = shutil.copytree(whole, tmp_path / "checkpoints")
    damaged = act(folder / "3")
    with Checkpoints(folder, ALL) as checkpoints:
        found = checkpoints.restore_newest(training.abstract)
        said = capsys.readouterr().out
        assert found is not None and found.position == 2
        assert reason in said and str(folder / "damaged" / f"3-{slug}") in said
        assert str(damaged if slug != "no-list" else damaged.parent) in said
        assert (folder / "damaged" / f"3-{slug}").is_dir() and not (folder / "3").exists()
        state, loss = training.step(found.state, 3)
        assert loss == losses[3]
        checkpoints.save(3, state, {})  # its number is free again
        checkpoints.wait()
        again = checkpoints.restore_newest(training.abstract)
        assert again is not None and again.position == 3
        assert training.step(again.state, 4)[1] == losses[4]


def test_all_damaged_are_all_named(training, uninterrupted, tmp_path, capsys):
    folder = shutil.copytree(uninterrupted[0], tmp_path / "checkpoints")
    files = [truncate(folder / "1"), flip(folder / "2"), flip(folder / "3")]
    with Checkpoints(folder, ALL) as checkpoints:
        assert checkpoints.restore_newest(training.abstract) is None
    said = capsys.readouterr().out
    assert all(str(path) in said for path in files)
    assert len(list((folder / "damaged").iterdir())) == 3


# When to kill, by what is in the folder once two saves are finished.
def writing(folder: Path) -> bool:
    return any(p.stat().st_size for p in folder.glob("[3-9].*tmp/state/ocdbt.process_0/d/*"))


def summing_up(folder: Path) -> bool:
    return any(folder.glob("[3-9].committing"))


def renamed(folder: Path) -> bool:
    return any(folder.glob("[3-9]"))


def test_kill_9_during_an_asynchronous_save(training, uninterrupted, tmp_path, capsys):
    source, losses, digests = uninterrupted
    abstract = {
        "state": training.abstract,
        "padding": jax.ShapeDtypeStruct(PADDING.shape, PADDING.dtype, sharding=one_device()),
    }
    waiting = {}
    for moment in (writing, summing_up, renamed):
        copy = shutil.copytree(source, tmp_path / f"source_{moment.__name__}")
        folder = tmp_path / moment.__name__
        waiting[moment] = folder, start(save_until_killed, folder, copy)
    patience = time.monotonic() + 900
    while waiting:
        for moment, (folder, process) in list(waiting.items()):
            if moment(folder):
                os.kill(process.pid, signal.SIGKILL)
                process.communicate()
                assert process.returncode == -signal.SIGKILL
                del waiting[moment]
            assert process.poll() in (None, -signal.SIGKILL) and time.monotonic() < patience
        time.sleep(0.0005)
    seen = set()
    for moment in (writing, summing_up, renamed):
        folder = tmp_path / moment.__name__
        left = {path.name for path in folder.iterdir()}
        newest = max(int(name) for name in left if name.isdecimal())
        with Checkpoints(folder, ALL) as checkpoints:
            found = checkpoints.restore_newest(abstract)
        said = capsys.readouterr().out
        assert found is not None, (left, said)
        if f"{newest + 1}.committing" in left:
            assert found.position == newest + 1 and "they are now" in said
            seen.add("whole")
        else:
            assert found.position == newest, (left, said)
        unfinished = f"{newest + 1}.committing.orbax-checkpoint-tmp"
        if unfinished in left:
            assert f"{unfinished}: the run was stopped while writing it" in said
            assert (folder / "damaged" / f"{newest + 1}-unfinished").is_dir()
            seen.add("unfinished")
        which = (found.position - 1) % 3 + 1
        assert digest(found.state["state"]) == digests[which]
        np.testing.assert_array_equal(found.state["padding"], PADDING)
        assert training.step(found.state["state"], which + 1)[1] == losses[which + 1]
    assert "unfinished" in seen


def one_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def test_saved_on_8_devices_restored_on_4_2_1_and_other_meshes(training, uninterrupted, tmp_path):
    folder = shutil.copytree(uninterrupted[0], tmp_path / "checkpoints")
    meshes = [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 8}]
    saved, *found = finish(start(step_and_save, folder, *meshes, devices=8))
    others = {
        4: [{"data": 1, "fsdp": 2, "tensor": 2}, {"data": 4}],
        2: [{"data": 1, "tensor": 2}],
    }
    started = [start(restore, folder, *those, devices=n) for n, those in others.items()]
    state = restored(folder, training.abstract)
    found.append([digest(state), training.step(state, 5)[1]])
    for process in started:
        found += finish(process)
    assert len(found) == 5
    for state, next_loss in found:
        assert state == saved[0]
        assert next_loss == pytest.approx(saved[1], rel=1e-5)


def test_two_processes_save_together_and_agree_on_what_to_restore(uninterrupted, tmp_path):
    address = f"localhost:{free_port()}"
    source = shutil.copytree(uninterrupted[0], tmp_path / "source")
    folder = tmp_path / "checkpoints"
    both = [start(one_of_two, folder, source, address, index) for index in range(2)]
    for process in both:
        assert finish(process) == [[1, 2, uninterrupted[2][3]]]
    damaged = {path.name for path in (folder / "damaged").iterdir()}
    assert damaged == {"3-wrong-checksum", "2-missing-file"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


# Orbax gives up on the first array that fails, while others still answer.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_while_saving_leaves_the_checkpoint_before(
    training, uninterrupted, small_disk, tmp_path
):
    source, losses, digests = uninterrupted
    folder = small_disk / "checkpoints"
    state = restored(shutil.copytree(source, tmp_path / "source"), training.abstract, 1)
    with Checkpoints(folder, CheckpointConfig(every_steps=1, keep=1)) as checkpoints:
        checkpoints.save(1, state, {"saved": 1})
        checkpoints.wait()
        state, _ = training.step(state, 2)
        checkpoints.check_room = lambda state: None  # it fills up only after that was asked
        filler = small_disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 200_000))
        checkpoints.save(2, state, {"saved": 2})
        with pytest.raises(OSError, match="No space left on device"):
            checkpoints.wait()
        assert sorted(path.name for path in folder.iterdir()) == ["1"]
        found = checkpoints.restore_newest(training.abstract)
        assert found is not None and found.progress == {"saved": 1}
        assert digest(found.state) == digests[1]
        filler.unlink()
        checkpoints.save(2, state, {"saved": 2})  # there is room again
        checkpoints.wait()
        assert sorted(path.name for path in folder.iterdir()) == ["2"]
    assert training.step(found.state, 2)[1] == losses[2]
