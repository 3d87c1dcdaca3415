"""Parquet files at random access, a row group at a time."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ipt_jax.core.arrow_rows import rows_of
from ipt_jax.core.errors import DamagedRecord, UserError, did_you_mean
from ipt_jax.core.files import read_parts
from ipt_jax.core.shards import Reopened
from ipt_jax.data.formats.files import FileRows, content_sha256, fingerprint_of, whole

# Decoded row groups kept. A global shuffle touches all of them: where they do not fit, each row
# costs the decoding of its group, and the source should be tokenised beforehand.
_CACHE_BYTES = 512 << 20


class ParquetRows(Reopened, FileRows):
    """The rows of one or several files; picklable, threads may share it.

    ``columns`` limits what is decoded; None for all. A value that Python cannot hold makes the row
    damaged in the columns ``asked``, the first of which is the text's, and is given as text in
    others. Raises UserError naming the file that is no parquet or lacks the text's column.
    """

    unit, _own = "row", ("_tables", "_lock")

    def __init__(
        self,
        files: Sequence[Path],
        folder: Path,
        verify: bool,
        asked: Sequence[str],
        columns: set[str] | None,
    ) -> None:
        self._files, self._asked = tuple(files), tuple(asked)
        self._groups: list[tuple[int, int, int]] = []  # file, group in it, its first row in it
        self._columns: list[list[str] | None] = []
        counts = []
        for number, path in enumerate(files):
            with _open(path) as file:
                names = file.schema_arrow.names
                if columns is not None and asked[0] not in names:
                    raise UserError(
                        f"{path} has no column `{asked[0]}`: set `text_key`. "
                        f"{did_you_mean(asked[0], names)}",
                        key="text_key",
                        path=path,
                    )
                kept = None if columns is None else [name for name in names if name in columns]
                self._columns.append(kept)
                first = 0
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    self._groups.append((number, group, first))
                    counts.append(rows)
                    first += rows
        self._starts = np.cumsum([0, *counts], dtype=np.int64)
        self.fingerprint = fingerprint_of([content_sha256(p, folder, verify) for p in files])
        self._reset()

    def _reset(self) -> None:
        self._tables: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def place(self, index: int) -> tuple[Path, int]:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        file, _, first = self._groups[group]
        return self._files[file], first + index - int(self._starts[group]) + 1

    def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The rows. Raises UserError naming the file and row group that cannot be read."""
        rows = read_parts(self._starts, indices, self._rows)
        return [whole(row, self.where, int(i)) for i, row in zip(indices, rows, strict=True)]

    def _rows(self, group: int, local: list[int]) -> list[dict[str, Any] | str]:
        import pyarrow

        file, number, _ = self._groups[group]
        try:
            return rows_of(self._table(group).take(local), self._asked)
        except (pyarrow.ArrowException, OSError) as error:
            raise DamagedRecord(
                f"row group {number} of {self._files[file]} cannot be read "
                f"({' '.join(str(error).split())[:200]}): it is damaged",
                path=self._files[file],
                advice="copy the file again",
            ) from error

    def _table(self, group: int) -> Any:
        with self._lock:
            if group not in self._tables:
                file, number, _ = self._groups[group]
                with _open(self._files[file]) as opened:
                    table = opened.read_row_group(number, columns=self._columns[file])
                self._tables[group] = table
                while len(self._tables) > 1 and self._bytes() > _CACHE_BYTES:
                    self._tables.popitem(last=False)
            self._tables.move_to_end(group)
            return self._tables[group]

    def _bytes(self) -> int:
        return sum(table.nbytes for table in self._tables.values())


def _open(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{path} is read with pyarrow, which is not installed",
            path=path,
            advice="`pip install 'ipt-jax[sources]'`",
        ) from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path} cannot be read as parquet ({' '.join(str(error).split())[:200]}): it is "
            "damaged or not what its ending says",
            path=path,
            advice="copy it again, or take it out of the source",
        ) from error
