"""Quality of generated pairs (section 5.1, Table 5): F1 with the gold pairs, zero- and few-shot."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from data_gen.engines import Completion, EngineConfig
from data_gen.instruction_pretrain.analysis.held_out import HeldOut
from data_gen.instruction_pretrain.analysis.scores import Score, ScoredTask, score
from data_gen.instruction_pretrain.formats import (
    ANSWER,
    CONTEXT_CLOSE,
    CONTEXT_OPEN,
    END,
    EOS,
    QUESTION,
    Pair,
    Shot,
    render_pairs,
    render_prompt,
)
from data_gen.instruction_pretrain.rounds import Budget, truncate_shots
from data_gen.stages.cached import Query

ZERO, FEW = "zero", "few"
_TAGS = re.compile("|".join((CONTEXT_OPEN, CONTEXT_CLOSE, QUESTION, ANSWER, END, "<s>", EOS)))


@dataclass(frozen=True)
class PairsTask(ScoredTask):
    """A text that is to get pairs."""

    shots: tuple[Shot, ...]
    """What stands before the text."""

    @property
    def gold(self) -> str:
        return gold_text(self.example.pairs)


@dataclass
class PairsTasks:
    """The tasks of one setting, and what is in none."""

    tasks: list[PairsTask] = field(default_factory=list)
    """In the order of the examples."""
    too_long: list[str] = field(default_factory=list)
    """Ids of examples that leave no room for a completion even without shots."""
    without_shots: list[str] = field(default_factory=list)
    """Ids of examples that have no shots, or none that fits: they are in no few-shot figure."""
    shots_dropped: int = 0
    """Shots that did not fit, the oldest first."""


def pairs_tasks(examples: Sequence[HeldOut], setting: str, budget: Budget) -> PairsTasks:
    """ZERO: the text alone; FEW: its shots before it, as many as fit."""
    found = PairsTasks()
    for example in examples:
        given = example.shots if setting == FEW else ()
        kept = truncate_shots(given, example.text, budget)
        if kept is None:
            found.too_long.append(example.id)
            continue
        found.shots_dropped += len(given) - len(kept)
        if setting == FEW and not kept:
            found.without_shots.append(example.id)
            continue
        found.tasks.append(PairsTask(f"{setting}/{example.id}", example, kept))
    return found


def pairs_question(task: PairsTask, config: EngineConfig) -> Query:
    """What is asked of the engine, drawn as the config says; the generation ends at </s>."""
    prompt = render_prompt(task.shots, task.example.text)
    return Query(task.name, prompt, config.sampling(stop=(EOS,)))


def without_tags(text: str) -> str:
    """The words alone: a model that writes no tags is not judged by form."""
    return _TAGS.sub(" ", text)


def gold_text(pairs: Sequence[Pair]) -> str:
    """Instructions, options, rationales and answers of Table 7, without tags."""
    return without_tags(render_pairs(pairs))


def score_pairs(tasks: Sequence[PairsTask], completions: Mapping[str, Completion]) -> list[Score]:
    """F1 between all that was generated and all gold pairs of the text."""
    return score(tasks, completions, lambda task, said: (without_tags(said), task.gold))
