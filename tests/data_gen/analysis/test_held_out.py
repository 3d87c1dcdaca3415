"""The file of held-out examples: written, read back, refused with its line named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_gen.instruction_pretrain.analysis.held_out import (
    HeldOut,
    draw_examples,
    held_out_line,
    read_held_out,
)
from data_gen.instruction_pretrain.collection import Example
from data_gen.instruction_pretrain.formats import Pair, Shot
from ipt_jax.core.errors import UserError

PAIRS = (
    Pair("What?", "That."),
    Pair("Which?", "b", ("a", "b")),
    Pair("Why?", "c", (), "Because\u2028of this."),
)
SHOT = Shot("Another text.", (Pair("Who?", "She.", ("He.", "She."), "So."),))


def value(**changes: Any) -> dict[str, Any]:
    line = held_out_line(Example("squad/1", "squad", "A text.", PAIRS), [SHOT], False)
    return {**json.loads(line), **changes}


def write(path: Path, *values: object) -> Path:
    path.write_text("".join(f"{json.dumps(one)}\n" for one in values), encoding="utf-8")
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    example = Example("squad/1", "squad", "A text\nwith lines.", PAIRS)
    other = Example("fever/1", "fever", "Other.", (PAIRS[0],))
    path = tmp_path / "held_out.jsonl"
    lines = [held_out_line(example, [SHOT], False), held_out_line(other, [example], True)]
    assert not any("\n" in line for line in lines)
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    assert read_held_out(path) == [
        HeldOut("squad/1", "squad", example.text, PAIRS, (SHOT,), False),
        HeldOut("fever/1", "fever", "Other.", PAIRS[:1], (Shot(example.text, PAIRS),), True),
    ]


@pytest.mark.parametrize(
    ("second", "key"),
    [
        ([1], "the line"),
        ({"id": "x"}, "dataset"),
        (value(), "id"),
        (value(id="x", unseen=True), "unseen"),
        (value(id="x", unseen="no"), "unseen"),
        (value(id="x", shots=None), "shots"),
        (value(id="x", text=" "), "text"),
        (value(id="x", pairs=[]), "pairs"),
        (value(id="x", pairs=[{"instruction": "a", "response": "b"}]), "pairs.0.options"),
        (
            value(id="x", pairs=[{"instruction": "a", "response": "b", "options": [1]}]),
            "pairs.0.options.0",
        ),
        (
            value(id="x", shots=[{"text": "t", "pairs": [{"instruction": "", "response": "b"}]}]),
            "shots.0.pairs.0.instruction",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, second: object, key: str) -> None:
    path = write(tmp_path / "held_out.jsonl", value(), second)
    with pytest.raises(UserError, match=r"held_out.jsonl:2: ") as caught:
        read_held_out(path)
    assert (caught.value.key, caught.value.path, caught.value.record) == (key, path, "2")


def test_a_missing_an_empty_and_a_torn_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_held_out(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="holds no example"):
        read_held_out(write(tmp_path / "empty.jsonl"))
    path = write(tmp_path / "torn.jsonl", value())
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"torn.jsonl:1: not JSON"):
        read_held_out(path)


def test_so_many_of_each_data_set_are_drawn_in_file_order() -> None:
    examples = [
        HeldOut(f"{name}/{n}", name, f"Text {n}", PAIRS, (), False)
        for n in range(20)
        for name in ("squad", "coqa")
    ]
    drawn = draw_examples(examples, 5, seed=1)
    assert [examples.index(one) for one in drawn] == sorted(map(examples.index, drawn))
    names = [one.dataset for one in drawn]
    assert names.count("squad") == names.count("coqa") == 5
    assert drawn == draw_examples(examples, 5, seed=1)
    assert drawn != draw_examples(examples, 5, seed=2)
    # Each data set has draws of its own: not the same places of both.
    assert {o.id[-1] for o in drawn if o.dataset == "squad"} != {
        o.id[-1] for o in drawn if o.dataset == "coqa"
    }
    assert draw_examples(examples, None, seed=1) == examples
