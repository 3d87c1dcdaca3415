"""Pairs: the published parser's behaviour, the four formats there and back."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen.instruction_pretrain.formats import (
    Pair,
    Shot,
    pairs_regex,
    parse_pairs,
    render_example,
    render_pair,
    render_pairs,
    render_prompt,
)


@pytest.mark.parametrize(("key", "unique"), [("pairs", False), ("pairs_dedup", True)])
def test_parses_as_the_published_parser(golden: Any, key: str, unique: bool) -> None:
    cases = golden("ipt_parse.json")["cases"]
    for case in cases:
        parsed = parse_pairs(case["generated"], unique_questions=unique)
        assert [{"Q": p.question, "A": p.answer} for p in parsed.pairs] == case[key]
    assert len(cases) > 20


@pytest.mark.parametrize(
    ("generated", "reasons"),
    [
        ("<QUE> a </END>", ["no_answer"]),
        ("stray <ANS> b </END>", ["no_question"]),
        ("<QUE> a <ANS> b <ANS> c </END>", ["several_answers"]),
        ("<QUE>  <ANS> b </END>", ["empty_question"]),
        ("<QUE> a <ANS>  </END>", ["empty_answer"]),
        ("<QUE> a <ANS> b\0 </END>", ["control_character"]),
        ("<QUE> a\x1b[2J <ANS> b </END><QUE> a <ANS> \x85c\x84 </END>", ["control_character"] * 2),
        ("<QUE> a\tb <ANS> c\r\nd </END>", []),
        ("<QUE> a <ANS> b </END>\n\n<QUE> A <ANS> c </END>", ["duplicate_question"]),
        ("<QUE> a <ANS> b", ["unfinished"]),
        ("<QUE> a <ANS> b </END></s>", []),
        ("", []),
    ],
)
def test_every_rejected_piece_has_its_reason(generated: str, reasons: list[str]) -> None:
    assert [piece.reason for piece in parse_pairs(generated).rejected] == reasons


def test_pairs_past_the_most_are_surplus() -> None:
    generated = render_pairs([Pair(str(number), "x") for number in range(5)])
    parsed = parse_pairs(generated, max_pairs=3)
    assert len(parsed.pairs) == 3
    assert [piece.reason for piece in parsed.rejected] == ["surplus", "surplus"]


def test_the_four_formats_are_those_of_table_7() -> None:
    options = ("red", "blue")
    assert render_pair(Pair("Why?", "So.")) == "<QUE> Why? <ANS> So. </END>"
    assert render_pair(Pair("Which?", "red", options)) == (
        "<QUE> Which?\nOptions:\n- red\n- blue <ANS> red </END>"
    )
    assert render_pair(Pair("Why?", "So", rationale="Thus.")) == (
        "<QUE> Why?\nLet's think step by step. <ANS> Thus.\nTherefore, the answer is So </END>"
    )
    assert render_pair(Pair("Which?", "red", options, "Thus.")) == (
        "<QUE> Which?\nOptions:\n- red\n- blue\nLet's think step by step. <ANS> Thus.\n"
        "Therefore, the answer is red </END>"
    )


def test_an_example_has_one_space_after_bos_and_ends_with_eos() -> None:
    example = render_example("A text.", [Pair("Why?", "So.")])
    assert example == "<s> <CON> A text. </CON>\n\n<QUE> Why? <ANS> So. </END></s>"
    assert render_prompt([Shot("A text.", (Pair("Why?", "So."),))], "B") == (
        example + "<s> <CON> B </CON>\n\n"
    )


words = st.text(
    st.characters(exclude_characters="<>\n\r", exclude_categories=["C", "Z"]), min_size=1
)
lines = st.lists(words, min_size=1, max_size=5).map(" ".join)
pairs = st.builds(
    Pair,
    instruction=lines,
    response=lines,
    options=st.lists(lines, max_size=4).map(tuple),
    rationale=st.none() | lines,
)


@given(st.lists(pairs, max_size=5))
def test_every_format_comes_back_from_its_text(written: list[Pair]) -> None:
    parsed = parse_pairs(render_pairs(written), unique_questions=False)
    assert list(parsed.pairs) == written
    assert not parsed.rejected


@given(st.text(), st.text())
def test_structure_never_changes_the_strings(question: str, answer: str) -> None:
    pair = Pair.from_strings(question, answer)
    assert (pair.question, pair.answer) == (question, answer)


tags = st.lists(st.sampled_from([*"ab \n", "<QUE>", "<ANS>", "</END>"])).map("".join)


@given(tags | st.text())
def test_no_piece_is_lost(generated: str) -> None:
    parsed = parse_pairs(generated)
    pieces = generated.split("</END>")
    tail = 1 if pieces[-1].strip() not in ("", "</s>") else 0
    assert len(parsed.pairs) + len(parsed.rejected) == len(pieces) - 1 + tail


def test_the_pattern_for_constrained_decoding_gives_parsable_pairs() -> None:
    pattern = re.compile(pairs_regex(2, 3))
    three = render_pairs([Pair(f"What is number {n}?", f"It is {n}.") for n in range(3)])
    assert pattern.fullmatch(three)
    assert not pattern.fullmatch(three.split("\n\n")[0])
    assert not pattern.fullmatch(three + "\n\n" + three)
    with pytest.raises(ValueError, match="min_pairs"):
        pairs_regex(3, 2)
