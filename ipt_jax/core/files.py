"""State files: replaced whole or not at all, appended to line by line, named when a write fails."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path


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
