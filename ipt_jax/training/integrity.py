"""Checksums of a folder's files: what was written, and whether it is still there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ipt_jax.core.json_lines import load_json
from ipt_jax.core.manifest import atomic_write, file_sha256

LIST_NAME = "checksums.json"


@dataclass(frozen=True)
class Corruption:
    """What is wrong with a folder."""

    file: Path
    """The file that shows it."""
    reason: str
    """One clause: what is wrong with the file."""
    slug: str
    """The reason in a word that can be part of a folder's name."""

    def __str__(self) -> str:
        return f"{self.file} {self.reason}"


def write_list(folder: Path) -> None:
    """Write the size and sha256 of every file in `folder` to its checksums.json.

    The files are read back from the disk. Few threads do so, for a training step may need the
    processors at the same time.

    Raises:
      OSError: a file cannot be read, or the list cannot be written (disk full).
    """
    names = list(_names(folder))
    threads = max(1, min(4, (os.cpu_count() or 1) // 8))
    with ThreadPoolExecutor(threads) as pool:
        sums = list(pool.map(lambda name: file_sha256(folder / name), names))
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256}
        for name, sha256 in zip(names, sums, strict=True)
    }
    atomic_write(folder / LIST_NAME, json.dumps({"files": files}, indent=1) + "\n")


def has_list(folder: Path) -> bool:
    """Whether `folder` has a list of checksums at all."""
    return (folder / LIST_NAME).exists()


def find_corruption(folder: Path) -> Corruption | None:
    """The first file of `folder` that differs from the list, or None.

    Sizes are compared first, so that a cut file is found without reading the others. Files that
    are not in the list do not matter.
    """
    path = folder / LIST_NAME
    try:
        listed = {
            str(name): (int(entry["bytes"]), str(entry["sha256"]))
            for name, entry in load_json(path)["files"].items()
        }
    except FileNotFoundError:
        return Corruption(path, "is missing", "no-list")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Corruption(path, f"cannot be read ({error})", "bad-list")
    if not listed:
        return Corruption(path, "lists no file", "bad-list")
    for name, (size, _) in listed.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return Corruption(folder / name, "is missing", "missing-file")
        if found != size:
            return Corruption(
                folder / name, f"has {found:,} bytes instead of {size:,}", "wrong-size"
            )

    def look(name: str) -> Corruption | None:
        try:
            same = file_sha256(folder / name) == listed[name][1]
        except OSError as error:
            return Corruption(folder / name, f"cannot be read ({error})", "unreadable")
        wrong = Corruption(folder / name, "has other bytes than were written", "wrong-checksum")
        return None if same else wrong

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return next(filter(None, pool.map(look, listed)), None)


def _names(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / LIST_NAME:
            yield path.relative_to(folder).as_posix()
