"""Configs: what is read, what is refused, and how a script ends."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ipt_jax.core.configuration import (
    as_yaml,
    choice_of,
    parse_config,
    run_main,
    write_run_files,
)
from ipt_jax.core.errors import UserError
from tests.training_runs import ROOT


@dataclass(frozen=True)
class Inner:
    """Inner."""

    learning_rate: float = 1e-3
    """The rate."""
    decay: bool = True
    """A nested flag."""


@dataclass(frozen=True)
class Config:
    """Outer."""

    folder: Path = Path("runs")
    """A folder."""
    inner: Inner = field(default_factory=Inner)
    """Nested."""
    rates: dict[str, float] | None = None
    """A plain mapping."""
    fresh: bool = False
    """A flag."""


def parse(*arguments: str) -> Config:
    return parse_config(Config, arguments, prog="script", description="A script.")


def test_file_then_overrides(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("folder: there\ninner:\n  learning_rate: 2e-4\nrates: {raw: 1}\n")
    config = parse("--config", str(path), "--inner.learning_rate", "3e-4")
    assert config == Config(Path("there"), Inner(3e-4), {"raw": 1.0})
    path.write_text(as_yaml(config))
    assert parse(f"--config={path}") == config


def test_flags_need_no_value():
    assert parse("--fresh").fresh
    assert parse("--fresh", "--folder", "x") == Config(Path("x"), fresh=True)
    assert not parse("--fresh", "false").fresh
    assert not parse("--fresh=false", "--inner.decay", "false").inner.decay
    assert parse("--inner.decay").inner.decay


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inner:\n  learning_rat: 1\n", "unknown key 'inner.learning_rat'.*'inner.learning_rate'"),
        ("foldr: x\n", "unknown key 'foldr'.*'folder'"),
        ("learning_rate: 1\n", "unknown key 'learning_rate'.*'inner.learning_rate'"),
        ("inner:\n  learning_rate: fast\n", "learning_rate.*fast"),
        ("- a\n", "should hold `key: value` lines"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_bad_files_are_named_with_the_key(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"(?s){message}") as caught:
        parse("--config", str(path))
    assert "\n" not in str(caught.value)


def test_a_command_may_have_no_options():
    assert parse() == Config()


def test_bad_options_are_named():
    with pytest.raises(UserError, match=r"'--inner\.lerning_rate'.*'inner\.learning_rate'") as bad:
        parse("--inner.lerning_rate", "1")
    assert bad.value.key == "inner.lerning_rate"
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such config file"):
        parse("--config", "nowhere.yaml")


def test_a_key_that_decides_which_settings_there_are(tmp_path, monkeypatch):
    file = tmp_path / "x.yaml"
    file.write_text("kind: b\nother: 1\n")
    for argv, found in (
        ([], "a"),
        (["--config", str(file)], "b"),
        ([f"--config={file}", "--kind", "c"], "c"),
        (["--kind=c", "--config", str(file)], "c"),
    ):
        monkeypatch.setattr("sys.argv", ["x", *argv])
        assert choice_of("kind", "abc", default="a") == found
    monkeypatch.setattr("sys.argv", ["x", "--kind=bb"])
    with pytest.raises(UserError, match="The nearest is 'b'") as bad:
        choice_of("kind", ("a", "b"), default="a")
    assert bad.value.key == "kind"


def ends_with(capsys, error: BaseException) -> tuple[int, str]:
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        run_main(main)
    return caught.value.code, capsys.readouterr().err


def test_how_scripts_end(capsys):
    assert ends_with(capsys, UserError("a.jsonl: is\nempty")) == (2, "error: a.jsonl: is empty\n")
    code, message = ends_with(capsys, OSError(errno.ENOSPC, "No space", "/disk/file"))
    assert code == 2 and "/disk/file" in message and "free some space" in message
    code, message = ends_with(capsys, PermissionError(errno.EACCES, "Denied", "/elsewhere/x"))
    assert code == 2 and "/elsewhere/x: no permission" in message
    for gone in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EIO, errno.ESTALE):
        code, message = ends_with(capsys, OSError(gone, os.strerror(gone), "/volume/run"))
        assert code == 2 and "/volume/run: " in message and "volume" in message
    with pytest.raises(FileNotFoundError):  # names nothing that could be mended
        run_main(lambda: (_ for _ in ()).throw(FileNotFoundError(errno.ENOENT, "not there")))
    assert ends_with(capsys, KeyboardInterrupt())[0] == 130
    with pytest.raises(ZeroDivisionError):  # a fault of ours keeps its traceback
        run_main(lambda: 1 // 0)


@pytest.mark.parametrize("printed", ["'a line'", "'x' * 10**6"], ids=["held back", "long"])
def test_a_reader_that_is_gone_ends_it_without_a_word(printed):
    program = f"from ipt_jax.core import configuration as c; c.run_main(lambda: print({printed}))"
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, timeout=600)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_another_pipe_that_breaks_is_a_fault():
    with pytest.raises(BrokenPipeError):
        run_main(lambda: (_ for _ in ()).throw(BrokenPipeError(errno.EPIPE, "a worker's")))


def test_run_files_say_what_ran(tmp_path):
    write_run_files(tmp_path / "run", Config(), devices=["cpu"])
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["devices"] == ["cpu"]
    assert environment["packages"]["jax"].startswith("0.")
    assert parse("--config", str(tmp_path / "run" / "config.yaml")) == Config()


LEFT_BEHIND = """
import threading
from ipt_jax.core import configuration, errors
configuration.EXIT_SECONDS = 0.5
def main():
    threading.Thread(target=threading.Event().wait, name="left behind").start()
    print("12 of 20 were written")
    raise errors.UserError("the disk is full")
configuration.run_main(main)
"""


def test_a_thread_that_a_library_left_behind_does_not_keep_the_process():
    """As Orbax's after a save that failed for want of inodes."""
    command = [sys.executable, "-c", LEFT_BEHIND]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert "error: the disk is full" in done.stderr and "longer: left behind" in done.stderr
    assert done.stdout == "12 of 20 were written\n"  # though it is held back in a pipe
