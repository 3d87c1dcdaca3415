"""One number an evaluation gave, with its uncertainty; and reading them from lm-eval's files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ipt_jax.core.errors import UserError
from ipt_jax.core.json_lines import read_object

TRUNCATED_NAME = "truncated.json"
"""Beside lm-eval's own files: task -> items whose context was cut."""
Z_95 = 1.959964  # two-sided 95% of a normal distribution
_SHARES = ("acc", "acc_norm", "exact_match", "f1")  # lie between 0 and 1


@dataclass(frozen=True)
class Result:
    """What one model scored on one task by one metric."""

    model: str
    """Name given to the model folder."""
    task: str
    """lm-evaluation-harness's name."""
    metric: str
    """Its metric, without the filter where there is none."""
    value: float
    """Mean over the items (for bits_per_byte: total bits by total bytes)."""
    stderr: float | None
    """Standard error of `value` over the items; None where the metric has none."""
    low: float | None
    """Lower end of the 95% confidence interval."""
    high: float | None
    """Upper end."""
    n: int
    """Items it was measured on."""
    higher_is_better: bool = True
    """False for perplexities and bits per byte."""
    truncated: int = 0
    """Items whose context did not fit into the model's and lost its beginning."""

    def between(self) -> str | None:
        """The interval in words; None where there is none."""
        return None if self.low is None else f"{self.low:.4f} – {self.high:.4f}"

    @property
    def items(self) -> str:
        """`n`, and how many of them were cut, if any."""
        return f"{self.n} ({self.truncated} cut)" if self.truncated else str(self.n)


def interval(metric: str, value: float, stderr: float | None) -> tuple[float | None, float | None]:
    """The normal 95% confidence interval, cut to [0, 1] where the metric is a share."""
    if stderr is None:
        return None, None
    low, high = value - Z_95 * stderr, value + Z_95 * stderr
    return (max(0.0, low), min(1.0, high)) if metric in _SHARES else (low, high)


def bits_per_byte(items: Sequence[tuple[float, int]]) -> tuple[float, float | None]:
    """Bits per byte over `items` of (log-likelihood in nats, bytes), and its standard error.

    lm-eval gives no error for this ratio of sums; the delta method does: with ratio r, the
    residuals bits - r * bytes have mean zero, and their spread over the mean bytes is the error.
    """
    bits = [-log_likelihood / math.log(2) for log_likelihood, _ in items]
    sizes = [size for _, size in items]
    ratio = sum(bits) / sum(sizes)
    n = len(items)
    if n < 2:
        return ratio, None
    residuals = sum((b - ratio * size) ** 2 for b, size in zip(bits, sizes, strict=True))
    return ratio, math.sqrt(residuals / (n - 1) / n) / (sum(sizes) / n)


def read_lm_eval(folder: Path, model: str) -> tuple[list[Result], dict[str, Any]]:
    """Every task's and metric's Result from an lm-eval output folder, and lm-eval's own JSON.

    Raises:
      UserError: no results file there, or one that is not lm-eval's.
    """
    found, again = sorted(folder.rglob("results_*.json")), "run the evaluation again"
    if not found:
        raise UserError("lm-eval left no results_*.json there", path=folder, advice=again)
    raw = read_object(found[-1], again)
    truncated = read_object(folder / TRUNCATED_NAME, again)
    results = []
    for task, values in raw["results"].items():
        members = _members(task, raw.get("group_subtasks") or {})
        n = sum(raw["n-samples"].get(name, {}).get("effective", 0) for name in members)
        cut = sum(truncated.get(name, 0) for name in members)
        for key, value in values.items():
            name, _, kind = key.partition(",")
            if not kind or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{name}_stderr,{kind}")
            stderr = float(error) if isinstance(error, int | float) else None
            if name == "bits_per_byte":
                value, stderr = bits_per_byte(_items(found[-1], task, name))
            low, high = interval(name, value, stderr)
            metric = name if kind == "none" else f"{name},{kind}"
            better = raw.get("higher_is_better", {}).get(task, {}).get(name, True)
            spread = (float(value), stderr, low, high)
            results.append(Result(model, task, metric, *spread, n, better, cut))
    return results, raw


def _members(task: str, groups: Mapping[str, Sequence[str]]) -> set[str]:
    """The tasks that a group's numbers are of; of a task, itself."""
    inner = groups.get(task) or ()
    return {name for one in inner for name in _members(one, groups)} or {task}


def _items(results_file: Path, task: str, metric: str) -> list[tuple[float, int]]:
    stamp = results_file.stem.removeprefix("results_")
    path = results_file.with_name(f"samples_{task}_{stamp}.jsonl")
    with path.open(encoding="utf-8") as lines:
        return [tuple(json.loads(line)[metric]) for line in lines]


def table(results: Iterable[Result]) -> list[dict[str, Any]]:
    """The results as JSON-able rows."""
    return [asdict(result) for result in results]


def read_results(path: Path) -> list[Result]:
    """The results of an evaluation folder's `results.json`.

    Raises:
      UserError: it is missing or not what an evaluation writes.
    """
    again = "run launch/evaluate.py again"
    try:
        rows = read_object(path, again, "run launch/evaluate.py to write it")["table"]
        return [Result(**row) for row in rows]
    except (KeyError, TypeError) as error:
        said = f"not an evaluation's results ({error})"
        raise UserError(said, path=path, advice=again) from error
