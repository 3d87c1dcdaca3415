"""Bad input to the real scripts: one paragraph that names it, exit code 2, nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipt_jax.core.records import Record, ShardWriter

ROOT = Path(__file__).parents[1]
SYNTHESIZE = ("launch/synthesize.py", "--config", "configs/synthesize/quickstart.yaml")
TRAIN = ("launch/train.py", "--config", "configs/train/quickstart.yaml")


def fails(*command: str | Path, prefix: tuple[str, ...] = ()) -> str:
    """Run a script that must end with exit code 2; what it said in its one paragraph."""
    done = subprocess.run(
        [*prefix, sys.executable, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 2, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("error: ") and "Traceback" not in done.stderr, done.stderr
    return said


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
def read_only(tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    """A folder that may not be written, and what to put before a command so that root may not."""
    folder = tmp_path / "read_only"
    folder.mkdir(mode=0o555)
    if os.geteuid() != 0:
        return folder, ()
    if shutil.which("setpriv") is None:
        pytest.skip("root may write everywhere, and setpriv is not there to take that away")
    return folder, ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "corpus.jsonl"),  # not there
        (b"", "corpus.jsonl"),  # empty
        (b"\x80\x81\xfe\xff" * 50, "corpus.jsonl"),  # no text at all
    ],
)
def test_a_corpus_that_cannot_be_read(tmp_path, content, expected):
    corpus, output = tmp_path / "corpus.jsonl", tmp_path / "out"
    if content is not None:
        corpus.write_bytes(content)
    said = fails(*SYNTHESIZE, "--input", f"[{corpus}]", "--output", output)
    assert expected in said
    assert not list(output.rglob("manifest.json"))


def test_unknown_keys_in_a_file_and_on_the_command_line(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("round: 2\n")
    said = fails("launch/synthesize.py", "--config", config)
    assert "c.yaml" in said and "'round'" in said and "'rounds'" in said
    said = fails("launch/quickstart.py", "--minuets", "3")
    assert "'--minuets'" in said and "'minutes'" in said
    said = fails("launch/evaluate.py", "--task", "[x]")
    assert "'--task'" in said and "'tasks'" in said
    said = fails("launch/convert.py", "to-huggingface")
    assert "to-hf" in said


def test_runs_that_are_not_there(tmp_path):
    assert "config.yaml" in fails("launch/convert.py", "to-hf", "--run", tmp_path / "no")
    assert "no/config.json" in fails("launch/convert.py", "from-hf", "--folder", tmp_path / "no")
    said = fails("launch/evaluate.py", "--models", f"{{a: {tmp_path / 'no'}}}")
    assert str(tmp_path / "no") in said


def test_shards_that_are_not_there(tmp_path):
    said = fails(*TRAIN, "--data.root", tmp_path / "nowhere", "--run_folder", tmp_path / "run")
    assert str(tmp_path / "nowhere") in said
    assert not (tmp_path / "run").exists()


def made_shards(folder: Path) -> Path:
    with ShardWriter(folder / "raw") as writer:
        for number in range(20):
            writer.write(Record(str(number), f"Document {number} speaks of rivers. " * 30, "made"))
    return folder


def test_no_permission_to_write(tmp_path, read_only):
    folder, prefix = read_only
    output = folder / "out"
    assert str(folder) in fails(*SYNTHESIZE, "--output", output, prefix=prefix)
    shards = made_shards(tmp_path / "shards")
    run = ("--data.root", shards, "--run_folder", output)
    assert str(folder) in fails(*TRAIN, *run, prefix=prefix)
    assert str(folder) in fails("launch/quickstart.py", "--folder", output, prefix=prefix)


def test_a_full_disk_while_synthesising(tmp_path, small_disk):
    corpus = tmp_path / "corpus.jsonl"
    text = "A river rises in the hills and runs to the sea. "
    lines = (
        json.dumps({"id": str(n), "text": f"{n} {os.urandom(3000).hex()} {text}"})
        for n in range(500)
    )
    corpus.write_text("\n".join(lines))
    options = ("--input", f"[{corpus}]", "--output", small_disk / "out")
    said = fails(*SYNTHESIZE, *options, "--engine.context_tokens", "8192")
    assert "disk" in said and str(small_disk) in said
    assert not list((small_disk / "out").rglob("manifest.json"))


def test_a_full_disk_while_training(tmp_path, small_disk):
    shards = made_shards(tmp_path / "shards")
    run = small_disk / "run"
    said = fails(*TRAIN, "--data.root", shards, "--run_folder", run, "--train_tokens", "4096")
    assert "disk" in said and str(small_disk) in said
    # What is left is no checkpoint to anyone: the same command, with room, starts from nothing.
    assert "holds no finished checkpoint" in fails("launch/convert.py", "to-hf", "--run", run)
