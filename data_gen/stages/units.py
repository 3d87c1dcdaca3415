"""Records as units of work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, overload

from ipt_jax.core.records import Record

_READ_AHEAD = 256  # records


class Records(Protocol):
    """Records at random access: a RecordSource, or some of its records."""

    def __len__(self) -> int: ...

    def read(self, numbers: Sequence[int], /) -> list[Record]:
        """The records with these numbers, in that order."""
        ...


class RecordUnits(Sequence[Record]):
    """The records of a source one after another, read many at a time."""

    def __init__(self, source: Records) -> None:
        self._source = source
        self._first, self._window = 0, list[Record]()

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return self._source.read(range(*index.indices(len(self))))
        if not self._first <= index < self._first + len(self._window):
            self._first = index - index % _READ_AHEAD
            last = min(self._first + _READ_AHEAD, len(self))
            self._window = self._source.read(range(self._first, last))
        return self._window[index - self._first]
