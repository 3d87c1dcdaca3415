"""Run folders: whose they are, what goes on, what is deleted, who is kept out."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from ipt_jax.core import run_folder
from ipt_jax.core.files import append_lines, atomic_write
from ipt_jax.core.run_folder import FolderRefused, RunFolder, fingerprint_of, prints_of

OWNS = ("config.yaml", "shards/part-#.arrayrecord", "checkpoints/#/")
MADE = ("config.yaml", "shards/part-00000.arrayrecord", "checkpoints/10/state/d/x")
LEFT = ("shards/part-00001.arrayrecord.77.tmp", "config.yaml.12-34.tmp")  # by a kill
STRANGE = (
    "notes.txt",
    "shards/part.txt",
    "shards/more/part-1.arrayrecord",
    "checkpoints/10-mine/x",
)


def opened(path: Path, prints: Mapping[str, str] | None = None, **changes: object) -> RunFolder:
    arguments: dict = {"owns": OWNS, **changes}
    return RunFolder.open(path, "test", prints or {"seed": "1"}, **arguments)


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refused(path: Path, reason: str, **arguments: object) -> FolderRefused:
    """The refusal; it changes nothing."""
    before = content(path) if path.is_dir() else {}
    with pytest.raises(FolderRefused) as caught:
        opened(path, **arguments)  # type: ignore[arg-type]
    assert caught.value.reason == reason, caught.value
    assert str(path) in str(caught.value)
    assert (content(path) if path.is_dir() else {}) == before
    return caught.value


def test_a_run_goes_on_ends_and_may_be_moved(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as run:
        assert not run.finished
        put(run.path, *MADE)
    with opened(tmp_path / "a") as run:
        assert not run.finished
        run.finish()
    moved = (tmp_path / "a").rename(tmp_path / "b")
    assert str(tmp_path) not in (moved / "run.json").read_text()
    with opened(moved) as run:
        assert run.finished
        run.begin()
    with opened(moved) as run:
        assert not run.finished
    assert set(MADE) < set(content(moved))


@pytest.mark.parametrize("fresh", [False, True])
def test_what_the_run_did_not_make_stays(tmp_path: Path, fresh: bool) -> None:
    with opened(tmp_path, folders=("inner",)):
        put(tmp_path, *MADE, *LEFT)
        with opened(tmp_path / "inner") as inner:
            put(inner.path, *MADE)
    put(tmp_path, *STRANGE, *(f"inner/{name}" for name in STRANGE))
    (tmp_path / "outside").symlink_to("/etc")
    strange = {name: data for name, data in content(tmp_path).items() if "mine" in name or
               any(name.endswith(one) for one in STRANGE)}  # fmt: skip
    with opened(tmp_path, {"seed": "2"} if fresh else None, folders=("inner",), fresh=fresh):
        pass
    found = content(tmp_path)
    assert len(strange) == 8 and strange.items() <= found.items()
    ours = {"run.json", "run.lock"} if fresh else {"run.json", "run.lock", *MADE, *LEFT}
    assert {name for name in found if not name.startswith("inner/")} - set(STRANGE) == ours


def test_fresh_leaves_nothing_of_a_run_alone_in_its_folder(tmp_path: Path) -> None:
    with opened(tmp_path, folders=("inner*",)):
        put(tmp_path, *MADE)
        with opened(tmp_path / "inner_a") as inner:
            put(inner.path, *MADE)
    opened(tmp_path, fresh=True, folders=("inner*",)).close()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["run.json", "run.lock"]


def test_refusals(tmp_path: Path) -> None:
    with opened(tmp_path / "run", {"seed": "1", "mixture": "a" * 64}) as run:
        put(run.path, *MADE)
        refused(run.path, "locked", prints={"seed": "1", "mixture": "a" * 64})
        refused(run.path, "locked", fresh=True)
    error = refused(tmp_path / "run", "differs", prints={"seed": "2", "mixture": "b" * 64})
    assert error.differs == ("mixture", "seed")
    assert "mixture, seed (then 1, now 2)" in str(error)
    for name, reason in [("other", "another_kind"), ("a file", "not_a_folder"),
                         ("a file/below", "not_a_folder"), ("strange", "not_ours"),
                         ("damaged", "not_ours")]:  # fmt: skip
        path = tmp_path / name
        if name == "a file":
            path.write_text("")
        elif name == "other":
            RunFolder.open(path, "other", {"seed": "1"}, owns=()).close()
        elif name == "strange":
            put(path, "shards/part-00000.arrayrecord")
        elif name == "damaged":
            put(path, "run.json")
        refused(path, reason)
        refused(path, reason, fresh=True)
    assert "shards/part-00000.arrayrecord" in str(refused(tmp_path / "strange", "not_ours"))
    with opened(tmp_path / "parent", folders=("inner",)), opened(tmp_path / "parent" / "inner"):
        pass
    with opened(tmp_path / "parent" / "inner"):
        refused_child = pytest.raises(FolderRefused, match="inner: another run")
        before = content(tmp_path / "parent")
        with refused_child:
            opened(tmp_path / "parent", fresh=True)
        assert content(tmp_path / "parent")["run.json"] == before["run.json"]


def test_names_added_later_are_claimed_only_where_nothing_is(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        put(tmp_path, "report.html")
        with pytest.raises(FolderRefused, match=r"report\.html"):
            run.own("report.html")
        run.own("page.html")
        put(tmp_path, "page.html")
        run.remove("page.html")
    assert set(content(tmp_path)) == {"run.json", "run.lock", "report.html"}
    refused(tmp_path, "not_ours", owns=(*OWNS, "report.html"))


def test_a_folder_made_before_there_were_markers(tmp_path: Path) -> None:
    put(tmp_path, *MADE, *STRANGE)
    refused(tmp_path, "not_ours", legacy=lambda path: None)
    old = {"legacy": lambda path: {"seed": "1", "gone": "x"}}
    new = {"seed": "1", "mixture": "m"}
    with opened(tmp_path, new, defaults={"seed": "0"}, **old) as run:
        assert not run.finished
    assert set(content(tmp_path)) == {*MADE, *STRANGE, "run.json", "run.lock"}
    assert refused(tmp_path, "differs", prints={"seed": "1"}, **old).differs == ("mixture",)
    opened(tmp_path, {**new, "rounds": "1"}, defaults={"rounds": "1"}).close()
    (tmp_path / "run.json").unlink()
    (tmp_path / "run.lock").unlink()
    with pytest.raises(FolderRefused, match="seed"):
        opened(tmp_path, {"seed": "2"}, **old)
    opened(tmp_path, {"seed": "2"}, fresh=True, **old).close()
    assert set(content(tmp_path)) == {*STRANGE, "run.json", "run.lock"}


def test_what_lies_on_another_disk_is_cleared_through_the_link(tmp_path: Path) -> None:
    for name in ("run/checkpoints", "run/inner"):
        (tmp_path / "disk" / name).mkdir(parents=True)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    with opened(tmp_path / "run", folders=("inner",)):
        put(tmp_path / "run", *MADE, "checkpoints/notes.txt")
        with opened(tmp_path / "run" / "inner"):
            put(tmp_path / "run" / "inner", *MADE)
    opened(tmp_path / "run", fresh=True, folders=("inner",)).close()
    assert set(content(tmp_path / "disk")) == {"run/checkpoints/notes.txt"}
    # Of a link in the place of a tree that is the run's, the link alone is.
    with opened(tmp_path / "run", folders=("inner",)):
        put(tmp_path / "elsewhere", "x")
        (tmp_path / "run" / "checkpoints" / "20").symlink_to(tmp_path / "elsewhere")
    opened(tmp_path / "run", fresh=True, folders=("inner",)).close()
    assert not (tmp_path / "run" / "checkpoints" / "20").is_symlink()
    assert set(content(tmp_path / "elsewhere")) == {"x"}


def test_what_is_free_to_change_stays_written_down_as_the_run_began(tmp_path: Path) -> None:
    for place in ("a", "b", "c"):
        with opened(tmp_path, {"seed": "1", "data.root": place}, free=("data",)):
            put(tmp_path, *MADE)
        assert fingerprint_of(tmp_path) == {"seed": "1", "data.root": "a"}
    assert refused(tmp_path, "differs", prints={"seed": "2", "data.root": "a"}).differs == ("seed",)


def test_a_run_that_made_nothing_is_no_ones(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        put(tmp_path, "config.yaml", "notes.txt")
        run.finish()
    with opened(tmp_path, {"seed": "2"}) as run:
        assert not run.finished
        put(tmp_path, *MADE)
    assert refused(tmp_path, "differs").differs == ("seed",)


def test_a_clearing_that_was_interrupted_is_ended_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path):
        put(tmp_path, *MADE, *STRANGE)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run_folder.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            opened(tmp_path, {"seed": "2"}, fresh=True)
    opened(tmp_path, {"seed": "2"}).close()
    assert set(content(tmp_path)) == {*STRANGE, "run.json", "run.lock"}


def test_a_lock_ends_with_its_process_and_is_not_left_to_a_fork(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from ipt_jax.core.run_folder import RunFolder\n"
        f"run = RunFolder.open({str(tmp_path)!r}, 'test', {{'seed': '1'}}, owns={OWNS!r})\n"
        "if os.fork() == 0: print(os.getpid(), flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        child = int(one.stdout.readline())
        assert f"process {one.pid} on " in str(refused(tmp_path, "locked"))
        one.kill()
        one.wait()
    try:
        opened(tmp_path).close()
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("made_again", [False, True])
def test_a_lock_file_that_was_deleted_before_it_was_locked_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_again: bool
) -> None:
    lock, flock, locked = tmp_path / run_folder.LOCK_NAME, fcntl.flock, []

    def behind_a_deletion(number: int, how: int) -> None:
        if not locked:  # whoever held it cleared the folder, and another may have begun there
            lock.unlink()
            if made_again:
                lock.touch()
        locked.append(number)
        flock(number, how)

    monkeypatch.setattr(fcntl, "flock", behind_a_deletion)
    with opened(tmp_path):
        assert len(locked) == 2
        refused(tmp_path, "locked")


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(FolderRefused, match="does not lock files") as caught:
        opened(tmp_path)
    assert caught.value.reason == "no_locks"


def test_a_failed_write_names_its_file_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_lines(path, "one\n")
    with pytest.raises(OSError) as caught:
        append_lines("/dev/full", "two\n")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")
    # A disk that takes half of a line: the half is taken back.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6, limits[1]))
    try:
        for write, text in ((append_lines, "two\n"), (atomic_write, "one\ntwo\n")):
            with pytest.raises(OSError, match=r"lines\.jsonl"):
                write(path, text)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert content(tmp_path) == {"lines.jsonl": b"one\n"}


def test_prints_of_settings() -> None:
    assert prints_of({"a": {"b": 1, "c": "x"}, "d": None, "e": {}, "f": [1.0]}) == {
        "a.b": "1", "a.c": "x", "d": "null", "e": "{}", "f": "[1.0]"
    }  # fmt: skip
    assert json.loads(prints_of({"a": {}})["a"]) == {}
