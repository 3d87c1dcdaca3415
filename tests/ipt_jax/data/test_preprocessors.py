"""Preprocessors: what they make of a record, alone and in a source."""

import functools
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipt_jax.core.errors import DamagedRecord, UserError
from ipt_jax.core.records import Record, ShardWriter
from ipt_jax.data.mixture import parse_mixture
from ipt_jax.data.sources import open_source
from ipt_jax.data.tasks import (
    Task,
    pair,
    preprocessors,
    register_preprocessor,
    unregister_preprocessor,
)

ROWS = [
    {"id": "q1", "question": "Why is the sky blue?", "answer": "Because of né.", "title": "Sky"},
    {"id": "q2", "question": "And red?", "answer": "", "title": "Sky"},
]
PAIR = {"pair": {"instruction": "question", "response": "answer"}}


def source(folder: Path, rows: list[dict[str, Any]], *asked: Any, **keys: Any) -> Any:
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_source(Task("t", str(folder / "x.jsonl"), preprocessors=asked, **keys))


def test_pairs_have_the_papers_form_and_loss_on_the_response(tmp_path):
    """FineInstructions: Instruction, an empty line, Answer."""
    records = source(tmp_path, ROWS, PAIR).read([0, 1])
    before = "Instruction: Why is the sky blue?\n\nAnswer: "
    assert records[0] == Record(
        "q1", before + "Because of né.", "x", (before, "Because of né."), (0.0, 1.0)
    )
    assert records[1].parts == ("Instruction: And red?\n\nAnswer: ", "")


def test_preprocessors_work_in_their_order(tmp_path):
    join = {"join": {"keys": ["title", "question"], "by": ": "}}
    assert source(tmp_path, ROWS, join).read([1])[0].text == "Sky: And red?"
    rows = [{"body": "  padded \n"}]
    assert source(tmp_path, rows, "strip", text_key="body").read([0])[0].text == "padded"
    with pytest.raises(DamagedRecord, match=r"line 1 of .*'strip' refuses it.*before `pair`"):
        source(tmp_path, ROWS, PAIR, "strip").read([0])


def test_a_record_that_lacks_what_is_asked_is_named(tmp_path):
    rows = [*ROWS, {"id": "q3", "question": 7}]
    with pytest.raises(DamagedRecord, match=r"line 3 of .*'pair' refuses it: `question` is a int"):
        source(tmp_path, rows, PAIR).read([2])
    with pytest.raises(DamagedRecord, match=r"`instruction` is missing.*'question'"):
        source(tmp_path, rows, "pair").read([0])


def test_our_own_shards_are_preprocessed_too(tmp_path):
    with ShardWriter(tmp_path / "own") as writer:
        writer.write(Record("a", " text ", "corpus", provenance={"seed": 1}))
    opened = open_source(Task("t", str(tmp_path / "own"), preprocessors=("strip",)))
    assert pickle.loads(pickle.dumps(opened)).read([0]) == [
        Record("a", "text", "corpus", provenance={"seed": 1})
    ]
    plain = open_source(Task("t", str(tmp_path / "own")))
    assert opened.fingerprint != plain.fingerprint  # so that each has its own length index
    assert opened.where(0) == plain.where(0)


def test_settings_are_part_of_the_fingerprint(tmp_path):
    other = {"pair": {**PAIR["pair"], "before": "Q: "}}
    made = [source(tmp_path, ROWS, *asked) for asked in ((PAIR,), (other,), (PAIR, PAIR), (PAIR,))]
    prints = [opened.fingerprint for opened in made]
    assert len(set(prints)) == 3
    assert prints[0] == prints[3]


def shout(fields: dict[str, Any], *, by: str = "!") -> dict[str, Any]:
    return {**fields, "text": fields["text"].upper() + by}


def test_one_of_the_users_own(tmp_path):
    try:
        register_preprocessor("shout", shout)
        register_preprocessor("shout", shout)  # the same again does no harm
        with pytest.raises(UserError, match="already registered as 'shout'"):
            register_preprocessor("shout", functools.partial(shout, by="?"))
        rows = [{"text": "hear"}]
        opened = pickle.loads(pickle.dumps(source(tmp_path, rows, {"shout": {"by": "!!"}})))
        assert opened.read([0])[0].text == "HEAR!!"
    finally:
        unregister_preprocessor("shout")
    with pytest.raises(UserError, match=r"no preprocessor 'shout'"):
        preprocessors(("shout",))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            "[pairs]",
            "preprocessors: there is no preprocessor 'pairs'. The nearest is 'pa",
        ),
        (
            "[{pair: {question: q}}]",
            "'pair' has wrong settings: got an unexpected keyword argument",
        ),
        ("[join]", "'join' has wrong settings: missing a required"),
        ("[{pair: {}, strip: {}}]", "should be one preprocessor"),
        ("pair", "preprocessors='pair': must be a list"),
    ],
)
def test_what_a_bad_mixture_gets(asked, message):
    content = {"tasks": {"a": {"source": "x", "preprocessors": yaml.safe_load(asked)}}}
    with pytest.raises(UserError) as told:
        parse_mixture(content, where="m.yaml")
    assert (told.value.key, told.value.path) == ("tasks.a.preprocessors", "m.yaml")
    assert message in str(told.value)


def test_the_form_may_be_another():
    made = pair({"instruction": "a", "response": "b"}, before="Q: ", between="\nA: ")
    assert made["text"] == "Q: a\nA: b"
