"""State files: replaced whole or not at all, appended to line by line, named when a write fails.

And records that lie in several files, each read once.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Give an OSError that names no file the name `path`: a failed write does not say of what."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Write ``data`` so that ``path`` is either as before or whole: temporary, fsync, rename.

    Raises OSError naming the file (disk full, no permission) and then leaves no temporary file.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    with naming(path):
        try:
            with open(temporary, "wb") as out:
                out.write(data.encode() if isinstance(data, str) else data)
                out.flush()
                os.fsync(out.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def append_lines(path: str | Path, text: str) -> None:
    """Append whole lines; where that fails, the file is as long as before.

    Raises OSError naming the file.
    """
    with naming(path), open(path, "ab", buffering=0) as out:
        before = out.seek(0, os.SEEK_END)
        data = memoryview(text.encode(errors="backslashreplace"))
        try:
            while data:
                data = data[out.write(data) :]
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                out.truncate(before)
            raise


def read_parts[T](
    starts: np.ndarray, indices: Sequence[int], read: Callable[[int, list[int]], Sequence[T]]
) -> list[T]:
    """What ``read(part, places)`` gives for each of ``indices``, in that order, once a part.

    ``starts`` [parts + 1] is where each part begins, and the end. Raises IndexError outside it.
    """
    import numpy as np  # who reads no records does without it

    wanted = np.asarray(indices, np.int64)
    if wanted.size and (wanted.min() < 0 or wanted.max() >= starts[-1]):
        raise IndexError(f"there are {starts[-1]} records, not {wanted.max()}")
    parts = np.searchsorted(starts, wanted, side="right") - 1
    found: dict[int, T] = {}
    for part in np.unique(parts).tolist():
        (places,) = np.nonzero(parts == part)
        local = (wanted[places] - starts[part]).tolist()
        found |= zip(places.tolist(), read(part, local), strict=True)
    return [found[place] for place in range(len(wanted))]
