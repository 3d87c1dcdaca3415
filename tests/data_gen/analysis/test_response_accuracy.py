"""Response accuracy: what is asked, what of the answer counts, how means are taken."""

from __future__ import annotations

import pytest

from data_gen.engines import Completion
from data_gen.instruction_pretrain.analysis.held_out import HeldOut
from data_gen.instruction_pretrain.analysis.response_accuracy import (
    answer_prompt,
    answer_question,
    answer_tasks,
    final_answer,
    score_answers,
)
from data_gen.instruction_pretrain.analysis.scores import Score, macro
from data_gen.instruction_pretrain.formats import Pair, render_example

FREE = Pair("Who came?", "The cat")
CHOICE_COT = Pair("Which?", "blue", ("red", "blue"), "It is the sky.")
EXAMPLE = HeldOut("d/1", "d", "A text.", (FREE, CHOICE_COT), (), False)


@pytest.mark.parametrize("pair", EXAMPLE.pairs)
def test_the_prompt_is_the_beginning_of_the_rendered_example(pair: Pair) -> None:
    task = next(t for t in answer_tasks([EXAMPLE], None, 0) if t.pair == pair)
    prompt, whole = answer_prompt(task), render_example("A text.", [pair])
    assert whole.startswith(prompt)
    assert whole[len(prompt) :] == f" {pair.answer} </END></s>"
    question = answer_question(task, 9)
    assert question.sampling.stop == ("</END>", "</s>")
    assert question.sampling.temperature == 0 and question.sampling.max_tokens == 9


def test_of_a_chain_of_thought_the_answer_alone_counts() -> None:
    generated = " Therefore, the answer is no. But wait.\nTherefore, the answer is blue "
    assert final_answer(CHOICE_COT, generated) == "blue"
    assert final_answer(CHOICE_COT, " the sky is blue ") == "the sky is blue"
    assert final_answer(FREE, generated) == generated.strip()


def test_questions_are_drawn_and_keep_their_places() -> None:
    pairs = tuple(Pair(f"Question {n}?", "x") for n in range(12))
    examples = [HeldOut(f"d/{n}", "d", "t", pairs, (), False) for n in range(3)]
    tasks = list(answer_tasks(examples, 4, seed=3))
    assert len(tasks) == 12 and tasks == list(answer_tasks(examples, 4, seed=3))
    for task in tasks:
        assert task.pair == pairs[int(task.name.rsplit("/", 1)[1])]
    drawn = [{t.name.rsplit("/", 1)[1] for t in tasks if t.example == e} for e in examples]
    assert drawn[0] != drawn[1]
    assert len(list(answer_tasks(examples, None, seed=3))) == 36


def test_scores_of_answers_and_none_of_an_error() -> None:
    tasks = list(answer_tasks([EXAMPLE], None, 0))
    completions = {
        tasks[0].name: Completion("", " cat and dog", "stop", 1, 1),
        tasks[1].name: Completion("", "no room", "error", 1, 0),
    }
    (score,) = score_answers(tasks, completions)
    assert score.name == "answer/d/1/0" and score.f1 == pytest.approx(2 * 1 / (3 + 1))
    completions[tasks[1].name] = Completion("", "Sky.\nTherefore, the answer is blue", "stop", 1, 1)
    assert score_answers(tasks, completions)[1].f1 == 1.0


def test_a_large_data_set_weighs_no_more_than_a_small_one() -> None:
    scores = [Score(f"a{n}", "large", False, 0.0) for n in range(9)]
    scores += [Score("b", "small", False, 1.0), Score("c", "new", True, 0.25)]
    found = macro(scores)
    assert (found["seen"], found["unseen"]) == (50.0, 25.0)
    assert found["datasets"]["large"] == {"group": "seen", "questions": 9, "f1": 0.0}
    assert macro(scores[:1])["unseen"] is None
