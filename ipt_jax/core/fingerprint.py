"""Digests of what a config names by a path: by content, so that nothing is exchanged unseen."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ipt_jax.core.errors import UserError
from ipt_jax.core.json_lines import load_json
from ipt_jax.core.run_folder import LOCK_NAME, MARKER_NAME

LARGE_BYTES = 64 << 20
"""Files above this are not read again at every start."""
_NO_CONTENT = ("__pycache__", MARKER_NAME, LOCK_NAME)
_SETTLED_NANOSECONDS = 2_000_000_000  # a change within a clock tick of another may not show


def file_digest(path: str | Path) -> str:
    """Hexadecimal sha256 of all bytes of a file.

    That of a file over `LARGE_BYTES` is kept in the user's cache folder and taken from there as
    long as path, size, inode and the times of change of content and of status are the same. What
    changes none of them, such as decay of the disk, is not seen there.

    Raises UserError naming a file that cannot be read.
    """
    path = Path(path)
    try:
        status = path.stat()
        if status.st_size <= LARGE_BYTES:
            return _sha256(path)
        key = [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
        kept = _cache() / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()}.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # then read it
            before = load_json(kept)
            if before["key"] == key:
                return str(before["sha256"])
        sha256 = _sha256(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror})", path=path, advice="mend or replace it"
        ) from error
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NANOSECONDS:
        with contextlib.suppress(OSError):  # without a cache it is read again next time
            _keep(kept, {"file": str(path.resolve()), "key": key, "sha256": sha256})
    return sha256


def folder_digest(
    folder: str | Path, patterns: Iterable[str] = ("**/*",), without: str | Path | None = None
) -> str:
    """Sha256 over names and contents of a folder's files, of those that a pattern matches.

    Hidden files and folders, Python's caches, the marker and lock of a run, and what lies below
    `without` do not count. Raises UserError naming a file that cannot be read, or the folder where
    it is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}", path=folder, advice="correct the path, or put it there"
        )
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    if without is not None:
        apart = Path(without).resolve()
        found = {path for path in found if apart not in path.resolve().parents}
    names = sorted(path.relative_to(folder) for path in found)
    seen = [n for n in names if not any(p[0] == "." or p in _NO_CONTENT for p in n.parts)]
    return digest_of({name.as_posix(): file_digest(folder / name) for name in seen})


def path_digest(path: str | Path) -> str:
    """`file_digest` of a file, `folder_digest` of a folder."""
    return folder_digest(path) if Path(path).is_dir() else file_digest(path)


def digest_of(values: Any) -> str:
    """Sha256 of what JSON can hold, the keys of mappings sorted; other values as their text."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # Who has no home has no cache.
    return Path(home if os.path.isabs(home) else os.devnull) / "ipt-jax" / "digests"


def _keep(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        json.dump(content, file)
    os.replace(file.name, path)
