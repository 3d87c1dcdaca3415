"""Records to examples: ids with BOS and EOS, each one's weight as a target, and how many there are.

Lengths are counted once and kept beside the manifest.
"""

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from ipt_jax.core.errors import DamagedRecord, UserError
from ipt_jax.core.manifest import atomic_write
from ipt_jax.core.records import Record
from ipt_jax.core.tokenizers import Tokenizer, begins
from ipt_jax.data.packing import Tokenised
from ipt_jax.data.sources import Source, read_records
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
            f"{where} (id {record.id!r}) has no `parts`, but the task {task.name!r} has `{asked}`",
            record=record.id,
            advice=f"write parts and loss into its records, or use `{instead}`",
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


_LOG = logging.getLogger(__name__)
_CHUNK = 1024  # records tokenised at once
_VERSION = "1"


class Lengths:
    """Tokens of every record without BOS and EOS; picklable, memory-mapped where it is used."""

    def __init__(self, path: Path, records: int) -> None:
        self.path, self.records = path, records

    @functools.cached_property
    def array(self) -> np.ndarray:
        """int32 [records], -1 for a damaged one that is left out.

        Raises ValueError or OSError where the file is no such array.
        """
        array = np.load(self.path, mmap_mode="r" if self.records else None, allow_pickle=False)
        if array.shape != (self.records,) or array.dtype != np.int32:
            raise ValueError(f"{self.path} holds {array.dtype} {array.shape}")
        return array

    @functools.cached_property
    def damaged(self) -> np.ndarray:
        """int64, the records that are left out because they could not be read."""
        return np.flatnonzero(self.array < 0)

    @property
    def identity(self) -> str:
        """The same for the same lengths."""
        return f"{self.path.name} {hashlib.sha256(self.damaged.tobytes()).hexdigest()}"

    def tokens(self, extra: int) -> int:
        """Of all records, with ``extra`` (BOS and EOS) for each that is not damaged."""
        damaged = len(self.damaged)
        total = int(self.array.sum(dtype=np.int64)) + damaged  # each of them is in it as -1
        return total + extra * (self.records - damaged)

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "records": self.records}


def lengths_name(fingerprint: str, tokenizer: Tokenizer, encode: str = "text") -> str:
    """File name of the index of those records under that tokenizer, encoded as the task says."""
    key = f"{_VERSION} {fingerprint} {tokenizer.sha256}"
    if encode != "text":  # parts that are BOS or EOS as its config writes them are one token
        key += f" {encode} {tokenizer.bos_token} {tokenizer.eos_token}"
    return f"lengths-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"


def write_lengths(path: Path, counts: np.ndarray) -> None:
    """Write an index, whole or not at all. Raises UserError naming it where it cannot be."""
    out = BytesIO()
    np.save(out, counts, allow_pickle=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, out.getvalue())
    except OSError as error:
        raise UserError(
            f"the length index {path} cannot be written ({error.strerror}): it is kept beside the "
            "shards",
            path=path,
            advice="free disk space, or copy the shards to a folder you may write to",
        ) from error


def _count(source: Source, tokenizer: Tokenizer, encode: str, indices: Sequence[int]) -> list[int]:
    if isinstance(source, TokenSource):
        return source.token_counts(indices)
    records = source.read(indices)
    if encode == "parts":  # a record without parts is refused by name where it is tokenised
        return [
            len(tokenizer.encode_parts(record.parts or (record.text,), record.loss or (0.0,))[0])
            for record in records
        ]
    return [len(ids) for ids in tokenizer.encode_arrays([record.text for record in records])]


def index_lengths(
    source: Source,
    tokenizer: Tokenizer,
    progress: Callable[[int, int], None] = lambda done, total: None,
    skip_damaged: bool = False,
    encode: str = "text",
) -> Lengths:
    """The lengths of a source under a tokenizer, read from beside its manifest or counted now.

    The file's name holds the shards' checksums, the tokenizer's and the task's `encode`, so that
    an index of other records or another vocabulary is never taken. ``progress`` is called with
    records done and in all. With ``skip_damaged`` a record that cannot be read is counted as -1,
    in a file of another name, which only those take who skip too; and they go on taking it, so
    that their rows stay as they are when the record is mended. Raises UserError where the index
    cannot be written, and without ``skip_damaged`` for a damaged record.
    """
    if isinstance(source, TokenSource):
        encode = "text"  # what is to be counted is encoded already
    whole = source.folder / lengths_name(source.fingerprint, tokenizer, encode)
    partial = whole.with_name(f"{whole.stem}-damaged.npy")
    for path in (partial, whole) if skip_damaged else (whole,):
        lengths = Lengths(path, len(source))
        if path.exists():
            try:
                if lengths.records == len(lengths.array):
                    return lengths
            except (ValueError, OSError, EOFError) as error:
                _LOG.warning("the length index %s is damaged (%s): counting again", path, error)
    count = functools.partial(_count, source, tokenizer, encode)
    counts = np.zeros(len(source), np.int32)
    for start in range(0, len(source), _CHUNK):
        stop = min(start + _CHUNK, len(source))
        found = read_records(count, source, range(start, stop), skip_damaged)
        counts[start:stop] = [-1 if isinstance(n, DamagedRecord) else n for n in found]
        progress(stop, len(source))
    path = partial if (counts < 0).any() else whole
    write_lengths(path, counts)
    return Lengths(path, len(source))
