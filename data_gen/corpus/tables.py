"""Parquet files, and rows of Arrow tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from data_gen.corpus.documents import Raw
from data_gen.corpus.files import CorpusFile, missing_package, read_errors
from data_gen.errors.shared import optional
from ipt_jax.core import arrow_rows
from ipt_jax.core.errors import UserError, did_you_mean

_MOST_ROWS = 1024
_BATCH_BYTES = 32 << 20  # of decoded columns: a batch of long documents is a small one


def read_parquet(file: CorpusFile, asked: Sequence[str]) -> Iterator[Raw]:
    """The rows of a parquet file. Raises UserError where it has no column for the text.

    `asked` are the columns of the text and of the id.
    """
    parquet = optional("pyarrow.parquet", missing_package(file.path, "pyarrow"))
    with read_errors(file), parquet.ParquetFile(_place(file)) as opened:
        check_column(file, asked[0], opened.schema_arrow.names)
        details = opened.metadata
        groups = [details.row_group(number) for number in range(details.num_row_groups)]
        widest = max(
            (group.total_byte_size // max(group.num_rows, 1) for group in groups), default=1
        )
        rows = min(_MOST_ROWS, max(1, _BATCH_BYTES // max(widest, 1)))
        yield from raw_rows(opened.iter_batches(batch_size=rows), file.label, asked)


def _place(file: CorpusFile) -> Any:
    return file.path if file.filesystem is None else file.open()


def check_column(file: CorpusFile, text_field: str, names: Iterable[str]) -> None:
    """Raises UserError where a table has no column `text_field`, if there is to be one."""
    names = list(names)
    if text_field and text_field not in names:
        raise UserError(
            f"{file.path} has no column `{text_field}`: set `text_field`. "
            f"{did_you_mean(text_field, names)}",
            key="text_field",
            path=file.path,
        )


def raw_rows(batches: Iterable[Any], label: str, asked: Sequence[str]) -> Iterator[Raw]:
    """The rows of Arrow batches or tables, counted from 1; one that cannot be read in a column
    of `asked` is rejected."""
    row = 0
    for batch in batches:
        for fields in arrow_rows.rows_of(batch, asked):
            row += 1
            if isinstance(fields, dict):
                yield Raw(f"{label}:{row}", fields)
            else:
                yield Raw(f"{label}:{row}", None, "undecodable", fields)
