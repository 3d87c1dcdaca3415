"""ArrayRecord files: our record shards, and files of `tf.train.Example` as TFDS writes them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.message import DecodeError

from data_gen.corpus.documents import Raw
from data_gen.corpus.files import CorpusFile, read_errors
from data_gen.errors.shared import input_error
from ipt_jax.core.errors import UserError
from ipt_jax.core.example_proto import features_of
from ipt_jax.core.records import MANIFEST_NAME, Manifest, RecordSource

_BATCH = 256


def read_records(file: CorpusFile) -> Iterator[Raw]:
    """The records of a folder of shards. Raises UserError naming a shard that is not as listed."""
    if file.filesystem is None:
        yield from _records_of(RecordSource(file.path), file.label)
        return
    with read_errors(file), tempfile.TemporaryDirectory(prefix="ipt-jax-shards-") as folder:
        # Shards are read at random access: one at a time lies here.
        here, there = Path(folder), file.key.rstrip("/")
        file.filesystem.get_file(f"{there}/{MANIFEST_NAME}", str(here / MANIFEST_NAME))
        for shard in Manifest.load(here).shards:
            file.filesystem.get_file(f"{there}/{shard.name}", str(here / shard.name))
            Manifest(here, (shard,)).write(here)
            try:
                yield from _records_of(RecordSource(here), f"{file.label}/{shard.name}")
            except UserError as error:
                raise input_error(
                    f"{file.path}, copied to be read: {error}", path=file.path, record=error.record
                ) from error
            os.unlink(here / shard.name)


def _records_of(source: RecordSource, label: str) -> Iterator[Raw]:
    for start in range(0, len(source), _BATCH):
        records = source.read(range(start, min(start + _BATCH, len(source))))
        for number, record in enumerate(records, start):
            fields: dict[str, Any] = {"id": record.id, "text": record.text}
            fields |= {"source": record.source, "provenance": dict(record.provenance)}
            yield Raw(f"{label}:{number}", fields, own=True)


def read_examples(file: CorpusFile) -> Iterator[Raw]:
    """The features of each example of one file; one that holds a single value gives that value.

    Raises UserError where the file is no ArrayRecord file. What lies in a damaged chunk is
    rejected record by record.
    """
    with read_errors(file), _on_this_machine(file) as path:
        reader = ArrayRecordReader(path)  # on something that is no ArrayRecord it does not raise
        try:
            if not reader.ok():
                raise input_error(
                    f"{file.path} is no ArrayRecord file: it is damaged, cut short or something "
                    "else. Replace it or take it out of `input`.",
                    path=file.path,
                )
            count = reader.num_records()
            for start in range(0, count, _BATCH):
                numbers = list(range(start, min(start + _BATCH, count)))
                for number, data in zip(numbers, _read(reader, numbers), strict=True):
                    yield _example(data, f"{file.label}:{number}")
        finally:
            with contextlib.suppress(RuntimeError):  # the read itself has told what ails it
                reader.close()


@contextlib.contextmanager
def _on_this_machine(file: CorpusFile) -> Iterator[str]:
    if file.filesystem is None:
        yield file.path
        return
    with tempfile.TemporaryDirectory(prefix="ipt-jax-examples-") as folder:
        path = f"{folder}/file"
        file.filesystem.get_file(file.key, path)
        yield path


def _read(reader: Any, numbers: list[int]) -> list[bytes | str]:
    try:
        return reader.read(numbers)
    except (RuntimeError, IndexError, ValueError):
        return [_read_one(reader, number) for number in numbers]


def _read_one(reader: Any, number: int) -> bytes | str:
    try:
        return reader.read([number])[0]
    except (RuntimeError, IndexError, ValueError) as error:
        return " ".join(str(error).split())[:200]


def _example(data: bytes | str, place: str) -> Raw:
    if isinstance(data, str):
        return Raw(place, None, "damaged", data)
    try:
        return Raw(place, features_of(data))
    except DecodeError as error:
        return Raw(place, None, "damaged", f"no tf.train.Example ({error})")
