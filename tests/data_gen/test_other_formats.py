"""Examples in other patterns than their own: what changes, what stays, and what cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_gen.instruction_pretrain.collection import DATASETS, Example, gather
from data_gen.instruction_pretrain.formats import Pair, render_pairs
from data_gen.instruction_pretrain.other_formats import (
    FREE_FORM,
    MULTIPLE_CHOICE,
    WITHOUT_RATIONALE,
    in_pattern,
    other_patterns,
)
from data_gen.instruction_pretrain.tuning import Tuning, TuningConfig, TuningSource
from data_gen.stages.stage import run_stage
from ipt_jax.core.records import RecordSource


def example(*pairs: Pair) -> Example:
    return Example("set/1", "set", "A text.", pairs)


def test_an_answer_of_the_text_is_a_wrong_option_once() -> None:
    asked = example(
        Pair("Who?", "Ann"), Pair("Where?", "Rome"), Pair("And who?", "ann"), Pair("When?", "noon")
    )
    own, places = {"ann", "rome", "noon"}, set()
    for seed in range(40):
        drawn = ["Bea", "Cay", "Dan", "Eve"]
        made, left = in_pattern(asked, MULTIPLE_CHOICE, drawn, np.random.default_rng(seed))
        assert made is not None and left == ()
        wrong: list[str] = []
        for before, after in zip(asked.pairs, made.pairs, strict=True):
            assert replace(after, options=()) == before
            others = list(after.options)
            others.remove(before.response)  # as it is spelt there
            assert before.response.lower() not in {one.lower() for one in others}
            wrong += others
        again = [one for one in wrong if one.lower() in own]
        assert len(set(again)) == len(again) and set(wrong) & set(drawn)
        places.add(made.pairs[0].options.index("Ann"))
    assert places >= {0, 1, 2}


def test_a_pair_that_cannot_be_in_a_pattern_is_given_back() -> None:
    generator = np.random.default_rng(0)
    alone = example(Pair("Who?", "Ann"))
    assert in_pattern(alone, MULTIPLE_CHOICE, ["Ann", "ANN"], generator) == (None, alone.pairs)
    listed = example(Pair("Which?", "one\ntwo"), Pair("Who?", "Ann"))
    generator = np.random.default_rng(1)
    made, left = in_pattern(listed, MULTIPLE_CHOICE, ["Bea", "x\ny"], generator)
    assert made is not None and left == listed.pairs[:1]
    assert sorted(made.pairs[0].options) == ["Ann", "Bea"]

    chosen = example(
        Pair("Who?", "Ann", ("Ann", "Bea")),
        Pair("Who?", "Cay", ("Cay", "Dan")),
        Pair("Why?", "None of the above .", ("None of the above .", "Rain")),
    )
    made, left = in_pattern(chosen, FREE_FORM, ["x"], generator)
    assert made == example(Pair("Who?", "Ann")) and left == chosen.pairs[1:]


@pytest.mark.parametrize(
    ("dataset", "folder", "files", "patterns"),
    [
        ("fairytaleqa", "fairytaleqa", None, [MULTIPLE_CHOICE]),
        ("cosmosqa", "cosmosqa", ["valid.csv"], [FREE_FORM]),
        ("aqua", "aqua", ["dev.json"], [FREE_FORM, WITHOUT_RATIONALE]),
        ("pubmedqa", "pubmedqa", None, [MULTIPLE_CHOICE, WITHOUT_RATIONALE]),
    ],
)
def test_every_pattern_of_a_real_set_keeps_question_and_answer(
    shared: Path, dataset: str, folder: str, files: list[str] | None, patterns: list[str]
) -> None:
    found = gather(
        DATASETS[dataset], shared / "data" / folder, files=files, most_examples=40
    ).examples
    assert other_patterns(found) == patterns
    answers = [pair.response for one in found for pair in one.pairs]
    generator = np.random.default_rng(0)
    for pattern in patterns:
        kept = 0
        for one in found:
            made, left = in_pattern(one, pattern, answers, generator)
            pairs = made.pairs if made else ()
            assert len(pairs) + len(left) == len(one.pairs)
            gold = {(pair.instruction, pair.response) for pair in one.pairs}
            assert {(pair.instruction, pair.response) for pair in pairs} <= gold
            for pair in pairs:
                shown = render_pairs([pair])
                assert ("\nOptions:\n- " in shown) == bool(pair.options)
                assert bool(pair.options) == (
                    pattern == MULTIPLE_CHOICE or (pattern != FREE_FORM and dataset == "aqua")
                )
                assert ("step by step" in shown) == (
                    pattern != WITHOUT_RATIONALE and dataset in ("aqua", "pubmedqa")
                )
            kept += len(pairs)
        asked = [len({pair.instruction for pair in one.pairs}) for one in found]
        assert kept > 0.9 * sum(
            asked if pattern == FREE_FORM else [len(one.pairs) for one in found]
        )


def test_sequences_keep_to_one_pattern_and_nothing_is_lost(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("mistral_common", reason="carries the Mistral tokenizer")
    config = TuningConfig(
        sources=[TuningSource("cosmosqa", "cosmosqa", files=["valid.csv"], most_examples=500)],
        root=str(shared / "data"),
        output=str(tmp_path / "made"),
        sequence_tokens=900,
        held_out_examples=5,
        unique_instructions=True,
        other_patterns=0.5,
    )
    counts = run_stage(Tuning(config))["datasets"]["cosmosqa"]
    made = RecordSource(tmp_path / "made" / "shards")
    with_options = without = 0
    for record in made.read(range(len(made))):
        assert record.parts is not None
        written = record.parts[2::4]
        assert len({"\nOptions:\n- " in pairs for pairs in written}) == 1
        for pairs in written:
            asked = [piece.split("\nOptions:")[0].lower() for piece in pairs.split("<QUE>")[1:]]
            asked = [one.split("<ans>")[0].strip() for one in asked]
            assert len(set(asked)) == len(asked)
        if "\nOptions:\n- " in written[0]:
            with_options += len(written)
        else:
            without += len(written)
    assert 0.35 < without / (with_options + without) < 0.65
    assert counts["rejected"]["repeated_question"] > 100
    assert counts["rejected"]["not_in_that_pattern"] > 0
    assert counts["questions"] == (
        counts["tuned_pairs"]
        + counts["held_out_pairs"]
        + counts["surplus_pairs"]
        + sum(counts["rejected"].values())
    )
