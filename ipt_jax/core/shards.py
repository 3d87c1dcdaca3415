"""The bytes in ArrayRecord files at random access."""

import bisect
import contextlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from ipt_jax.core.errors import DamagedRecord, UserError
from ipt_jax.core.files import read_parts

_OPEN_READERS = 64  # file handles held by one reader; a big corpus has thousands of shards


def count_records(path: Path) -> int | None:
    """Records in an ArrayRecord file; None where the file is none."""
    reader = ArrayRecordReader(str(path))  # on something that is no ArrayRecord it does not raise
    try:
        return reader.num_records() if reader.ok() else None
    finally:
        with contextlib.suppress(RuntimeError):  # what ails the file is told by the None
            reader.close()


class Reopened:
    """Pickled without what `_reset` makes, since another process makes its own."""

    _own: tuple[str, ...]
    """Names of those attributes."""

    def _reset(self) -> None:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in self._own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()


class ShardReader(Reopened):
    """Records of ArrayRecord files, one file after another; picklable, threads may share it."""

    _own = ("_readers", "_lock")

    def __init__(self, paths: Sequence[Path], counts: Sequence[int]) -> None:
        self.paths, self._counts = tuple(paths), tuple(counts)
        self._starts = np.cumsum([0, *counts], dtype=np.int64)
        self._borders: list[int] = self._starts.tolist()  # bisect is quicker for one index
        self._reset()

    def _reset(self) -> None:
        self._readers: OrderedDict[int, ArrayRecordReader] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._borders[-1]

    def place(self, index: int) -> tuple[Path, int]:
        """File and number in it of a record."""
        shard = bisect.bisect_right(self._borders, index) - 1
        return self.paths[shard], index - self._borders[shard]

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """The records at ``indices``, in that order, one batched read for each file touched.

        Raises IndexError outside 0..len-1 and DamagedRecord naming the file that cannot be read.
        """
        return read_parts(self._starts, indices, self._read_shard)

    def _read_shard(self, shard: int, local: list[int]) -> list[bytes]:
        try:
            with self._lock:  # one read at a time: a reader is closed when it is the oldest
                return self._reader(shard).read(local)
        except (RuntimeError, IndexError, ValueError) as error:
            if not self.paths[shard].is_file():
                raise UserError(
                    f"shard {self.paths[shard]} is missing though it was there",
                    path=self.paths[shard],
                    advice="copy it back or write the shards again",
                ) from error
            raise DamagedRecord(
                f"shard {self.paths[shard]} cannot be read ({error}): it is damaged",
                path=self.paths[shard],
                advice="copy it again or write the shards again",
            ) from error

    def _reader(self, shard: int) -> ArrayRecordReader:
        if shard in self._readers:
            self._readers.move_to_end(shard)
            return self._readers[shard]
        reader = ArrayRecordReader(str(self.paths[shard]))
        # A reader on something that is no ArrayRecord does not raise.
        if not reader.ok() or reader.num_records() != self._counts[shard]:
            raise RuntimeError(
                f"it is no ArrayRecord file with the {self._counts[shard]} records it had or the "
                "manifest lists"
            )
        self._readers[shard] = reader
        if len(self._readers) > _OPEN_READERS:
            self._readers.popitem(last=False)[1].close()
        return reader
