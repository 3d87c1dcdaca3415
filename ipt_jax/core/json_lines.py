"""Lines and JSON out of files that nobody vouches for, with bounds on their size and depth."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ipt_jax.core.errors import UserError

MAX_LINE_BYTES = 64 << 20
"""Longest line that is read, its break not counted; a compressed one of a few MB can hold GBs."""
MAX_DEPTH = 200
"""Most objects and lists within each other. Python reads about 1,500 and then fails to write what
it read, or to read it where more calls stand above."""
_SKIPPED_BYTES = 1 << 20


class TooDeep(json.JSONDecodeError):
    """Objects and lists lie more than MAX_DEPTH deep in each other."""

    def __init__(self) -> None:
        super().__init__("objects and lists lie too deep in each other", "", 0)

    def __str__(self) -> str:
        return f"objects and lists lie more than {MAX_DEPTH} deep in each other"


def read_lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """The lines of a file, with their breaks; None for one longer than MAX_LINE_BYTES, which is
    passed over without being held."""
    most = MAX_LINE_BYTES
    while line := file.readline(most + 1):
        if len(line) <= most or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_SKIPPED_BYTES)
        yield None


def too_long() -> str:
    """What is said of a line that is longer than MAX_LINE_BYTES."""
    return f"it is longer than {MAX_LINE_BYTES:,} bytes"


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises what json.loads raises where it is none, or TooDeep."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise TooDeep from error
    # Nearly every text has too few brackets to be deep: counting them costs least.
    marks = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    brackets = sum(text.count(mark) for mark in marks)  # pyright: ignore[reportArgumentType]
    if brackets > MAX_DEPTH and _is_deep(value):
        raise TooDeep
    return value


def load_json(path: Path) -> Any:
    """The value of a JSON file. Raises OSError or, for all that may be wrong in it, ValueError."""
    return parse_json(path.read_bytes())


def read_object(path: Path, again: str, absent: str | None = None) -> dict[str, Any]:
    """The object in a JSON file; an empty one where the file is not there and `absent` is None.

    Raises UserError where the file is damaged or holds no object, with what to do `again`, and
    where it is not there, with what to do then.
    """
    try:
        found = load_json(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        if absent is None:
            return {}
        raise UserError(f"there is no {path}", path=path, advice=absent) from error
    except ValueError as error:
        raise UserError(f"not valid JSON ({error})", path=path, advice=again) from error
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise UserError(f"holds no JSON object but a {kind}", path=path, advice=again)
    return found


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
