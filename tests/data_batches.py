"""What tests compare batches by."""

import hashlib
from collections.abc import Iterable

import numpy as np

Batch = dict[str, np.ndarray]


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
