"""The cosine from which on a template fits a document, found from judged pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ipt_jax.core.errors import UserError
from ipt_jax.core.json_lines import parse_json

PAPER_THRESHOLD = 0.865
"""Of a BGE-M3 that was tuned twice (section 3.2); any other encoder has another."""
CALIBRATE = "python launch/match.py calibrate"
"""The command that finds it."""


@dataclass(frozen=True)
class JudgedPair:
    """A document and a template, and whether a judge finds that they fit."""

    score: float
    """Cosine of their vectors."""
    fits: bool
    """The template can be filled in from the document, and answered."""


@dataclass(frozen=True)
class Precision:
    """What a threshold keeps of judged pairs."""

    threshold: float
    pairs: int
    """At or above it."""
    precision: float
    """Share of those that fit."""
    found: float
    """Share of all that fit that are among them."""


@dataclass(frozen=True)
class Calibration:
    """A threshold for one encoder."""

    threshold: float
    """The lowest that keeps the wanted share of fitting pairs."""
    table: tuple[Precision, ...]
    """By thresholds a hundredth apart, ascending; the chosen one among them."""

    def content(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def calibrate(
    pairs: Sequence[JudgedPair], precision: float = 0.8, least_pairs: int = 20
) -> Calibration:
    """The lowest threshold above which at least `precision` of the judged pairs fit.

    Args:
      pairs: judged at all scores that might become the threshold, not only at high ones.
      precision: the share wanted (0.8 is our choice; the paper chose its threshold by hand).
      least_pairs: pairs that have to be at or above it, so that it is no chance.

    Raises:
      UserError: too few pairs, a score that is no number, or no such threshold.
    """
    score_N = np.array([pair.score for pair in pairs], np.float64)
    fits_N = np.array([pair.fits for pair in pairs], bool)
    if bad := int((~np.isfinite(score_N)).sum()):
        said = (
            f"{bad:,} of {len(pairs):,} judged pairs have a score that is no number: take them out."
        )
        raise UserError(said, key="pairs")
    if len(pairs) < least_pairs:
        raise UserError(
            f"{len(pairs):,} pairs are judged, and a threshold needs {least_pairs:,}: judge more.",
            key="pairs",
        )
    # Each score that occurs, the highest first, and what is kept from it on.
    scores = np.unique(-score_N)
    order = np.argsort(-score_N, kind="stable")
    last = np.searchsorted(-score_N[order], scores, side="right")
    fitting = np.cumsum(fits_N[order])[last - 1]
    good = (fitting / last >= precision) & (last >= least_pairs)
    if not good.any():
        enough = np.flatnonzero(last >= least_pairs)
        best = enough[np.argmax((fitting / last)[enough])]
        raise UserError(
            f"precision={precision}: no threshold keeps {least_pairs} pairs of which so many fit; "
            f"at most {fitting[best] / last[best]:.3f} do, above {-scores[best]:.3f}. Tune the "
            "encoder (`python launch/match.py tune`), judge more pairs, or lower `precision`.",
            key="precision",
            advice="python launch/match.py tune",
        )
    chosen = float(-scores[np.flatnonzero(good)[-1]])
    grid = np.arange(np.floor(score_N.min() * 100), np.floor(score_N.max() * 100) + 1) / 100
    table = []
    for threshold in sorted({*grid.tolist(), chosen}):
        kept = score_N >= threshold
        count, right = int(kept.sum()), int(fits_N[kept].sum())
        table.append(
            Precision(threshold, count, right / max(count, 1), right / max(int(fits_N.sum()), 1))
        )
    return Calibration(chosen, tuple(table))


def load_judged(path: str | Path) -> list[JudgedPair]:
    """Judged pairs of a file: JSON lines with `score` and `fits` (true or false, 1 or 0).

    Raises UserError naming the line that has no such pair.
    """
    path, found = Path(path).expanduser(), list[JudgedPair]()
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        said = f"`pairs` ({path}) cannot be read ({error.strerror}): correct it."
        raise UserError(said, key="pairs", path=path) from error
    for number, line in enumerate(lines, 1):
        try:
            content = parse_json(line)
            score, fits = float(content["score"]), content["fits"]
            if fits not in (0, 1):
                raise ValueError(f"fits is {fits!r}")
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"line {number} of {path} is no judged pair ({error}): each has a number `score` "
                "and `fits`, true or false.",
                key="pairs",
                path=path,
                record=str(number),
            ) from error
        found.append(JudgedPair(score, bool(fits)))
    return found
