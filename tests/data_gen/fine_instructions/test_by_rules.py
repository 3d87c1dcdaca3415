"""Templates and pairs without a model: they pass the gates of those that a model writes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen.engines import Completion
from data_gen.fine_instructions.excerpts import Source
from data_gen.fine_instructions.genericize import Genericize, GenericizeConfig
from data_gen.fine_instructions.instantiate import (
    Instance,
    Instantiate,
    InstantiateConfig,
    read_instance,
)
from data_gen.fine_instructions.rules import find_spans, reply_by_rules, template_by_rules
from data_gen.fine_instructions.templates import check_template
from data_gen.stages.page import synthesis_report
from data_gen.stages.stage import run_stage
from ipt_jax.core.records import Record
from tests.data_gen.fine_instructions.stages import records_of, rejected_of, write_shards

DOCUMENT = (
    "Baking is old. Bread was known early, and in 1905 the baker Otto Frederick Rohwedder began to "
    "build a machine for slicing bread. It cut 12 loaves a minute.\n\n"
    "Rivers are another thing. The Angara flows out of Lake Baikal, which is 1,642 metres deep, "
    "and ends in the Yenisei near the town of Strelka. Its water is clear all year."
)


@pytest.mark.parametrize(
    ("query", "template"),
    [
        ('what does "to be" mean', "what does <fi>quoted text or code</fi> mean"),
        ("Did Ada Lovelace write in May 1843?",
         "Did <fi>name of a person, place or thing</fi> write in <fi>date or year</fi>?"),
        ("a tent for 4 that costs $1,200.50 or less",
         "a tent for <fi>number or amount</fi> that costs <fi>number or amount</fi> or less"),
        ("is https://a.org/b?c safe", "is <fi>web address</fi> safe"),
        ("who sings the song in the dark knight",
         "who sings the song in the <fi>place, field or time</fi>"),
        (" why does rust form? ", "why does <fi>subject</fi>?"),
        ("rust", "rust"),
        ("Where is it?", "Where is it?"),
    ],
)  # fmt: skip
def test_what_belongs_to_a_query_alone_is_left_open(query: str, template: str) -> None:
    assert template_by_rules(query).text == template


def test_a_template_says_of_which_documents_it_is() -> None:
    found = template_by_rules("How deep are the lakes of Finland in 1990?")
    assert found.documents.startswith("A text that speaks of a name of a person, place or thing, a")
    assert found.documents.endswith("answers: deep lake")


@given(st.lists(st.sampled_from(
    "who Who The of in for 12 1999 March Paris Anna rust \"x y\" . ? , why é\n ``` $3".split(" ")
), min_size=1, max_size=14))  # fmt: skip
def test_any_query_gives_a_template_or_nothing_to_leave_open(words: list[str]) -> None:
    query = " ".join(words)
    found = template_by_rules(query)
    wrong = check_template(found.text, query)
    assert wrong is None or wrong.reason in ("no_tag", "whole_query")
    spans = find_spans(query)
    assert all(one.end <= two.start for one, two in pairwise(spans))


def made(template: str, chunk: int = 0) -> tuple[str, str] | None:
    reply = reply_by_rules(DOCUMENT, template, chunk)
    found = read_instance(Completion("r", reply, "stop", 1, 1), Source(DOCUMENT), 0.8)
    if not isinstance(found, Instance):
        assert found.reason == "null"
        return None
    return found.instruction.text, found.answer.text


def test_the_sentences_that_a_template_speaks_of_answer_it() -> None:
    who = "who built the first machine to cut bread in <fi>year</fi>, <fi>name of a person</fi>?"
    found = made(who)
    assert found is not None
    assert found[0] == (
        "who built the first machine to cut bread in 1905, Otto Frederick Rohwedder?"
    )
    assert found[1] == DOCUMENT[DOCUMENT.index("Bread was") : DOCUMENT.index("\n\n")]
    deep = made("how deep is <fi>name of a lake</fi> with <fi>number</fi> metres")
    assert deep is not None and deep[0] == "how deep is Angara with 1,642 metres"
    assert deep[1].startswith("The Angara flows") and deep[1].endswith("all year.")
    # The fourth chunk knows nothing of bread; a template without words of its own fits anywhere.
    assert made("slicing bread by a machine for <fi>a purpose</fi>", chunk=4) is None
    last = made("how to <fi>action</fi>", chunk=4)
    assert last is not None and last[1].startswith("The Angara")
    assert (
        made("Is it <fi>a</fi>, <fi>b</fi> or " + "".join(f"<fi>{n}</fi>" for n in range(40)))
        is None
    )
    assert reply_by_rules("", who, 0) == reply_by_rules(" \n", who, 3) == "null"


def test_both_stages_run_without_a_model(tmp_path: Path) -> None:
    queries = [Record("q0", "Did Ada write in 1843?", "s"), Record("q1", "rust", "s")]
    config = GenericizeConfig(input=[write_shards(tmp_path / "q", queries)], form="rules",
                              output=str(tmp_path / "templates"))  # fmt: skip
    summary = run_stage(Genericize(config))
    assert summary["templates"] == 1 and rejected_of(tmp_path / "templates") == {"q1": "no_tag"}
    (record,) = records_of(tmp_path / "templates/shards/templates")
    assert (record.provenance["model"], record.provenance["sampling"]) == ("none", {})
    assert "No model was asked." in synthesis_report(tmp_path / "templates").read_text()
    templates = [{"id": "t", "text": "how deep is <fi>a lake</fi>", "chunk": 0, "score": 1.0}]
    document = Record("d", DOCUMENT, "s", provenance={"templates": templates})
    asked = InstantiateConfig(
        input=[write_shards(tmp_path / "d", [document])], form="rules", tokenizer="mistral-7b-v0.1",
        output=str(tmp_path / "pairs"),
    )  # fmt: skip
    assert run_stage(Instantiate(asked))["pairs"] == 1
    (pair,) = records_of(tmp_path / "pairs/shards/pairs")
    assert pair.provenance["model"] == "none" and json.loads(pair.provenance["reply"])
    assert run_stage(Instantiate(asked))["pairs"] == 1
