"""What a mixture holds and what its first batches are made of, counted."""

from dataclasses import dataclass

import numpy as np

from ipt_jax.core.errors import require
from ipt_jax.data.encode import Lengths, extra_tokens
from ipt_jax.data.packing import source_tokens
from ipt_jax.data.pipeline import OpenMixture, batches

QUANTILES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)
_CHUNK = 1 << 22  # lengths counted at once: the index of a large source is larger than memory


@dataclass(frozen=True)
class TaskSurvey:
    """One task of a mixture."""

    name: str
    records: int
    """Damaged ones included."""
    epoch_tokens: int
    """Of all its examples, BOS and EOS included."""
    max_epochs: float | None
    lengths: np.ndarray
    """int64 [longest + 1]: how many examples have so many tokens, BOS and EOS included."""

    def quantile(self, share: float) -> int:
        """Tokens that at least ``share`` of the examples do not exceed; 0 without examples."""
        upto = np.cumsum(self.lengths)
        if not upto.size or not upto[-1]:
            return 0
        return int(np.searchsorted(upto, max(share * upto[-1], 1)))

    def longer_than(self, tokens: int) -> int:
        """Examples of more tokens."""
        return int(self.lengths[tokens + 1 :].sum())

    def histogram(self, edges: np.ndarray) -> np.ndarray:
        """int64 [n]: examples of edges[i] to edges[i + 1] - 1 tokens, for edges [n + 1]."""
        upto = np.concatenate([[0], np.cumsum(self.lengths)])
        return np.diff(upto[np.minimum(edges, len(self.lengths))])


@dataclass(frozen=True)
class Survey:
    """A mixture and N of its batches."""

    tasks: tuple[TaskSurvey, ...]
    places: int
    """Tokens that fit into a batch: B rows of T."""
    asked: np.ndarray
    """float64 [N, tasks], share of each task in the tokens of a batch."""
    tokens: np.ndarray
    """int64 [N, tasks], of each batch; padding does not count."""
    learnt: np.ndarray
    """int64 [N, tasks], places whose target carries loss."""
    weight: np.ndarray
    """float64 [N, tasks], sum of the loss weights."""
    stages: tuple[int, ...]
    """Batches before each change of rates within the N."""
    segments: np.ndarray
    """int64 [most + 1]: how many rows have so many segments."""
    damaged: tuple[tuple[str, int, str], ...]
    """Task, record, and file, place and reason, of what could not be read."""

    @property
    def shares(self) -> np.ndarray:
        """float64 [N, tasks], share of each task in the tokens of each batch."""
        return self.tokens / np.maximum(self.tokens.sum(axis=1, keepdims=True), 1)

    @property
    def fill(self) -> np.ndarray:
        """float64 [N], share of the places that hold tokens."""
        return self.tokens.sum(axis=1) / self.places

    def epochs(self, task: int) -> float:
        """How often the tokens of a task came."""
        return float(self.tokens[:, task].sum()) / max(self.tasks[task].epoch_tokens, 1)

    def edges(self, bins: int) -> np.ndarray:
        """int64 [at most bins + 1], borders of lengths in equal steps of their logarithm."""
        least = [np.flatnonzero(task.lengths[1:])[:1] + 1 for task in self.tasks]
        low = min((int(first[0]) for first in least if first.size), default=1)
        high = max(len(task.lengths) for task in self.tasks)
        return np.unique(np.geomspace(low, max(high, low + 1), bins + 1).round().astype(np.int64))


def survey(data: OpenMixture, *, batch_count: int, rows: int) -> Survey:
    """Count what the length indexes say and make the first ``batch_count`` batches of ``rows``.

    Raises UserError as ``batches`` does, and where nothing is asked for.
    """
    require("batches", batch_count, batch_count >= 1, "at least 1")
    steps = np.arange(batch_count)
    names, T = data.task_names, data.config.row_tokens
    asked = np.zeros((batch_count, len(names)))
    for step, rates in data.stages:
        asked[steps >= step] = list(data.token_shares(rates).values())
    tokens, learnt, weight = [], [], []
    segments = np.zeros(T + 1, np.int64)
    for batch in batches(data, rows_per_batch=rows, total_batches=batch_count):
        source, weights = batch["source_ids"], batch["loss_weights"]
        tokens.append(source_tokens(source, len(names)))
        learnt.append(source_tokens(source[weights > 0], len(names)))
        real = source >= 0
        weight.append(np.bincount(source[real], weights[real], minlength=len(names)))
        segments += np.bincount(batch["segment_ids"].max(axis=1), minlength=T + 1)
    tasks = [
        TaskSurvey(
            name=task.name,
            records=0 if index is None else index.records,
            epoch_tokens=size,
            max_epochs=task.max_epochs,
            lengths=_counted(index, extra_tokens(task)),
        )
        for task, index, size in zip(
            data.mixture.tasks, data.lengths, data.epoch_tokens, strict=True
        )
    ]
    return Survey(
        tasks=tuple(tasks),
        places=rows * T,
        asked=asked,
        tokens=np.stack(tokens),
        learnt=np.stack(learnt),
        weight=np.stack(weight),
        stages=tuple(step for step, _ in data.stages[1:] if step < batch_count),
        segments=np.trim_zeros(segments, "b"),
        damaged=tuple((*key, what) for key, what in data.damaged.records.items()),
    )


def _counted(index: Lengths | None, extra: int) -> np.ndarray:
    """Examples of each length, those left out as damaged not counted."""
    counts = np.zeros(0, np.int64)
    for start in range(0, 0 if index is None else index.records, _CHUNK):
        assert index is not None  # else there was no chunk
        part = np.asarray(index.array[start : start + _CHUNK])
        found = np.bincount(part[part >= 0] + extra)
        counts = np.pad(counts, (0, max(len(found) - len(counts), 0)))
        counts[: len(found)] += found
    return counts
