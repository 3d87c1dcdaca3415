"""Which of the templates that fit a document are taken.

FineInstructions, section 3.2, "Retrieval": a weighted draw, so that templates are as complex as
real queries are, and not as those that match most easily.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 10
"""Numbers of tags told apart: 1 to 9, and 10 or more."""


@dataclass(frozen=True)
class Match:
    """A template that was drawn for a document."""

    template: int
    """Row in the bank."""
    chunk: int
    """0: the whole document; k: its k-th chunk."""
    score: float
    """Cosine of both vectors."""


def complexity_weights(bank: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Weight of each bin [BINS]: its share among real queries' templates over that in the bank.

    Args:
      bank: int [N], tags of each template of the bank.
      real: int [M], tags of those that come from people who talk to models.

    Raises:
      ValueError: one of both is empty, or no bin of the bank is real.
    """
    shares = []
    for name, counts in (("bank", bank), ("real", real)):
        if not len(counts):
            raise ValueError(f"{name}: there are no templates to weigh by")
        bins = np.clip(np.asarray(counts), 1, BINS) - 1
        shares.append(np.bincount(bins, minlength=BINS) / len(bins))
    weights = np.divide(shares[1], shares[0], out=np.zeros(BINS), where=shares[0] > 0)
    if not weights.any():
        raise ValueError("no template of the bank is as complex as any real one")
    return weights


def draw_templates(
    rows: np.ndarray,
    scores: np.ndarray,
    weights: np.ndarray,
    threshold: float,
    generator: np.random.Generator,
) -> list[Match]:
    """One template a vector of the document, all different; none where nothing fits.

    Args:
      rows: int [C + 1, candidates], rows in the bank; below 0: no candidate.
      scores: float [C + 1, candidates], their cosines.
      weights: float, of each template of the bank, by its complexity.
      threshold: cosine that a candidate has at least.
      generator: of this document.

    Raises:
      ValueError: a score is not a number.
    """
    if np.isnan(scores).any():
        chunks = np.flatnonzero(np.isnan(scores).any(1)).tolist()
        raise ValueError(f"vectors {chunks} of the document have a NaN among their scores")
    found: list[Match] = []
    taken: list[int] = []
    for chunk, (row, score) in enumerate(zip(rows, scores, strict=True)):
        # One number a vector, used or not: what one vector finds moves no other's draw.
        at = generator.random()
        fits = (row >= 0) & (score >= threshold) & ~np.isin(row, taken)
        # In double: in float32 a draw near 1 may round to the whole mass, which no candidate has.
        mass = np.cumsum(np.where(fits, weights[np.maximum(row, 0)], 0.0), dtype=np.float64)
        if mass[-1] <= 0:
            continue
        place = int(np.searchsorted(mass, at * mass[-1], side="right"))
        found.append(Match(int(row[place]), chunk, float(score[place])))
        taken.append(int(row[place]))
    return found


def within_budget(
    sizes: Sequence[int], left: int, generator: np.random.Generator
) -> tuple[list[int], int]:
    """Which of a document's pairs are kept, and what of its budget is left (section 4.2).

    Pairs are tried in a random order; one that fits what is left is kept, another is skipped. What
    is left goes to the next document.

    Args:
      sizes: tokens of each pair, its format included.
      left: the document's own tokens and what earlier documents left.
      generator: of this document.

    Returns:
      Their places in `sizes`, in order, and the tokens left.
    """
    kept = []
    for place in generator.permutation(len(sizes)):
        if sizes[place] <= left:
            kept.append(int(place))
            left -= sizes[place]
    return sorted(kept), left
