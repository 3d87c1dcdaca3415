"""Random draws that depend on a run's seed and on names alone: never on order, never correlated."""

from __future__ import annotations

import hashlib
import json

import numpy as np


def seed_of(run_seed: int, *names: object) -> int:
    """63 bits that depend on the run's seed and on the names alone."""
    text = json.dumps([run_seed, *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def generator_of(run_seed: int, *names: object) -> np.random.Generator:
    """A generator of its own for what the names say is drawn."""
    return np.random.Generator(np.random.Philox(seed_of(run_seed, *names)))
