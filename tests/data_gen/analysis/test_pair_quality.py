"""Pair quality: prompts of both settings, F1 without form, and what generations hold."""

from __future__ import annotations

import pytest

from data_gen.engines import Completion, EngineConfig
from data_gen.instruction_pretrain.analysis.generations import (
    PAIR_FORMATS,
    Generation,
    format_of,
    generation_statistics,
)
from data_gen.instruction_pretrain.analysis.held_out import HeldOut
from data_gen.instruction_pretrain.analysis.pair_quality import (
    FEW,
    ZERO,
    gold_text,
    pairs_question,
    pairs_tasks,
    score_pairs,
    without_tags,
)
from data_gen.instruction_pretrain.formats import Pair, Shot, render_example, render_pairs
from data_gen.instruction_pretrain.rounds import Budget

FREE = Pair("Who sat?", "The cat")
CHOICE = Pair("Which one?", "b", ("a", "b"))
FREE_COT = Pair("How many?", "two", (), "One and one.")
CHOICE_COT = Pair("Which then?", "b", ("a", "b"), "Not a.")
SHOTS = tuple(Shot(f"shot {n} " + "word " * 20, (FREE,)) for n in range(3))
EXAMPLE = HeldOut("d/1", "d", "The cat sat.", (FREE, CHOICE), SHOTS, True)


def budget(tokens: int) -> Budget:
    return Budget(lambda text: len(text.split()), tokens, 10)


def test_zero_shot_is_the_text_alone_and_few_shot_comes_after_examples() -> None:
    (zero,) = pairs_tasks([EXAMPLE], ZERO, budget(4096)).tasks
    (few,) = pairs_tasks([EXAMPLE], FEW, budget(4096)).tasks
    alone = "<s> <CON> The cat sat. </CON>\n\n"
    assert pairs_question(zero, EngineConfig(max_tokens=7)).prompt == alone
    shown = "".join(render_example(shot.text, shot.pairs) for shot in SHOTS)
    assert pairs_question(few, EngineConfig(max_tokens=7)).prompt == shown + alone
    drawn = EngineConfig(max_tokens=7, temperature=0.9, top_k=5, top_p=0.8)
    sampling = pairs_question(few, drawn).sampling
    assert sampling.stop == ("</s>",) and sampling.max_tokens == 7
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.9, 5, 0.8)


def test_the_oldest_shots_are_dropped_and_counted() -> None:
    one_shot = len(render_example(SHOTS[0].text, SHOTS[0].pairs).split())
    found = pairs_tasks([EXAMPLE], FEW, budget(10 + 2 * one_shot + 6))
    assert found.tasks[0].shots == SHOTS[1:] and found.shots_dropped == 1
    none = pairs_tasks([EXAMPLE], FEW, budget(10 + 7))
    assert (none.tasks, none.without_shots, none.shots_dropped) == ([], ["d/1"], 3)
    long = pairs_tasks([EXAMPLE], ZERO, budget(10 + 5))
    assert (long.tasks, long.too_long) == ([], ["d/1"])


def test_gold_text_holds_options_and_answers_and_no_tags() -> None:
    words = gold_text([CHOICE_COT]).split()
    assert (
        words
        == (
            "Which then? Options: - a - b Let's think step by step. Not a. "
            "Therefore, the answer is b"
        ).split()
    )
    assert without_tags("<s> <CON> x </CON> <QUE> y <ANS> z </END></s>").split() == ["x", "y", "z"]


def test_a_model_without_tags_is_not_judged_by_form() -> None:
    tasks = pairs_tasks([EXAMPLE], ZERO, budget(4096)).tasks
    tagged, bare = render_pairs(EXAMPLE.pairs), gold_text(EXAMPLE.pairs)
    for text in (tagged, bare):
        (score,) = score_pairs(tasks, {"zero/d/1": Completion("", text, "stop", 1, 1)})
        assert score.f1 == 1.0 and score.unseen
    half = Completion("", render_pairs([FREE]), "stop", 1, 1)
    # who sat cat, of: who sat cat which one options b b (articles and "a" fall out)
    assert score_pairs(tasks, {"zero/d/1": half})[0].f1 == pytest.approx(2 * 3 / (3 + 8))
    error = Completion("", "x", "error", 1, 0)
    assert score_pairs(tasks, {"zero/d/1": error}) == []


def test_the_four_formats() -> None:
    assert tuple(map(format_of, (FREE, CHOICE, FREE_COT, CHOICE_COT))) == PAIR_FORMATS


def test_what_generations_hold() -> None:
    text = "The cat sat."
    generations = [
        Generation(text, render_pairs([FREE, Pair("WHO SAT?", "a dog")]), False, SHOTS),
        Generation(text, render_pairs([CHOICE]) + "\n\n<QUE> What el", True, SHOTS),
        Generation(text, render_pairs([FREE_COT]) + "\n\n<QUE> What el", False),
        Generation(text, "nothing", False),
    ]
    found = generation_statistics(generations, lambda text: len(text.split()))
    assert (found.generations, found.pairs, found.cut_at_max_tokens) == (4, 4, 1)
    assert found.well_formed_share == 0.5  # the third breaks off though nothing cut it
    assert found.with_pairs_share == 0.75
    assert found.rejected == {"unfinished": 3}
    assert found.pairs_per_text == 1.0
    # who sat / the cat: 4; WHO SAT / a dog: 4; options: 8; steps: 7 + 8
    assert found.tokens_per_pair == pytest.approx((4 + 4 + 8 + 15) / 4)
    assert found.repeated_share == 0.25
    assert found.literal_share == 0.25  # "The cat" alone
    assert [found.format_shares[name] for name in PAIR_FORMATS] == [0.5, 0.25, 0.25, 0.0]
    assert found.same_formats_share == 0.5  # the shots are free-form


def test_of_nothing_there_are_no_shares() -> None:
    found = generation_statistics([], len)
    assert found.well_formed_share is found.pairs_per_text is found.same_formats_share is None
    assert set(found.format_shares.values()) == {None}
