"""Digests by content: what changes them, what does not, and when a large file is read again."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ipt_jax.core import fingerprint
from ipt_jax.core.errors import UserError
from ipt_jax.core.fingerprint import file_digest, folder_digest, path_digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "inner" / "__pycache__").mkdir(parents=True)
    for name in ("a.json", "b.bin", "inner/c.txt", "inner/__pycache__/c.pyc", ".hidden"):
        (folder / name).write_text(name)
    return folder


def swap(folder: Path) -> None:
    (folder / "a.json").rename(folder / "x")
    (folder / "b.bin").rename(folder / "a.json")
    (folder / "x").rename(folder / "b.bin")


CHANGES: list[tuple[Callable[[Path], object], bool]] = [
    (lambda f: (f / "inner" / "c.txt").write_text("other"), True),
    (lambda f: (f / "d").write_text(""), True),
    (lambda f: (f / "a.json").unlink(), True),
    (swap, True),
    (lambda f: os.utime(f / "a.json", (1, 1)), False),
    (lambda f: (f / ".hidden").write_text("other"), False),
    (lambda f: (f / "inner" / "run.lock").write_text("process 7"), False),
    (lambda f: (f / "inner" / "__pycache__" / "c.pyc").unlink(), False),
    (lambda f: (f / "run").mkdir() or (f / "run" / "new").write_text("mine"), False),
]


@pytest.mark.parametrize(("change", "differs"), CHANGES)
def test_a_folder_is_its_names_and_contents(
    folder: Path, change: Callable[[Path], object], differs: bool
) -> None:
    before = folder_digest(folder, without=folder / "run")
    elsewhere = shutil.copytree(folder, folder.parent / "elsewhere")
    assert folder_digest(elsewhere) == path_digest(elsewhere) == before
    change(folder)
    assert (folder_digest(folder, without=folder / "run") != before) == differs


def test_only_what_a_pattern_matches_counts(folder: Path) -> None:
    before = folder_digest(folder, ("*.json", "*.bin"))
    (folder / "inner" / "c.txt").write_text("other")
    assert folder_digest(folder, ("*.bin", "a*")) == before
    (folder / "b.bin").write_text("other")
    assert folder_digest(folder, ("*.json", "*.bin")) != before
    for path, digest in ((folder / "gone", folder_digest), (folder / "gone", file_digest)):
        with pytest.raises(UserError, match="gone"):
            digest(path)


def test_a_large_file_is_read_again_when_anything_about_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "LARGE_BYTES", 3)
    read: list[str] = []
    true = fingerprint._sha256
    monkeypatch.setattr(fingerprint, "_sha256", lambda path: read.append(path.name) or true(path))
    path = tmp_path / "large"
    path.write_text("0123")

    def digest() -> int:
        """How often the file was read for it."""
        assert file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
        return read.count("large")

    assert [digest(), digest()] == [1, 2]  # it may yet change within the same tick of the clock
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 10**10)
    assert [digest(), digest()] == [3, 3]
    times = path.stat()
    path.write_text("3210")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, inode and time
    assert [digest(), digest()] == [4, 4]
    (kept,) = (tmp_path / "cache").rglob("*.json")
    kept.write_text("{")
    assert [digest(), digest()] == [5, 5]
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("in the folder's place")
    assert [digest(), digest()] == [6, 7]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", str)  # of a user without a home
    assert [digest(), digest()] == [8, 9]
