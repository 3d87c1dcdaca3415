"""Records to examples: ids with BOS and EOS, and the weight of each token as a target."""

from collections.abc import Sequence

import numpy as np

from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record
from ipt_jax.core.tokenizers import Tokenizer, begins
from ipt_jax.data.packing import Tokenised
from ipt_jax.data.sources import Source
from ipt_jax.data.tasks import Task
from ipt_jax.data.token_shards import TokenSource


def extra_tokens(task: Task) -> int:
    """BOS and EOS of each example: what is not in the length index."""
    return int(task.adds_bos) + int(task.eos)


def read_examples(
    source: Source, task: Task, tokenizer: Tokenizer, indices: Sequence[int]
) -> list[Tokenised]:
    """Examples of the records at ``indices``: taken from token shards, else tokenised now.

    Raises UserError naming the shard or record that cannot be read or has no loss weights where
    the task asks for them.
    """
    if isinstance(source, TokenSource):
        return source.examples(indices)
    return tokenise(source, source.read(indices), indices, task, tokenizer)


def tokenise(
    source: Source,
    records: Sequence[Record],
    indices: Sequence[int],
    task: Task,
    tokenizer: Tokenizer,
) -> list[Tokenised]:
    """Examples of records that were read from ``indices`` of a source."""
    if task.encode == "parts":
        return [
            _by_parts(task, tokenizer, record, source.where(index))
            for record, index in zip(records, indices, strict=True)
        ]
    ids = tokenizer.encode_arrays([record.text for record in records], task.adds_bos, task.eos)
    if task.loss == "all":
        return [Tokenised(array, None) for array in ids]
    return [
        Tokenised(array, _loss(task, tokenizer, record, source.where(index)))
        for array, record, index in zip(ids, records, indices, strict=True)
    ]


def _by_parts(task: Task, tokenizer: Tokenizer, record: Record, where: str) -> Tokenised:
    parts, weights = _parts(task, record, where)
    ids, owners = tokenizer.encode_parts(parts, weights.tolist())
    ends = tokenizer.encode_arrays([""], task.adds_bos, task.eos)[0]
    head, tail = np.split(ends.astype(np.int32), [int(task.adds_bos)])
    tokens = np.concatenate([head, ids, tail])
    if task.loss == "all":
        return Tokenised(tokens, None)
    of_ends = np.zeros(len(head), np.float32), np.repeat(weights[-1:], len(tail))
    return Tokenised(tokens, np.concatenate([of_ends[0], weights[owners], of_ends[1]]))


def _parts(task: Task, record: Record, where: str) -> tuple[tuple[str, ...], np.ndarray]:
    if record.parts is None or record.loss is None:
        asked = "encode: parts" if task.encode == "parts" else "loss: responses"
        instead = "encode: text" if task.encode == "parts" else "loss: all"
        raise UserError(
            f"{where} (id {record.id!r}) has no `parts`, but the task {task.name!r} has "
            f"`{asked}`: write parts and loss into its records, or use `{instead}`."
        )
    return record.parts, np.asarray(record.loss or (0.0,), np.float32)


def _loss(task: Task, tokenizer: Tokenizer, record: Record, where: str) -> np.ndarray:
    """Weight of each token: the greatest of its characters'; EOS has the last part's."""
    parts, weights = _parts(task, record, where)
    loss, ends = weights[:0], tokenizer.ends(record.text)
    if len(ends):
        of_characters = np.repeat(weights, [len(part) for part in parts])
        loss = np.maximum.reduceat(of_characters, begins(ends))
    head, tail = np.zeros(int(task.adds_bos), np.float32), weights[-1:][: int(task.eos)]
    return np.concatenate([head, loss, tail])
