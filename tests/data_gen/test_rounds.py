"""Chains: the published multi-round inference, and what it does when something does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from data_gen.engines import Completion, Request, SamplingParams
from data_gen.instruction_pretrain.formats import Pair, Shot, render_pairs, render_prompt
from data_gen.instruction_pretrain.rounds import (
    Budget,
    Turn,
    group_shots,
    run_rounds,
    split_rounds,
    truncate_shots,
)

ROOMY = Budget(len, 1_000_000, 10)


def drive(
    texts: Sequence[str], answers: Sequence[str], budget: Budget = ROOMY, **options: Any
) -> tuple[list[Turn], list[str]]:
    def request(index: int, prompt: str) -> Request:
        return Request(str(index), prompt, SamplingParams())

    chain = run_rounds(texts, budget, request, **options)
    prompts: list[str] = []
    try:
        asked = next(chain)
        while True:
            prompts.append(str(asked.prompt))
            asked = chain.send(Completion(asked.id, answers[int(asked.id)], "stop", 0, 0))
    except StopIteration as end:
        return end.value, prompts


def test_prompts_and_collections_are_those_of_the_published_code(golden: Any) -> None:
    (case,) = golden("ipt_rounds.json")["cases"]
    rounds = case["rounds"]
    for chain in range(len(rounds[0]["texts"])):
        texts = [r["texts"][chain] for r in rounds]
        turns, prompts = drive(texts, [r["generated"][chain] for r in rounds])
        assert prompts == [r["prompts"][chain] for r in rounds]
        (members,) = group_shots(turns)
        assert [
            {
                "context": texts[turn.index],
                "pairs": [{"Q": p.question, "A": p.answer} for p in turn.parsed.pairs],
                "inherits": turn.inherits,
            }
            for turn in members
        ] == case["collections"][chain]


PAIR = Pair("Why?", "So.")
ANSWER = render_pairs([PAIR])


def test_a_text_without_pairs_ends_its_chain() -> None:
    turns, prompts = drive(["a", "b", "c", "d"], [ANSWER, "nothing", ANSWER, ANSWER])
    assert prompts[2] == render_prompt([], "c")
    assert prompts[3] == render_prompt([Shot("c", (PAIR,))], "d")
    assert [[t.index for t in group] for group in group_shots(turns)] == [[0], [2, 3]]


def test_the_oldest_shots_are_dropped_first_by_exact_count() -> None:
    history = [Shot(text, (PAIR,)) for text in "abc"]
    whole = len(render_prompt(history, "d"))
    assert truncate_shots(history, "d", Budget(len, whole + 10, 10)) == tuple(history)
    assert truncate_shots(history, "d", Budget(len, whole + 9, 10)) == tuple(history[1:])
    alone = len(render_prompt([], "d"))
    assert truncate_shots(history, "d", Budget(len, alone + 10, 10)) == ()
    assert truncate_shots(history, "d", Budget(len, alone + 9, 10)) is None


def test_an_error_is_kept_in_its_turn_and_gives_no_pairs() -> None:
    chain = run_rounds(
        ["a", "b"], ROOMY, lambda n, prompt: Request(str(n), prompt, SamplingParams())
    )
    next(chain)
    asked = chain.send(Completion("0", ANSWER, "error", 0, 0, "permanent"))
    assert asked.prompt == render_prompt([], "b")  # carries nothing of it
    with pytest.raises(StopIteration) as end:
        chain.send(Completion("1", ANSWER, "stop", 0, 0))
    first, second = end.value.value
    assert (first.completion.text, first.parsed.pairs) == (ANSWER, ())
    assert second.parsed.pairs == (PAIR,)


def test_a_text_that_carries_no_shot_for_lack_of_room_starts_a_record_of_its_own() -> None:
    alone = len(render_prompt([], "b" * 50))
    turns, prompts = drive(["a", "b" * 50], [ANSWER, ANSWER], Budget(len, alone + 10, 10))
    assert prompts[1] == render_prompt([], "b" * 50)
    assert [len(group) for group in group_shots(turns)] == [1, 1]


def test_a_text_too_long_by_itself_has_no_turn_and_hurts_no_other() -> None:
    turns, _ = drive(["a", "b" * 500, "c"], [ANSWER] * 3, Budget(len, 100, 10))
    assert [turn.index for turn in turns] == [0, 2]
    assert turns[1].inherits


def test_demonstrations_stand_only_before_texts_without_shots() -> None:
    shown = [Shot("demo", (PAIR,))]
    turns, prompts = drive(["a", "b"], [ANSWER, ANSWER], demonstrations=shown)
    assert prompts[0] == render_prompt(shown, "a")
    assert prompts[1] == render_prompt([Shot("a", (PAIR,))], "b")
    assert [turn.inherits for turn in turns] == [False, True]


@pytest.mark.parametrize(("selected", "rounds"), [(0, 2), (1, 3), (6, 2), (7, 3), (8, 3)])
def test_rounds_split_the_texts_evenly_and_lose_none(selected: int, rounds: int) -> None:
    chains = split_rounds(selected, rounds)
    assert sorted(i for chain in chains for i in chain) == list(range(selected))
    assert all(len(chain) <= rounds for chain in chains)
    assert len(chains) == -(-selected // rounds)
