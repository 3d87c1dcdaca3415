"""Records that lie inside JSON documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from data_gen.corpus.dataset_files import (
    MALFORMED,
    UNREADABLE,
    DataFile,
    Files,
    Located,
    Records,
    by_file,
    unreadable,
)

Split = Callable[[Any], Iterable[tuple[str, Any]]]
"""Gives the records of a document, each with what its place adds to the file's name."""


def nested(split: Split) -> Records:
    """Reads the records that `split` finds in each file, a JSON document; of a table or JSON lines,
    as copies on the hub are, its rows."""

    def read(files: Files, file: DataFile) -> Iterator[Located]:
        return file.rows() if file.name.endswith((".parquet", ".jsonl")) else pieces(file, split)

    return by_file(read)


def pieces(file: DataFile, split: Split) -> Iterator[Located]:
    """The records that `split` finds; a file that it cannot split is one unreadable record."""
    try:
        document = file.json()
    except UNREADABLE as error:
        yield unreadable(file, error)
        return
    try:
        found = list(split(document))
    except (*UNREADABLE, *MALFORMED) as error:
        problem = f"is not laid out as this set: {type(error).__name__}: {error}"
        yield Located(file.name, error=problem)
        return
    yield from (Located(file.name + place, record) for place, record in found)


def laid_out(file: DataFile, split: Split) -> Iterator[Located]:
    """As `pieces`; a file that is no JSON at all is told in the same words."""
    try:
        found = list(split(file.json()))
    except (*UNREADABLE, *MALFORMED) as error:
        yield Located(file.name, error=f"is not laid out as this set: {error!r}")
        return
    yield from (Located(file.name + place, record) for place, record in found)


def listed(document: Any) -> Iterator[tuple[str, Any]]:
    """The records of a list, or of one that stands under `data`."""
    records = document["data"] if isinstance(document, dict) else document
    return ((f":{number}", record) for number, record in enumerate(records))


def entries(document: Any) -> Iterator[tuple[str, Any]]:
    """The values of a JSON object by their keys."""
    return ((f":{key}", value) for key, value in document.items())


def whole(document: Any) -> Iterator[tuple[str, Any]]:
    """The document as one record."""
    yield "", document
