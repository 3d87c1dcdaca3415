"""How many tokens each record has: counted once, kept beside the manifest."""

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from ipt_jax.core.errors import DamagedRecord, UserError
from ipt_jax.core.manifest import atomic_write
from ipt_jax.core.tokenizers import Tokenizer
from ipt_jax.data.bad_records import read_records
from ipt_jax.data.sources import Source
from ipt_jax.data.token_shards import TokenSource

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
            "shards. Free disk space, or copy the shards to a folder you may write to."
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
