"""Several real processes that train one model, and what happens when one of them does not."""

import errno
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from ipt_jax.core.errors import UserError
from ipt_jax.training import processes
from ipt_jax.training.loop import train
from ipt_jax.training.processes import abort_on_error
from tests.forked import Forked
from tests.training_runs import (
    BATCH_TOKENS,
    figures,
    finish,
    free_port,
    make_config,
    start,
    start_several,
    wait_for_steps,
    with_devices,
    write_config,
    write_shards,
)

STEPS = 12

SHARDING = ("--mesh.data", "1", "--mesh.fsdp", "2", "--mesh.tensor", "2")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def config_for(shards: Path, folder: Path) -> Path:
    config = make_config(shards, folder, train_tokens=BATCH_TOKENS * STEPS)
    return write_config(config, folder.with_suffix(".yaml"))


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory) -> Path:
    """The run of one process with one device."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(make_config(shards, folder, train_tokens=BATCH_TOKENS * STEPS))
    return folder


def assert_same_run(folder: Path, expected: Path) -> None:
    assert figures(folder, "source_tokens") == figures(expected, "source_tokens")
    assert figures(folder) == pytest.approx(figures(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("count", "devices", "options"), [(4, 1, SHARDING), (2, 4, ("--mesh.context", "4"))]
)
def test_several_processes_give_the_losses_of_one(shards, alone, tmp_path, count, devices, options):
    config = config_for(shards, tmp_path / "run")
    ended = finish(start_several(config, count, *options, devices=devices))
    for code, _, errors in ended:
        assert code == 0, errors[-3000:]
    assert f"{count} process(es)" in ended[0][1]
    assert "process(es)" not in ended[1][1]  # the first alone speaks for all
    assert_same_run(tmp_path / "run", alone)


def test_a_signal_to_one_stops_all_and_another_number_of_them_goes_on(shards, alone, tmp_path):
    config = config_for(shards, tmp_path / "run")
    for code, _, errors in finish(start_several(config, 2, signal=(signal.SIGTERM, 6))):
        assert code == 128 + signal.SIGTERM, errors[-3000:]
        assert "goes on from here" in errors
    stopped = max(figures(tmp_path / "run"))
    assert 6 <= stopped < STEPS
    (code, said, errors), *_ = finish([start(config, "--resume", "required", devices=4)])
    assert code == 0, errors[-3000:]
    assert f"steps {stopped} → {STEPS}" in said and "data 4" in said
    assert_same_run(tmp_path / "run", alone)  # what two processes began, and one ended


def test_a_silent_process_is_named_and_a_killed_one_takes_the_others_with_it(shards, tmp_path):
    """The one killed is the first, whose end JAX answers by aborting the others."""
    silent, killed = tmp_path / "silent", tmp_path / "killed"
    # Batches enough that the runs cannot end before something happens to them.
    longer = ("--train_tokens", str(512 * 5000))
    watched = (*longer, "--watchdog.timeout_seconds", "45")
    waiting = start_several(config_for(shards, silent), 2, *watched)
    try:
        wait_for_steps(silent, 6, waiting[0])
        waiting[1].send_signal(signal.SIGSTOP)
        processes = start_several(
            config_for(shards, killed), 2, *longer
        )  # while the first wait for each other
        wait_for_steps(killed, 6, processes[0])
        processes[0].kill()
        _, (code, _, errors) = finish(processes, timeout=90)  # not JAX's own 100 s
        assert code == 75 and "Another process of this run ended" in errors
        _, errors = waiting[0].communicate(timeout=600)
        assert waiting[0].returncode == 75
        assert "Silent: process 1 (" in errors and f"pid {waiting[1].pid})" in errors
        assert "in the phase 'step'" in errors and "most recent call first" in errors
    finally:
        for process in waiting:
            process.kill()


def test_processes_with_different_configs_do_not_train(shards, tmp_path):
    config = config_for(shards, tmp_path / "run")
    joined = ("--processes.coordinator", f"localhost:{free_port()}", "--processes.count", "2")
    others = ("--seed", "1", "--optimizer.peak_learning_rate", "1e-3", "--data.worker_count", "1")
    processes = [
        start(config, *joined, "--processes.index", str(index), *options)
        for index, options in enumerate(((), others))
    ]
    for code, _, errors in finish(processes):
        assert code == 2
        assert "error: optimizer.peak_learning_rate, seed: process 1 of this run" in errors
    assert not (tmp_path / "run").exists()


def aborts() -> None:
    processes.leave_when_aborted()
    child = os.fork()
    if child == 0:
        os.abort()  # of its own: no one else is at fault
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGABRT
    thread = threading.Thread(target=os.abort)
    thread.start()
    thread.join()


def test_an_abort_by_the_client_of_jax_is_no_crash():
    ((code, _, errors),) = finish([Forked(aborts, env=with_devices(1))])
    assert code == 75, errors
    assert "Another process of this run ended" in errors


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:18355", 75),
        ("UNAVAILABLE: Failed to send RPC to coordination service", 75),
        ("INTERNAL: NCCL operation ncclAllReduce failed: remote process exited", 75),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 4 bytes", 1),
        ("INTERNAL: Mosaic failed to compile the kernel", 1),
    ],
)
def test_which_errors_of_jax_mean_that_a_process_is_gone(monkeypatch, said, code):
    assert leaves_with(monkeypatch, jax.errors.JaxRuntimeError(said)) == code


def test_a_full_disk_is_something_to_mend_in_one_of_several_processes_too(monkeypatch, capsys):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/run/checkpoints")
    assert leaves_with(monkeypatch, full) == 2
    said = capsys.readouterr().err
    assert "error: /run/checkpoints: the disk is full: free some space" in said
    assert "Traceback" not in said
    assert leaves_with(monkeypatch, FileNotFoundError(errno.ENOENT, "not there")) == 1
    assert "Traceback" in capsys.readouterr().err


def leaves_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> Any:
    """The exit code of one of two processes that meets this error."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(SystemExit) as told, abort_on_error():
        raise error
    return told.value.code


def test_what_process_0_makes_the_others_take(monkeypatch):
    """Before devices start: a choice by trial may differ from host to host."""
    kept: dict[str, str] = {}

    class Store:
        key_value_set = staticmethod(kept.__setitem__)

        @staticmethod
        def blocking_key_value_get(key: str, milliseconds: int) -> str:
            if key not in kept:
                raise RuntimeError(f"DEADLINE_EXCEEDED after {milliseconds}")
            return kept[key]

    def process(number: int | None, count: int | None) -> str:
        state = SimpleNamespace(num_processes=count, process_id=number, client=count and Store)
        monkeypatch.setattr(processes.distributed, "global_state", state)
        return processes.from_first_process("choice", lambda: f"made by {number}", 2)

    assert process(None, None) == "made by None" and not kept
    with pytest.raises(UserError, match="process 0 did not say its choice within 2 s"):
        process(1, 2)
    assert process(0, 2) == "made by 0"
    assert process(1, 2) == "made by 0"
