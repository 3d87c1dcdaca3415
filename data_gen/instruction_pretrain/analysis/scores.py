"""Scores of single questions, and their means over data sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_gen.engines import Completion
from data_gen.instruction_pretrain.analysis.f1 import mean, token_f1
from data_gen.instruction_pretrain.analysis.held_out import HeldOut

SEEN, UNSEEN = "seen", "unseen"


@dataclass(frozen=True)
class ScoredTask:
    """Something that a model is asked about an example."""

    name: str
    """Of the question."""
    example: HeldOut
    """With the gold pairs."""

    @property
    def gold(self) -> str:
        """What it should write, as a person is shown it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Score:
    """F1 of one completion."""

    name: str
    """Of the question."""
    dataset: str
    """Data set of the example."""
    unseen: bool
    """Whether the synthesizer was tuned on nothing of the data set."""
    f1: float
    """Between 0 and 1."""


def score[T: ScoredTask](
    tasks: Sequence[T],
    completions: Mapping[str, Completion],
    compared: Callable[[T, str], tuple[str, str]],
) -> list[Score]:
    """F1 of what `compared` takes of each text and of its gold; what the engine could not answer
    has no score."""
    return [
        Score(
            task.name,
            task.example.dataset,
            task.example.unseen,
            token_f1(*compared(task, completions[task.name].text)),
        )
        for task in tasks
        if completions[task.name].finish_reason != "error"
    ]


def group_of(unseen: bool) -> str:
    """SEEN or UNSEEN."""
    return UNSEEN if unseen else SEEN


def macro(scores: Sequence[Score]) -> dict[str, Any]:
    """Per cent: the mean over data sets of the mean over their questions, seen and unseen.

    None where no data set of the kind has a score. `datasets` has each one's own mean.
    """
    by_dataset: dict[str, list[Score]] = {}
    for score in scores:
        by_dataset.setdefault(score.dataset, []).append(score)
    datasets = {
        name: {
            "group": group_of(of_set[0].unseen),
            "questions": len(of_set),
            "f1": 100 * sum(score.f1 for score in of_set) / len(of_set),
        }
        for name, of_set in sorted(by_dataset.items())
    }
    means = {
        group: mean(found["f1"] for found in datasets.values() if found["group"] == group)
        for group in (SEEN, UNSEEN)
    }
    return {**means, "datasets": datasets}
