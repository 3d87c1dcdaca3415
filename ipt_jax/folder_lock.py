"""One run at a time in a folder."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from ipt_jax.errors import UserError


@contextlib.contextmanager
def folder_lock(folder: Path, name: str = "run.lock") -> Iterator[None]:
    """Hold the folder, made where it is missing; the lock ends with the process, however it ends.

    Raises UserError where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another run is writing to {folder}: wait for its end or choose another folder."
            ) from error
        yield
