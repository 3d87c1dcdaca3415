"""Queries to templates, and documents to descriptions: what counts, and what is rejected."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen.engines import EngineConfig
from data_gen.engines.replies import parse_json_object
from data_gen.fine_instructions.descriptions import Describe, DescribeConfig
from data_gen.fine_instructions.genericize import (
    Genericize,
    GenericizeConfig,
    mend_template,
    render_reply,
    template_from_spans,
)
from data_gen.fine_instructions.prompts import _SPANS_SHOTS, _TEMPLATE_SHOTS
from data_gen.fine_instructions.templates import Template, check_template
from data_gen.stages.asking import json_regex, json_text_regex
from data_gen.stages.stage import run_stage
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record
from ipt_jax.core.rejection import Reason
from tests.data_gen.analysis.scripted import ScriptedEngine
from tests.data_gen.fine_instructions.stages import (
    records_of,
    rejected_of,
    run_stopped_and_whole,
    write_shards,
)

GOOD = "what effects does <fi>a disease</fi> have on <fi>an organ</fi>?"
# Query -> what is said of it: its template, then the spans.
SAID: dict[str, tuple[str, str]] = {
    "what effects does gout have on the heart?": (json.dumps({"template": GOOD}), ""),
    "Who wrote Emma?": ('{"template": "Who authored <fi>a book</fi>?"}',
                        '{"spans": [{"text": "Emma", "description": "title of a book"}]}'),
    "Is Oslo or Bergen older?": ("no JSON", '{"spans": [{"text": "Bergen", "description": "a city"}'
                                 ', {"text": "Oslo", "description": "a city"}]}'),
    "Sum up this.": ('{"template": "<fi>all of it</fi>"}',
                     '{"spans": [{"text": "that", "description": "x"}]}'),
    "Why is it late?": ('{"template": "Why is <fi>it late?"}', '{"spans": []}'),
    "why does rust form": ('{"template": "Why does <fi>a thing</fi> form?"}', ""),
    "How old is Rome?": ('{"template": "How old is <fi>a city</fi>?"}', ""),
}  # fmt: skip
DESCRIBED = "An article about\n such  things."


def say(prompt: str) -> str | None:
    query = prompt.rpartition("<<<")[2].partition(":\n")[2].rpartition("\n>>>")[0]
    if prompt.rpartition("<<<")[2].startswith("Instruction Template"):
        described = {"compatible_document_description": DESCRIBED}
        return None if query.startswith("How old") else json.dumps(described)
    return SAID[query]["Quote the spans" in prompt]


def corpus(folder: Path) -> list[str]:
    queries = [
        Record(f"q{n}", text, "wildchat" if n % 2 else "gooaq",
               provenance={"talks_to_a_model": n % 2 == 1})
        for n, text in enumerate([*SAID, "What does <fi> mean?"])
    ]  # fmt: skip
    return [write_shards(folder / "in", queries)]


def test_queries_become_templates_or_are_rejected_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    given = corpus(tmp_path)

    def make(name: str) -> Genericize:
        return Genericize(
            GenericizeConfig(
                input=given,
                output=str(tmp_path / name),
                records_per_shard=2,
                engine=EngineConfig(max_failed_share=1.0),
            )
        )

    summary, asked = run_stopped_and_whole(make, say, after=7)
    assert summary["documents_in"] == 8 and summary["templates"] == 4 and summary["repaired"] == 3
    assert summary["plain_reasons"] == {"no_span": 1, "no_spans": 1, "engine_error": 1}
    # What was repaired is told of too.
    assert summary["rejected_pieces"] == {
        "changed": 2, "no_json": 1, "whole_query": 1, "unbalanced_tag": 1,
        "no_span": 1, "no_spans": 1, "engine_error": 1,
    }  # fmt: skip
    assert rejected_of(tmp_path / "whole")["q7"] == "tag_in_query"
    made = {one.provenance["query"]: one for one in records_of(tmp_path / "whole/shards/templates")}
    first = made["what effects does gout have on the heart?"]
    assert (first.id, first.text, first.source) == ("fi_templates/q0", GOOD, "fi_templates")
    told = {key: first.provenance[key] for key in (
        "parents", "query_source", "talks_to_a_model", "documents", "complexity", "repaired"
    )}  # fmt: skip
    assert told == {
        "parents": ["q0"], "query_source": "gooaq", "talks_to_a_model": False,
        "documents": "An article about such things.", "complexity": 2, "repaired": False,
    }  # fmt: skip
    assert made["why does rust form"].text == "why does <fi>a thing</fi> form"
    repaired = made["Is Oslo or Bergen older?"]
    assert repaired.text == "Is <fi>a city</fi> or <fi>a city</fi> older?"
    assert made["Who wrote Emma?"].provenance["talks_to_a_model"] is True
    assert [turn.id for turn in asked if turn.id.startswith("q1/")] == [
        "q1/template", "q1/spans-0", "q1/description",
    ]  # fmt: skip
    assert "authored" not in repaired.text and all(one.sampling.regex is None for one in asked)


def test_a_tuned_model_reads_the_query_alone(tmp_path: Path) -> None:
    template = Template(GOOD, "An article about a disease.")
    replies = [render_reply(template), render_reply(Template(GOOD, "On <fi>a thing</fi>.")), "{}"]
    query = "what effects does gout have on the heart?"
    engine = ScriptedEngine(lambda prompt: replies[len(prompt) - len(query)])
    queries = [Record(f"q{n}", query + " " * n, "s") for n in range(3)]
    config = GenericizeConfig(
        input=[write_shards(tmp_path / "in", queries)],
        output=str(tmp_path / "out"),
        form="tuned",
        chat=False,
        engine=EngineConfig(constrain=True),
    )
    summary = run_stage(Genericize(config), engine=engine)
    assert summary["plain_reasons"] == {"tag_in_description": 1, "no_template": 1}
    (record,) = records_of(tmp_path / "out/shards/templates")
    assert Template(record.text, record.provenance["documents"]) == template
    asked = {one.prompt: one.sampling.regex for one in engine.asked}
    assert asked.keys() == {query, f"{query} ", f"{query}  "}
    assert all(re.fullmatch(regex, replies[0]) for regex in asked.values() if regex)
    with pytest.raises(UserError) as refused:
        small = ScriptedEngine(str, context_tokens=300)
        run_stage(Genericize(replace(config, output=str(tmp_path / "small"))), engine=small)
    assert refused.value.key == "engine.max_tokens"


@given(st.data())
def test_spans_of_a_query_give_a_template_of_it(data: st.DataObject) -> None:
    words = data.draw(st.lists(st.text("abcé.,?'", min_size=1, max_size=5), min_size=2, max_size=9))
    query = " ".join(words)
    chosen = data.draw(st.sets(st.integers(0, len(words) - 1), min_size=1, max_size=len(words) - 1))
    spans = [(words[place], f"word {place}") for place in sorted(chosen)]
    found = template_from_spans(query, spans)
    assert isinstance(found, str)  # each word stands where it stood, or before
    assert check_template(found, query) is None
    assert Template(found, "").variables == tuple(description for _, description in spans)
    lost = template_from_spans(query, [*spans, ("absent", "x")])
    assert isinstance(lost, Reason) and lost.reason == "no_span"
    bad = template_from_spans(query, [(words[0], "<fi>x")])
    assert isinstance(bad, Reason) and bad.reason == "bad_description"


@pytest.mark.parametrize(
    ("query", "text", "mended"),
    [
        ("who holds the record", "Who holds <fi>a thing</fi>?", "who holds <fi>a thing</fi>"),
        ("Who wrote\nEmma?", "who wrote <fi>a book</fi>", "Who wrote\n<fi>a book</fi>?"),
        ("is  a or b older", "Is <fi>x</fi> OR <fi>y</fi> older.",
         "is  <fi>x</fi> or <fi>y</fi> older"),
        ("Emma, who wrote it?", "<fi>a book</fi>,  who wrote it", "<fi>a book</fi>, who wrote it?"),
        ("play a b c", "play <fi>x</fi> <fi>y</fi>", "play <fi>x</fi> <fi>y</fi>"),
        ("Who wrote Emma?", "Who authored <fi>a book</fi>?", None),
        ("Who wrote Emma?", "Who wrote Emma<fi>a book</fi>?", None),
        ("Who wrote Emma", "Who wrote Emma<fi>a book</fi>?", None),
        ("Who wrote", "who <fi>x</fi> wrote?", None),
        ("Who wrote Emma?", "who wrote Emma", None),
        ("Who wrote Emma?", "who wrote <fi>x", None),
    ],
)  # fmt: skip
def test_templates_are_mended_where_their_words_are_the_querys(
    query: str, text: str, mended: str | None
) -> None:
    assert mend_template(text, query) == mended


def test_the_examples_of_the_prompts_are_templates_themselves() -> None:
    for query, text in _TEMPLATE_SHOTS:
        assert check_template(text, query) is None
    for query, spans in _SPANS_SHOTS:
        assert check_template(str(template_from_spans(query, spans)), query) is None


@given(st.text(max_size=30), st.text(max_size=30))
def test_a_reply_of_a_tuned_model_is_read_back(text: str, documents: str) -> None:
    written = render_reply(Template(text, documents))
    assert parse_json_object(written) == {
        "template": text, "compatible_document_description": documents,
    }  # fmt: skip


def test_a_pattern_of_json_allows_what_json_allows() -> None:
    values = {"a": json_text_regex(1, 5), "b": json_text_regex(1, 20, "<")}
    pattern = json_regex(values, null=True)
    for fits in ('{"a": "x\\"y<", "b": "é fi>"}', "null"):
        assert re.fullmatch(pattern, fits)
    for fits_not in (
        *('{"a": "x"}', '{"a": "", "b": "y"}', '{"a": "x"y", "b": "z"}', "nul"),
        *('{"a": "x", "b": "<y"}', '{"a": "x\ny", "b": "z"}'),
    ):
        assert not re.fullmatch(pattern, fits_not)


def test_documents_are_described_or_told_of(tmp_path: Path) -> None:
    said: dict[str, Any] = {
        "A": '{"description": "Facts  about\\n letters."}', "B": '{"description": " "}',
        "C": "It is long.", "D": json.dumps({"description": "x" * 901}),
        "E": '{"description": "e"}',
    }  # fmt: skip
    documents = [Record(f"d{name}", f"Letter {name}", "s") for name in said]
    documents.append(Record("long", "word " * 4000, "s"))
    given = [write_shards(tmp_path / "in", documents)]

    def make(name: str) -> Describe:
        output = str(tmp_path / name)
        return Describe(DescribeConfig(input=given, output=output, records_per_shard=2))

    def describe(prompt: str) -> str:
        return said[re.search("Letter (.)", prompt)[1]]  # type: ignore[index]

    summary, _ = run_stopped_and_whole(make, describe, after=3)
    assert summary["documents_augmented"] == 2 and summary["rejected_documents"] == {"too_long": 1}
    assert summary["plain_reasons"] == {"no_description": 1, "no_json": 1, "long_description": 1}
    made = records_of(tmp_path / "whole/shards/descriptions")
    assert [(one.id, one.text) for one in made] == [
        ("fi_descriptions/dA", "Facts about letters."), ("fi_descriptions/dE", "e"),
    ]  # fmt: skip
    assert made[0].provenance["parents"] == ["dA"]
