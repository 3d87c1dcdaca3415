"""How many tokens each record has: counted once, kept beside the manifest."""

import functools
import hashlib
import logging
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np

from ipt_jax.errors import UserError
from ipt_jax.records import RecordSource, atomic_write
from ipt_jax.tokenizers import Tokenizer

_LOG = logging.getLogger(__name__)
_CHUNK = 1024  # records tokenised at once
_VERSION = "1"


class Lengths:
    """Tokens of every record without BOS and EOS; picklable, memory-mapped where it is used."""

    def __init__(self, path: Path, records: int) -> None:
        self.path, self.records = path, records

    @functools.cached_property
    def array(self) -> np.ndarray:
        """int32 [records]. Raises ValueError or OSError where the file is no such array."""
        array = np.load(self.path, mmap_mode="r" if self.records else None, allow_pickle=False)
        if array.shape != (self.records,) or array.dtype != np.int32:
            raise ValueError(f"{self.path} holds {array.dtype} {array.shape}")
        return array

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "records": self.records}


def index_lengths(
    source: RecordSource,
    tokenizer: Tokenizer,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Lengths:
    """The lengths of a source under a tokenizer, read from beside its manifest or counted now.

    The file's name holds the shards' checksums and the tokenizer's, so that an index of other
    records or another vocabulary is never taken. ``progress`` is called with records done and
    in all. Raises UserError where the index cannot be written.
    """
    key = f"{_VERSION} {source.manifest.fingerprint} {tokenizer.sha256}"
    fingerprint = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = source.folder / f"lengths-{fingerprint}.npy"
    lengths = Lengths(path, len(source))
    if path.exists():
        try:
            if lengths.records == len(lengths.array):
                return lengths
        except (ValueError, OSError, EOFError) as error:
            _LOG.warning("the length index %s is damaged (%s): counting again", path, error)
    counts = np.zeros(len(source), np.int32)
    for start in range(0, len(source), _CHUNK):
        stop = min(start + _CHUNK, len(source))
        texts = [record.text for record in source.read(range(start, stop))]
        counts[start:stop] = [len(ids) for ids in tokenizer.encode_arrays(texts)]
        progress(stop, len(source))
    out = BytesIO()
    np.save(out, counts, allow_pickle=False)
    try:
        atomic_write(path, out.getvalue())
    except OSError as error:
        raise UserError(
            f"the length index {path} cannot be written ({error.strerror}): it is kept beside the "
            "shards. Free disk space, or copy the shards to a folder you may write to."
        ) from error
    return lengths
