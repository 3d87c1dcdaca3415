"""What was left out, and why: a line in `rejected/`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import NamedTuple, Self


class Reason(NamedTuple):
    """Why something is left out."""

    reason: str
    """A word for counts."""
    detail: str
    """For a person: the measured value, the record it repeats, the text that matched."""


@dataclass(frozen=True)
class Rejection:
    """A document, record or piece of a generation that was not used."""

    id: str
    """Of the document or record, as far as it is known; else its place."""
    where: str
    """File and line, row or record; or unit and turn."""
    reason: str
    """A word for counts."""
    detail: str
    """For a person."""

    @classmethod
    def at(cls, where: str, reason: str, detail: str) -> Self:
        """Of what has no id but its place."""
        return cls(where, where, reason, detail)

    def line(self) -> bytes:
        """Its line in rejected/."""
        text = json.dumps(asdict(self), ensure_ascii=False)
        return f"{text}\n".encode(errors="backslashreplace")
