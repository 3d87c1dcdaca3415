"""What tests compare batches by, and lengths to plan them from."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ipt_jax.data.encode import Lengths

Batch = dict[str, np.ndarray]


class Made(Lengths):
    """Lengths that lie in memory."""

    def __init__(self, values: list[int]) -> None:
        super().__init__(Path("made"), len(values))
        self.__dict__["array"] = np.asarray(values, np.int32)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__.copy()


def digest(batches: Iterable[Batch]) -> str:
    """Of all arrays of all batches, in order."""
    hasher = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            hasher.update(f"{name} {batch[name].dtype} {batch[name].shape}".encode())
            hasher.update(batch[name].tobytes())
    return hasher.hexdigest()


def joined(parts: list[list[Batch]]) -> list[Batch]:
    """The global batches of processes' parts."""
    return [
        {name: np.concatenate([part[name] for part in group]) for name in group[0]}
        for group in zip(*parts, strict=True)
    ]
