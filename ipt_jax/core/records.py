"""Records and their shards: ArrayRecord files of ``tf.train.Example`` with a manifest beside them.

The protos are written through a descriptor built here, so that TFDS, seqio and MaxText read the
shards as they are and we need no TensorFlow. This module imports neither jax nor torch.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from google.protobuf.message import DecodeError

from ipt_jax.core.errors import DamagedRecord, UserError, require
from ipt_jax.core.example_proto import example_class
from ipt_jax.core.files import sync_folder
from ipt_jax.core.json_lines import parse_json
from ipt_jax.core.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardInfo,
    atomic_write,
    check_shards,
    file_sha256,
)
from ipt_jax.core.shard_file import ShardFile, TokenCounter, shard_errors

__all__ = [
    "DEFAULT_OPTIONS",
    "MANIFEST_NAME",
    "SHARD_FILES",
    "Manifest",
    "Record",
    "RecordSource",
    "ShardInfo",
    "ShardWriter",
    "TokenCounter",
    "atomic_write",
    "file_sha256",
    "parse",
    "serialize",
    "shard_name",
]

# Groups of 16 under zstd:3 measured best for texts: a third smaller than single records, random
# batches still 40K records/s.
DEFAULT_OPTIONS = "group_size:16,zstd:3"


def shard_name(number: int) -> str:
    """File name of a shard; names sort as their numbers do."""
    return f"part-{number:05d}.arrayrecord"


# What a new set of shards replaces: shards and the indexes kept beside them.
_OURS = re.compile(r"part-\d{5,}\.arrayrecord|(lengths|rows)-[0-9a-f]+(-damaged)?\.npy")
SHARD_FILES = ("part-#.arrayrecord", MANIFEST_NAME, "lengths-*.npy", "rows-*.npy")
"""Names of what a folder of shards holds, for the marker of a run folder."""


@dataclass(frozen=True)
class Record:
    """One text of the corpus. Raises UserError where its parts or loss do not fit the text."""

    id: str
    """Unique in its corpus; errors name it."""
    text: str
    """The whole text, so that any other trainer can read the record."""
    source: str
    """Where it came from: a corpus or a method."""
    parts: tuple[str, ...] | None = None
    """Pieces that join to ``text``, given where loss differs within it."""
    loss: tuple[float, ...] | None = None
    """Loss weight of each part, same length as ``parts``."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Method, model, revision, prompt hash, seed: anything JSON can hold."""

    def __post_init__(self) -> None:
        parts, loss, wrong = self.parts, self.loss, None
        if parts is None and loss is None:
            return
        if parts is None or loss is None:
            wrong = "has only one of `parts` and `loss`", "give both or neither"
        elif len(parts) != len(loss):
            said = f"has {len(parts)} parts but {len(loss)} loss weights"
            wrong = said, "give one weight for each part"
        elif "".join(parts) != self.text:
            said = "has parts that do not join to its text"
            wrong = said, "every character of `text` must lie in exactly one part, in order"
        elif not all(math.isfinite(w) and w >= 0 for w in loss):
            said = f"has the loss weights {list(loss)}"
            wrong = said, "each must be a finite number that is not negative"
        if wrong is not None:
            said, advice = wrong
            raise UserError(f"record {self.id!r} {said}", record=self.id, advice=advice)


def serialize(record: Record) -> bytes:
    """Wire bytes of the record's ``tf.train.Example``; the same record gives the same bytes.

    Raises UserError, naming the record, where its text is not valid Unicode (a lone surrogate) or
    its provenance is not JSON.
    """
    example: Any = example_class()()
    features = example.features.feature
    try:
        features["id"].bytes_list.value.append(record.id.encode())
        features["text"].bytes_list.value.append(record.text.encode())
        features["source"].bytes_list.value.append(record.source.encode())
        if record.parts is not None and record.loss is not None:
            features["parts"].bytes_list.value.extend(part.encode() for part in record.parts)
            features["loss"].float_list.value.extend(record.loss)
        provenance = json.dumps(
            dict(record.provenance), ensure_ascii=False, sort_keys=True, allow_nan=False
        )
        features["provenance"].bytes_list.value.append(provenance.encode())
    except UnicodeEncodeError as error:
        raise UserError(
            f"record {record.id!r} holds text that is not valid Unicode ({error.reason} at "
            f"character {error.start})",
            record=record.id,
            advice="decode the document again or send it to rejected/",
        ) from error
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the provenance of record {record.id!r} is not JSON ({error})",
            record=record.id,
            advice="keep only strings, finite numbers, booleans, lists and mappings",
        ) from error
    return example.SerializeToString(deterministic=True)


def parse(data: bytes, *, where: str) -> Record:
    """The record in ``data``. Raises UserError naming ``where`` (file and index) if it is none."""
    try:
        return _record(data)
    except _NO_RECORD as error:
        raise _damaged(where, error) from error


