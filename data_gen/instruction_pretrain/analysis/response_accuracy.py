"""Response accuracy (section 5.1, Table 5): the synthesizer answers a given instruction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_gen.engines import Completion, SamplingParams
from data_gen.instruction_pretrain.analysis.held_out import HeldOut
from data_gen.instruction_pretrain.analysis.scores import Score, ScoredTask, score
from data_gen.instruction_pretrain.formats import (
    ANSWER,
    CONCLUSION,
    END,
    EOS,
    QUESTION,
    Pair,
    render_prompt,
)
from data_gen.stages.cached import Query
from ipt_jax.core.seeds import generator_of


@dataclass(frozen=True)
class AnswerTask(ScoredTask):
    """One gold pair whose instruction is asked."""

    pair: Pair
    """The pair."""

    @property
    def gold(self) -> str:
        return self.pair.answer


def answer_tasks(
    examples: Sequence[HeldOut], per_example: int | None, seed: int
) -> Iterator[AnswerTask]:
    """At most `per_example` pairs of each example, in their order; None for all."""
    for example in examples:
        places: list[int] = list(range(len(example.pairs)))
        if per_example is not None and per_example < len(places):
            drawn = generator_of(seed, "questions", example.id).permutation(np.asarray(places))
            places = sorted(drawn[:per_example].tolist())
        for place in places:
            yield AnswerTask(f"answer/{example.id}/{place}", example, example.pairs[place])


def answer_prompt(task: AnswerTask) -> str:
    """The text, then the pair up to <ANS>, as Table 7 renders it.

    The space after <ANS> is left for the model to write: most tokenizers join it to the answer.
    """
    return f"{render_prompt((), task.example.text)}{QUESTION} {task.pair.question} {ANSWER}"


def answer_question(task: AnswerTask, max_tokens: int) -> Query:
    """What is asked of the engine; the answer ends at </END>."""
    sampling = SamplingParams(max_tokens=max_tokens, stop=(END, EOS))
    return Query(task.name, answer_prompt(task), sampling)


def final_answer(pair: Pair, generated: str) -> str:
    """What of a generated answer is compared with `pair.response`.

    To a pair with chain of thought it is what follows the last "Therefore, the answer is", as the
    gold answer is; where that is missing, the whole. To a pair without, always the whole.
    """
    if pair.rationale is not None:
        _, found, answer = generated.rpartition(CONCLUSION.strip())
        if found:
            return answer.strip()
    return generated.strip()


def score_answers(
    tasks: Sequence[AnswerTask], completions: Mapping[str, Completion]
) -> list[Score]:
    """F1 with the gold answers."""
    return score(tasks, completions, lambda t, s: (final_answer(t.pair, s), t.pair.response))
