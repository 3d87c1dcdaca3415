"""ArrayRecord files of ``tf.train.Example`` that are no shards of ours, as TFDS writes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from ipt_jax.core.errors import DamagedRecord, UserError
from ipt_jax.core.example_proto import features_of
from ipt_jax.core.shards import ShardReader, count_records
from ipt_jax.data.formats.files import FileRows, content_sha256, fingerprint_of


class ArrayRecordRows(FileRows):
    """The features of each example; one that holds a single value gives that value."""

    unit = "record"

    def __init__(self, files: Sequence[Path], folder: Path, verify: bool) -> None:
        counts = []
        for path in files:
            count = count_records(path)
            if count is None:
                raise UserError(
                    f"{path} is no ArrayRecord file: it is damaged or something else",
                    path=path,
                    advice="copy it again, or take it out of the source",
                )
            counts.append(count)
        self._shards = ShardReader(files, counts)
        self.fingerprint = fingerprint_of([content_sha256(p, folder, verify) for p in files])

    def __len__(self) -> int:
        return len(self._shards)

    def place(self, index: int) -> tuple[Path, int]:
        return self._shards.place(index)

    def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The features of each example. Raises UserError naming the one that is none."""
        read = zip(indices, self._shards.read(indices), strict=True)
        return [self._fields(int(index), data) for index, data in read]

    def _fields(self, index: int, data: bytes) -> dict[str, Any]:
        try:
            return features_of(data)
        except DecodeError as error:
            raise DamagedRecord(
                f"{self.where(index)} is no tf.train.Example ({error})",
                record=self.where(index),
                advice="mend or remove it",
            ) from error