_NO_RECORD = (DecodeError, ValueError, UserError)


def _damaged(where: str, error: Exception) -> DamagedRecord:
    return DamagedRecord(
        f"{where} is not a record of this project ({error})",
        record=where,
        advice="write the shards again with ShardWriter, or take this one out of the manifest",
    )


def _record(data: bytes) -> Record:
    """``parse`` for a loader's inner loop: each feature is looked up once."""
    made: Any = example_class()
    features = dict(made.FromString(data).features.feature.items())

    def one(name: str) -> str:
        values = features[name].bytes_list.value if name in features else ()
        if len(values) != 1:
            raise ValueError(f"feature {name!r} must hold exactly one value")
        return values[0].decode()

    parts = loss = None
    if "parts" in features:
        parts = tuple([part.decode() for part in features["parts"].bytes_list.value])
    if "loss" in features:
        loss = tuple(features["loss"].float_list.value)
    provenance = parse_json(one("provenance")) if "provenance" in features else {}
    if not isinstance(provenance, dict):
        raise ValueError("feature 'provenance' is not a JSON mapping")
    return Record(one("id"), one("text"), one("source"), parts, loss, provenance)


class ShardWriter:
    """Writes records into ``folder/part-NNNNN.arrayrecord``, whole or not at all.

    Shards are temporary files until the ``with`` block ends without an exception; then they are
    synced, renamed, and the manifest comes last. Until then a set that lay in the folder stays as
    it was; afterwards it is replaced. Raises UserError, naming the shard, where the disk is full
    or may not be written.
    """

    def __init__(
        self,
        folder: str | Path,
        records_per_shard: int = 4096,
        options: str = DEFAULT_OPTIONS,
        tokenizer: TokenCounter | None = None,
    ) -> None:
        require("records_per_shard", records_per_shard, records_per_shard >= 1, "at least 1")
        self.folder = Path(folder)
        self.records_per_shard = records_per_shard
        self._options, self._tokenizer = options, tokenizer
        self._open: ShardFile | None = None
        self._finished: list[tuple[ShardFile, ShardInfo]] = []

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_temporary()  # left by a run that was killed
        return self

    def write(self, record: Record) -> None:
        """Append one record."""
        data = serialize(record)
        if self._open is None:
            path = self.folder / shard_name(len(self._finished))
            self._open = ShardFile(path, self._options, self._tokenizer)
        self._open.write(data, record.text)
        if self._open.records == self.records_per_shard:
            self._finish_shard()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish_shard()
                with shard_errors(self.folder / shard_name(len(self._finished))):
                    self._publish()
        finally:
            if self._open is not None:
                self._open.discard()
                self._open = None
            self._remove_temporary()

    def _finish_shard(self) -> None:
        if self._open is not None:
            self._finished.append((self._open, self._open.finish()))
            self._open = None

    def _publish(self) -> None:
        # Without a manifest no reader takes the folder for whole while files change places.
        (self.folder / MANIFEST_NAME).unlink(missing_ok=True)
        names = {info.name for _, info in self._finished}
        for old in self.folder.iterdir():
            if _OURS.fullmatch(old.name) and old.name not in names:
                old.unlink()
        for shard, _ in self._finished:
            shard.publish()
        sync_folder(self.folder)
        Manifest(self.folder, tuple(info for _, info in self._finished)).write(self.folder)

    def _remove_temporary(self) -> None:
        for path in self.folder.glob("part-*.arrayrecord.tmp"):
            if _OURS.fullmatch(path.stem):
                path.unlink(missing_ok=True)


class RecordSource:
    """The records of a folder of shards at random access; picklable, threads may share it.

    ``verify`` reads every shard once and compares its sha256; without it only existence and size
    are checked. Raises UserError naming the shard that is missing, cut short or changed; with
    ``skip_damaged`` only a missing one, and DamagedRecord where a record is read that is not whole.
    """

    def __init__(self, folder: str | Path, verify: bool = True, skip_damaged: bool = False) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.load(folder)
        check_shards(self.manifest, verify, skip_damaged)
        self._shards = self.manifest.reader()

    @property
    def fingerprint(self) -> str:
        """The same for the same records; what a length index names."""
        return self.manifest.fingerprint

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> Record:
        return self.read([index])[0]

    def where(self, index: int) -> str:
        """Shard and place of a record, for messages."""
        path, number = self._shards.place(index)
        return f"record {number} of {path}"

    def read(self, indices: Sequence[int]) -> list[Record]:
        """The records at ``indices``, in that order, one batched read for each shard touched.

        Raises IndexError outside 0..len-1 and DamagedRecord naming the shard that cannot be read
        or the record that does not parse.
        """
        found = []
        for index, data in zip(indices, self._shards.read(indices), strict=True):
            try:
                found.append(_record(data))
            except _NO_RECORD as error:
                raise _damaged(self.where(int(index)), error) from error
        return found
