"""Records that lie inside JSON documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from data_gen.instruction_pretrain.collection.base import MALFORMED
from data_gen.instruction_pretrain.collection.files import DataFile, Files, Located

Split = Callable[[Any], Iterable[tuple[object, Any]]]
"""Gives the records of a document, each with its place in it; None for the whole of it."""


def each(files: Files, split: Split) -> Iterator[Located]:
    """The records of the chosen files, each file a JSON document."""
    for file in files.chosen():
        yield from pieces(file, split)


def each_or_row(files: Files, split: Split) -> Iterator[Located]:
    """The same, but the rows of files that are tables or JSON lines, as copies on the hub are."""
    for file in files.chosen():
        tabular = file.name.endswith((".parquet", ".jsonl"))
        yield from file.rows() if tabular else pieces(file, split)


def pieces(file: DataFile, split: Split) -> Iterator[Located]:
    """The records that `split` finds; a file that it cannot split is one unreadable record."""
    try:
        document = file.json()
    except (OSError, EOFError, ValueError) as error:
        yield Located(file.name, error=f"cannot be read: {error}")
        return
    try:
        found = list(split(document))
    except MALFORMED as error:
        problem = f"is not laid out as this set: {type(error).__name__}: {error}"
        yield Located(file.name, error=problem)
        return
    for place, record in found:
        yield Located(file.name if place is None else f"{file.name}:{place}", record)


def entries(document: Any) -> Iterator[tuple[object, Any]]:
    """The values of a JSON object by their keys."""
    yield from document.items()


def whole(document: Any) -> Iterator[tuple[object, Any]]:
    """The document as one record."""
    yield None, document
