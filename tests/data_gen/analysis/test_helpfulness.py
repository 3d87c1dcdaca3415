"""Helpfulness: four prompts of one test pair, all four bars over the same examples."""

from __future__ import annotations

import pytest

from data_gen.engines import Completion
from data_gen.instruction_pretrain.analysis.held_out import HeldOut
from data_gen.instruction_pretrain.analysis.helpfulness import (
    BASE,
    CONDITIONS,
    RANDOM,
    TUNED,
    WITHOUT,
    reading_question,
    reading_tasks,
    score_reading,
)
from data_gen.instruction_pretrain.formats import Pair
from data_gen.instruction_pretrain.rounds import Budget

EXAMPLES = [
    HeldOut(
        f"d/{n}", "d", f"Text {n}.", tuple(Pair(f"Gold {n} {k}?", f"g{n}{k}") for k in range(3)),
        (), False,
    )
    for n in range(4)
]  # fmt: skip
WRITTEN = {
    BASE: {e.id: () for e in EXAMPLES},
    TUNED: {e.id: [Pair(f"Written {n}?", f"w{n}") for n in range(9)] for e in EXAMPLES},
}


def budget(tokens: int = 4096) -> Budget:
    return Budget(lambda text: len(text.split()), tokens, 10)


def test_the_four_conditions_ask_the_same_after_other_pairs() -> None:
    found = reading_tasks(EXAMPLES, WRITTEN, budget(), most_pairs=2, seed=0)
    assert len(found.tasks) == 16 and found.left_out == {}
    by_condition = dict(zip(CONDITIONS, found.tasks[:4], strict=True))
    assert len({task.test for task in found.tasks[:4]}) == 1
    test = by_condition[WITHOUT].test
    assert test in EXAMPLES[0].pairs
    assert reading_question(by_condition[WITHOUT], 5).prompt == (
        f"Text 0.\n\nQuestion: {test.question}\nAnswer:"
    )
    assert reading_question(by_condition[TUNED], 5).prompt == (
        "Text 0.\n\nQuestion: Written 0?\nAnswer: w0\n\nQuestion: Written 1?\nAnswer: w1\n\n"
        f"Question: {test.question}\nAnswer:"
    )
    others = {pair for example in EXAMPLES[1:] for pair in example.pairs}
    for task in found.tasks:
        if task.condition == RANDOM:
            assert len(task.pairs) == 2
            assert not set(task.pairs) & set(task.example.pairs)
    assert set(by_condition[RANDOM].pairs) <= others
    assert found.without_pairs == {RANDOM: 0, BASE: 4, TUNED: 0}
    again = reading_tasks(EXAMPLES, WRITTEN, budget(), most_pairs=2, seed=1)
    assert [t.test for t in again.tasks] != [t.test for t in found.tasks]


def test_what_does_not_fit_is_dropped_and_counted() -> None:
    # Text 2, test 4 + 1; a pair 5 words.
    found = reading_tasks(EXAMPLES, WRITTEN, budget(10 + 2 + 5 + 6), most_pairs=3, seed=0)
    assert {len(t.pairs) for t in found.tasks if t.condition == TUNED} == {1}
    assert found.pairs_dropped == 4 * (2 + 2)
    assert len(reading_tasks(EXAMPLES, WRITTEN, budget(11), most_pairs=3, seed=0).left_out) == 4
    few = {BASE: WRITTEN[BASE], TUNED: {"d/0": ()}}
    found = reading_tasks(EXAMPLES, few, budget(), most_pairs=3, seed=0)
    assert set(found.left_out) == {"d/1", "d/2", "d/3"} and len(found.tasks) == 4


def test_an_error_takes_the_example_out_of_all_bars() -> None:
    found = reading_tasks(EXAMPLES[:2], WRITTEN, budget(), most_pairs=2, seed=0)
    completions = {
        task.name: Completion(
            "", task.test.response if task.condition == TUNED else "no", "stop", 1, 1
        )
        for task in found.tasks
    }
    scores = score_reading(found.tasks, completions)
    assert [len(scores[name]) for name in CONDITIONS] == [2, 2, 2, 2]
    assert [score.f1 for score in scores[TUNED]] == [1.0, 1.0]
    assert [score.f1 for score in scores[WITHOUT]] == pytest.approx([0.0, 0.0])
    completions[f"read/{BASE}/d/0"] = Completion("", "x", "error", 1, 0)
    scores = score_reading(found.tasks, completions)
    assert [len(scores[name]) for name in CONDITIONS] == [1, 1, 1, 1]
