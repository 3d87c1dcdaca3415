"""Helpfulness (section 5.1, Figure 5): does a plain language model answer better after pairs?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from data_gen.engines import Completion, SamplingParams
from data_gen.instruction_pretrain.analysis.held_out import HeldOut
from data_gen.instruction_pretrain.analysis.response_accuracy import final_answer
from data_gen.instruction_pretrain.analysis.scores import Score, ScoredTask, score
from data_gen.instruction_pretrain.formats import Pair
from data_gen.instruction_pretrain.rounds import Budget
from data_gen.stages.cached import Query
from ipt_jax.core.seeds import generator_of

WITHOUT, RANDOM, BASE, TUNED = "without", "random", "base", "tuned"
CONDITIONS = (WITHOUT, RANDOM, BASE, TUNED)
_QUESTION, _ANSWER = "Question:", "Answer:"


@dataclass(frozen=True)
class ReadingTask(ScoredTask):
    """An example whose test pair is asked under one condition."""

    condition: str
    """One of CONDITIONS."""
    test: Pair
    """The gold pair that is asked."""
    pairs: tuple[Pair, ...]
    """What stands between the text and the test's instruction."""

    @property
    def gold(self) -> str:
        return self.test.answer


@dataclass
class ReadingTasks:
    """The tasks, and what they lack."""

    tasks: list[ReadingTask] = field(default_factory=list)
    """Four of each example, in the order of CONDITIONS."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Examples in none of the four bars, by id, with the reason."""
    without_pairs: dict[str, int] = field(default_factory=dict)
    """By condition: examples that got no pair, so that their prompt is that of WITHOUT."""
    pairs_dropped: int = 0
    """Pairs that did not fit, the last first."""


def reading_tasks(
    examples: Sequence[HeldOut],
    written: Mapping[str, Mapping[str, Sequence[Pair]]],
    budget: Budget,
    *,
    most_pairs: int,
    seed: int,
) -> ReadingTasks:
    """Every example that both models were asked about, under all four conditions.

    Args:
      examples: their contexts are also where random pairs come from.
      written: by BASE and TUNED, then by the example's id: the pairs that model wrote.
      budget: of the model that reads.
      most_pairs: pairs before the instruction, the first ones; random pairs are as many.
      seed: draws test pairs and random pairs.
    """
    found = ReadingTasks(without_pairs=dict.fromkeys((RANDOM, BASE, TUNED), 0))
    for example in examples:
        if not all(example.id in written[name] for name in (BASE, TUNED)):
            found.left_out[example.id] = "a synthesizer was not asked about it or gave an error"
            continue
        generator = generator_of(seed, "helpfulness", example.id)
        test = example.pairs[int(generator.integers(len(example.pairs)))]
        if not budget.fits(reading_prompt(example.text, (), test)):
            found.left_out[example.id] = "too long for the model that reads"
            continue
        others = [pair for other in examples if other.text != example.text for pair in other.pairs]
        drawn = generator.permutation(len(others))[:most_pairs].tolist()
        given: dict[str, Sequence[Pair]] = {
            WITHOUT: (),
            RANDOM: [others[place] for place in drawn],
            BASE: written[BASE][example.id][:most_pairs],
            TUNED: written[TUNED][example.id][:most_pairs],
        }
        for condition in CONDITIONS:
            pairs = list(given[condition])
            while not budget.fits(reading_prompt(example.text, pairs, test)):
                pairs.pop()
                found.pairs_dropped += 1
            if condition != WITHOUT:
                found.without_pairs[condition] += not pairs
            name = f"read/{condition}/{example.id}"
            found.tasks.append(ReadingTask(name, example, condition, test, tuple(pairs)))
    return found


def reading_prompt(text: str, pairs: Sequence[Pair], test: Pair) -> str:
    """Text, pairs and the test's instruction in plain words: the reader knows no tags."""
    shown = "".join(f"{_QUESTION} {p.question}\n{_ANSWER} {p.answer}\n\n" for p in pairs)
    return f"{text}\n\n{shown}{_QUESTION} {test.question}\n{_ANSWER}"


def reading_question(task: ReadingTask, max_tokens: int) -> Query:
    """What is asked; the answer ends where the next question would begin."""
    prompt = reading_prompt(task.example.text, task.pairs, task.test)
    sampling = SamplingParams(max_tokens=max_tokens, stop=("\n\n", f"\n{_QUESTION}"))
    return Query(task.name, prompt, sampling)


def score_reading(
    tasks: Sequence[ReadingTask], completions: Mapping[str, Completion]
) -> dict[str, list[Score]]:
    """F1 by condition; an example with an error under one condition is in none of the bars."""
    failed = {t.example.id for t in tasks if completions[t.name].finish_reason == "error"}
    kept = [task for task in tasks if task.example.id not in failed]
    return {
        condition: score(
            [task for task in kept if task.condition == condition],
            completions,
            lambda task, said: (final_answer(task.test, said), task.test.response),
        )
        for condition in CONDITIONS
    }
