"""Token shards: examples tokenised beforehand, ids and loss weights as they enter a row.

ArrayRecord files of ``tf.train.Example`` with the features ``id``, ``source``, ``tokens``
(int64, BOS and EOS included) and, where the task learns responses only, ``loss`` (float, one
weight for each token). Other trainers read ``tokens`` as they are.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from ipt_jax.core.errors import DamagedRecord, UserError
from ipt_jax.core.example_proto import example_class
from ipt_jax.core.manifest import MANIFEST_NAME, TOKENS_FORMAT, Manifest, check_shards
from ipt_jax.core.records import Record, RecordSource
from ipt_jax.core.tokenizers import Tokenizer
from ipt_jax.data.packing import Tokenised
from ipt_jax.data.tasks import Task

# One record a group: examples are read at random, and a group is decompressed whole.
OPTIONS = "group_size:1,snappy"


def token_details(task: Task, tokenizer: Tokenizer, source_fingerprint: str) -> dict[str, Any]:
    """What token shards of a task are made from and how: `details` of their manifest.

    `source_fingerprint` is of the source's records after preprocessing.
    """
    return {
        "task": task.name,
        "source": task.source,
        "source_fingerprint": source_fingerprint,
        "tokenizer": tokenizer.name,
        "tokenizer_sha256": tokenizer.sha256,  # decides whether ids mean the same
        "vocab_size": tokenizer.vocab_size,
        "bos": task.adds_bos,
        "eos": task.eos,
        "loss": task.loss,
        "encode": task.encode,
        # A config beside the vocabulary may change them while that stays.
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
    }


def serialize_example(example: Tokenised, *, id: str, source: str) -> bytes:
    """Wire bytes of the ``tf.train.Example``; the same example gives the same bytes."""
    proto: Any = example_class()()
    features = proto.features.feature
    features["id"].bytes_list.value.append(id.encode())
    features["source"].bytes_list.value.append(source.encode())
    features["tokens"].int64_list.value.extend(example.tokens.tolist())
    if example.loss is not None:
        features["loss"].float_list.value.extend(example.loss.tolist())
    return proto.SerializeToString(deterministic=True)


def serialize_damaged(why: str) -> bytes:
    """What stands in the place of a record that could not be read, so that places stay."""
    proto: Any = example_class()()
    proto.features.feature["damaged"].bytes_list.value.append(why.encode(errors="replace"))
    return proto.SerializeToString(deterministic=True)


class TokenSource(RecordSource):
    """The examples of a folder of token shards at random access; picklable, threads may share it.

    Raises UserError naming the shard that is missing, cut short or changed, and the key of the
    task that does not fit how the shards were made.
    """

    def __init__(
        self, task: Task, tokenizer: Tokenizer, verify: bool = True, skip_damaged: bool = False
    ) -> None:
        self.folder = Path(task.source)
        self.manifest = Manifest.load(self.folder, TOKENS_FORMAT)
        self._tokenizer, self._extra = tokenizer, int(task.adds_bos) + int(task.eos)
        self._responses = task.loss == "responses"
        _check_task(task, tokenizer, self.manifest)
        check_shards(self.manifest, verify, skip_damaged)
        self._shards = self.manifest.reader()

    def examples(self, indices: Sequence[int]) -> list[Tokenised]:
        """The examples at ``indices``, in that order. Raises UserError naming what is damaged."""
        found = []
        for index, features in self._features(indices):
            tokens = np.asarray(features["tokens"].int64_list.value, np.int32)
            loss = None
            if self._responses:
                loss = np.asarray(features["loss"].float_list.value, np.float32)
                if len(loss) != len(tokens):
                    raise self._damaged(index, f"{len(loss)} loss weights, {len(tokens)} tokens")
            found.append(Tokenised(tokens, loss))
        return found

    def token_counts(self, indices: Sequence[int]) -> list[int]:
        """Tokens of each example without BOS and EOS."""
        features = self._features(indices)
        return [len(f["tokens"].int64_list.value) - self._extra for _, f in features]

    def read(self, indices: Sequence[int]) -> list[Record]:
        """The examples as records: their text is what the ids decode to."""
        records = []
        for index, features in self._features(indices):
            try:
                id, source = (
                    features[key].bytes_list.value[0].decode() for key in ("id", "source")
                )
            except (IndexError, UnicodeDecodeError) as error:
                raise self._damaged(index, str(error)) from error
            text = self._tokenizer.decode(features["tokens"].int64_list.value)
            records.append(Record(id, text, source))
        return records

    def _features(self, indices: Sequence[int]) -> list[tuple[int, Mapping[str, Any]]]:
        found = []
        for index, data in zip(indices, self._shards.read(indices), strict=True):
            example: Any = example_class()()
            try:
                example.ParseFromString(data)
            except DecodeError as error:
                raise self._damaged(int(index), str(error)) from error
            features = example.features.feature
            if "damaged" in features:
                why = features["damaged"].bytes_list.value[0].decode(errors="replace")
                raise self._damaged(int(index), f"its record was damaged: {why}")
            if "tokens" not in features:
                raise self._damaged(int(index), "it has no feature 'tokens'")
            found.append((int(index), features))
        return found

    def _damaged(self, index: int, why: str) -> DamagedRecord:
        return DamagedRecord(
            f"{self.where(index)} is no example of token shards ({why})",
            record=self.where(index),
            advice="tokenise the source again",
        )


def _check_task(task: Task, tokenizer: Tokenizer, manifest: Manifest) -> None:
    made, where = manifest.details, manifest.folder / MANIFEST_NAME
    if made.get("tokenizer_sha256") != tokenizer.sha256:
        theirs = f"those of {made.get('tokenizer')!r} with another vocabulary"
        advice = "name that one, or tokenise the source again"
        raise task.refused("tokenizer", f"{where} says that the tokens are {theirs}", advice, where)
    for key in ("bos_id", "eos_id"):
        if made.get(key, getattr(tokenizer, key)) != getattr(tokenizer, key):
            raise UserError(
                f"the examples were made with `{key}: {made[key]}`, but the tokenizer "
                f"{tokenizer.name!r} now has {getattr(tokenizer, key)}",
                path=where,
                advice="tokenise the source again",
            )
    said = f"{where} says that the examples "
    for key, asked in (("bos", task.adds_bos), ("eos", task.eos), ("encode", task.encode)):
        if made.get(key) != asked:
            made_with = f"{said}were made with `{key}: {made.get(key)}`"
            raise task.refused(key, made_with, "set the same, or tokenise the source again", where)
    if task.loss == "responses" and made.get("loss") != "responses":
        advice = "tokenise the source again with `loss: responses`, or use `loss: all`"
        raise task.refused("loss", f"{said}have no loss weights", advice, where)
    if task.preprocessors:
        advice = "name them where the source is tokenised, and leave them out here"
        raise task.refused("preprocessors", f"{where} lists token shards", advice, where)
