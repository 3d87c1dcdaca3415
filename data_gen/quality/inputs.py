"""Record shards as the gates read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ipt_jax.core.errors import DamagedRecord, UserError
from ipt_jax.core.records import Record, RecordSource


class InputShards:
    """The records of several folders, one after another, with those that cannot be read."""

    def __init__(self, folders: Sequence[str]) -> None:
        if not folders:
            raise UserError(
                "no input is given: name folders of record shards in `input`.", key="input"
            )
        self._sources = [RecordSource(folder, False, skip_damaged=True) for folder in folders]
        self._starts = np.cumsum([0, *map(len, self._sources)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def fingerprints(self) -> list[str]:
        """Of each folder: the same for the same records."""
        return [source.fingerprint for source in self._sources]

    def _place(self, number: int) -> tuple[RecordSource, int]:
        source = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._sources[source], int(number - self._starts[source])

    def where(self, number: int) -> str:
        source, own = self._place(number)
        return source.where(own)

    def read(self, numbers: Sequence[int]) -> list[Record]:
        """Records by ascending numbers. Raises DamagedRecord where one cannot be read."""
        found: list[Record] = []
        wanted = np.asarray(numbers, np.int64)
        borders = np.searchsorted(wanted, self._starts)
        for source, start, first, last in zip(
            self._sources, self._starts, borders, borders[1:], strict=False
        ):
            if last > first:
                found += source.read((wanted[first:last] - start).tolist())
        return found

    def read_good(self, numbers: Sequence[int]) -> Iterator[tuple[int, Record | DamagedRecord]]:
        """Each number with its record, or with what is wrong with it."""
        try:
            yield from zip(numbers, self.read(numbers), strict=True)
            return
        except DamagedRecord:
            pass  # found out below which of them it is
        for number in numbers:
            try:
                yield number, self.read([number])[0]
            except DamagedRecord as error:
                yield number, error


class FilteredRecords:
    """The records that reached a gate."""

    def __init__(self, corpus: InputShards, numbers: np.ndarray) -> None:
        self._corpus, self._numbers = corpus, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def read(self, numbers: Sequence[int]) -> list[Record]:
        return self._corpus.read(self._numbers[np.asarray(numbers, np.int64)].tolist())
