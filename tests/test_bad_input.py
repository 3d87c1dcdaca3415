"""Bad input to the real scripts: one paragraph that names it, exit code 2, nothing half-written."""

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipt_jax.core.records import Record, ShardWriter
from tests.launching import refused

SYNTHESIZE = ("launch/synthesize.py", "--config", "configs/synthesize/quickstart.yaml")
TRAIN = ("launch/train.py", "--config", "configs/train/quickstart.yaml")
TRAIN = (*TRAIN, "--compilation_cache", "null")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def plain_model(smollm2: Path) -> tuple[str, ...]:
    """Options for the model that is unpacked for all tests, without an adapter to merge."""
    return "--engine.cache_folder", str(smollm2.parent), "--engine.adapter", ""


@contextlib.contextmanager
def as_nobody_special() -> Iterator[None]:
    """Root may write everywhere: take that away from this thread (capset(2)), and give it back."""
    libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
    mine = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, and once more
    assert libc.capget(header, mine) == 0
    assert libc.capset(header, (ctypes.c_uint32 * 6)(0, mine[1], 0, 0, mine[4], 0)) == 0
    try:
        yield
    finally:
        assert libc.capset(header, mine) == 0


@pytest.mark.parametrize("content", [None, b"", b"\x80\x81\xfe\xff" * 50])
def test_a_corpus_that_cannot_be_read(tmp_path, plain_model, content):
    """Not there, empty, no text at all."""
    corpus, output = tmp_path / "corpus.jsonl", tmp_path / "out"
    if content is not None:
        corpus.write_bytes(content)
    ended = refused(*SYNTHESIZE, *plain_model, "--input", f"[{corpus}]", "--output", output)
    assert "corpus.jsonl" in ended.said
    assert not list(output.rglob("manifest.json"))


@pytest.mark.parametrize(
    ("script", "option", "nearest"),
    [
        ("quickstart", "minuets", "minutes"),
        ("evaluate", "task", "tasks"),
        ("train", "optimiser.beta1", "optimizer.beta1"),
        ("synthesize", "round", "rounds"),
    ],
)
def test_an_unknown_option(script, option, nearest):
    ended = refused(f"launch/{script}.py", f"--{option}", "3")
    assert ended.key == option and f"'{nearest}'" in ended.said


def test_an_unknown_key_in_a_file_and_an_unknown_direction(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("round: 2\n")
    ended = refused("launch/synthesize.py", "--config", config)
    assert ended.error is not None and ended.error.path == str(config)
    assert ended.key == "round" and "'rounds'" in ended.said
    assert "to-hf" in refused("launch/convert.py", "to-huggingface").said


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["convert.py", "to-hf", "--run", "{no}"], "config.yaml"),
        (["convert.py", "from-hf", "--folder", "{no}"], "no/config.json"),
        (["evaluate.py", "--models", "{{a: {no}}}"], "{no}"),
    ],
)
def test_runs_that_are_not_there(tmp_path, command, named):
    script, *arguments = (word.format(no=tmp_path / "no") for word in command)
    assert named.format(no=tmp_path / "no") in refused(f"launch/{script}", *arguments).said


def test_shards_that_are_not_there(tmp_path):
    ended = refused(*TRAIN, "--data.root", tmp_path / "nowhere", "--run_folder", tmp_path / "run")
    assert str(tmp_path / "nowhere") in ended.said
    assert not (tmp_path / "run").exists()


def made_shards(folder: Path) -> Path:
    with ShardWriter(folder / "raw") as writer:
        for number in range(20):
            writer.write(Record(str(number), f"Document {number} speaks of rivers. " * 30, "made"))
    return folder


def test_no_permission_to_write(tmp_path):
    shards, folder = made_shards(tmp_path / "shards"), tmp_path / "read_only"
    folder.mkdir(mode=0o555)
    output = folder / "out"
    for command in (
        (*SYNTHESIZE, "--output", output),
        (*TRAIN, "--data.root", shards, "--run_folder", output),
        ("launch/quickstart.py", "--folder", output),
    ):
        with as_nobody_special():
            ended = refused(*command)
        assert str(folder) in ended.said and "permission" in ended.said
    assert not list(folder.iterdir())


def test_a_full_disk_while_synthesising(tmp_path, small_disk, plain_model):
    corpus = tmp_path / "corpus.jsonl"
    text = "A river rises in the hills and runs to the sea. "
    lines = (
        json.dumps({"id": str(n), "text": f"{n} {os.urandom(3000).hex()} {text}"})
        for n in range(500)
    )
    corpus.write_text("\n".join(lines))
    options = ("--input", f"[{corpus}]", "--output", small_disk / "out")
    said = refused(*SYNTHESIZE, *plain_model, *options, "--engine.context_tokens", "8192").said
    assert "disk" in said and str(small_disk) in said
    assert not list((small_disk / "out").rglob("manifest.json"))


def test_a_full_disk_while_training(tmp_path, small_disk):
    shards = made_shards(tmp_path / "shards")
    run = small_disk / "run"
    options = ("--data.root", shards, "--run_folder", run, "--train_tokens", "4096")
    said = refused(*TRAIN, *options).said
    assert "disk" in said and str(small_disk) in said
    # What is left is no checkpoint to anyone: the same command, with room, starts from nothing.
    said = refused("launch/convert.py", "to-hf", "--run", run).said
    assert "holds no finished checkpoint" in said
