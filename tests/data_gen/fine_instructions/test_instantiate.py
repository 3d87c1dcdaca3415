"""Templates filled in and answered: every gate, null, what a pair's record says, stop and go on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_gen.engines import Completion, EngineConfig
from data_gen.fine_instructions.excerpts import Source
from data_gen.fine_instructions.instantiate import (
    Instance,
    Instantiate,
    InstantiateConfig,
    matched_templates,
    pair_parts,
    read_instance,
)
from data_gen.fine_instructions.prompts import _INSTANTIATE_SHOTS
from data_gen.stages.stage import estimate_stage, run_stage
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record
from ipt_jax.core.rejection import Reason
from ipt_jax.data.tasks import pair
from tests.data_gen.analysis.scripted import ScriptedEngine
from tests.data_gen.fine_instructions.stages import (
    records_of,
    rejected_of,
    run_stopped_and_whole,
    write_shards,
)

DOCUMENT = (
    "The town hall of Leiden burned down in 1929, and only its front wall was left standing. "
    "It was rebuilt between 1932 and 1940 by the architect Dudok, behind the old front. "
    "The carillon in its tower plays on market days, and visitors may climb up to see the bells. "
    "Eine Tafel am Eingang erinnert bis heute an die Nacht, in der das alte Rathaus brannte."
)
ALL = "<excerpt>The town hall<...>left standing.</excerpt>"
GERMAN = "<excerpt>Eine Tafel<...>brannte.</excerpt>"


def said(answer: object, instruction: object = "What happened to the town hall of Leiden?") -> str:
    return json.dumps({"instruction": instruction, "answer": answer})


# What a model says -> why it is no pair.
REJECTED = [
    ("null", "null"),
    ("```json\nnull\n```", "null"),
    ("<think>Does it fit?</think> null", "null"),
    (said(None), "null"),
    (said(ALL, None), "null"),
    ("It does not fit.", "no_json"),
    ('{"instruction": "x", "answer": "', "no_json"),
    (said("a") + said("b"), "several"),
    (said(""), "no_answer"),
    (said(["a"]), "no_answer"),
    (json.dumps({"answer": ALL}), "no_instruction"),
    (said(ALL, "What happened to <fi>a building</fi>?"), "tags_left"),
    (said(ALL, "What happened to <FI>a building?"), "tags_left"),
    (said(ALL + " < excerpt >"), "tags_left"),
    (said(ALL + "<...>"), "tags_left"),
    (said("<excerpt>The town hall"), "excerpt_unclosed"),
    (said("<excerpt>The <excerpt>town</excerpt> hall</excerpt>"), "excerpt_nested"),
    (said("<excerpt>The town hall of Delft</excerpt>"), "excerpt_missing"),
    (said("<excerpt>left standing<...>The town hall</excerpt>"), "excerpt_order"),
    (said("<excerpt><...>standing</excerpt>"), "excerpt_empty"),
    (said(ALL + "<excerpt>burned down in 1929</excerpt>"), "excerpt_overlap"),
    (said(ALL, "What of <excerpt>Delft's hall</excerpt>?"), "excerpt_missing"),
    (said("It burned, and what was left was this: <excerpt>its front wall</excerpt>"), "low_share"),
]


@pytest.mark.parametrize(("reply", "reason"), REJECTED)
def test_what_is_no_pair_says_why(reply: str, reason: str) -> None:
    found = read_instance(Completion("r", reply, "stop", 1, 1), Source(DOCUMENT), 0.8)
    assert isinstance(found, Reason) and found.reason == reason


@pytest.mark.parametrize(("why", "reason"), [("length", "cut"), ("error", "engine_error")])
def test_a_reply_that_did_not_end_is_no_null(why: Any, reason: str) -> None:
    found = read_instance(Completion("r", "nul", why, 1, 1), Source(DOCUMENT), 0.8)
    assert isinstance(found, Reason) and found.reason == reason


def test_names_of_the_published_data_are_read_too() -> None:
    reply = json.dumps({"instantiated_instruction": "In <excerpt>Leiden</excerpt>?", "answer": ALL})
    found = read_instance(Completion("r", reply, "stop", 1, 1), Source(DOCUMENT), 0.8)
    assert isinstance(found, Instance)
    assert found.instruction.text == "In Leiden?" and found.answer.share == 1.0
    assert found.answer.text == DOCUMENT[: DOCUMENT.index(" It was")]


def template(name: str, **changes: Any) -> dict[str, Any]:
    return {"id": name, "text": f"{name} of <fi>a thing</fi>?", "chunk": 2, "score": 0.9} | changes


@pytest.mark.parametrize(
    "listed",
    [None, "x", [3], [{"id": "a"}], [template("a", chunk="x")], [template("a", score=float("nan"))],
     [template("a", chunk=-1)], [template("a", text=None)]],
)  # fmt: skip
def test_templates_in_another_form_are_refused(listed: Any) -> None:
    with pytest.raises(ValueError, match="template"):
        matched_templates({"templates": listed})


def say(prompt: str) -> str | None:
    last = prompt.rpartition("<<<Instruction Template:\n")[2].partition(" of <fi>")[0]
    return {
        "good": said(f"In short: {ALL}"), "null": "null", "german": said(GERMAN, "Was steht da?"),
        "none": "?", "error": None, "long": said(ALL, "Why? " * 99),
    }[last]  # fmt: skip


def matches(folder: Path, drawn: Sequence[Sequence[str]]) -> list[str]:
    records = [
        Record(
            f"d{n}",
            DOCUMENT,
            "news",
            provenance={"templates": [template(t) for t in names], "seen_characters": 99},
        )
        for n, names in enumerate(drawn)
    ]
    return [write_shards(folder / "in", [*records, Record("plain", DOCUMENT, "news")])]


def config_of(folder: Path, name: str, given: list[str], **more: Any) -> InstantiateConfig:
    return InstantiateConfig(
        input=given, output=str(folder / name), records_per_shard=2, tokenizer="mistral-7b-v0.1",
        pair_tokens=120, **more,
    )  # fmt: skip


def test_templates_become_pairs_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    drawn = [["good", "null", "german", "none", "long", "good", "good"], ["null"], [], ["none"]]
    given = matches(tmp_path, [*drawn, ["good"]])
    summary, asked = run_stopped_and_whole(
        lambda name: Instantiate(config_of(tmp_path, name, given)), say, after=4
    )
    counts = {key: summary[key] for key in ("templates_asked", "pairs", "null", "pairs_rejected")}
    # Of seven templates six are asked about.
    assert counts == {"templates_asked": 9, "pairs": 3, "null": 2, "pairs_rejected": 4}
    assert summary["null_share"] == 0.2222 and summary["valid_share"] == 0.4286
    assert summary["rejected_pieces"] == {"other_language": 1, "no_json": 2, "long_pair": 1}
    assert summary["plain_reasons"] == {"all_null": 1, "no_templates": 1, "no_pairs": 1}
    assert summary["rejected_documents"] == {"no_templates": 1}
    assert rejected_of(tmp_path / "whole")["d0#2"] == "other_language"
    made = records_of(tmp_path / "whole/shards/pairs")
    assert [one.id for one in made] == ["d0#0", "d0#5", "d4#0"]
    first = made[0]
    answer = "In short: " + DOCUMENT[: DOCUMENT.index(" It was")]
    fields = pair({"instruction": "What happened to the town hall of Leiden?", "response": answer})
    assert (first.text, first.parts, first.loss) == tuple(
        fields[k] for k in ("text", "parts", "loss")
    )
    told = {key: first.provenance[key] for key in (
        "parents", "sources", "template", "chunk", "score", "answer_excerpts",
        "instruction_excerpts", "document_characters", "seen_characters", "method", "model",
    )}  # fmt: skip
    assert told == {
        "parents": ["d0"], "sources": ["news"], "template": "good", "chunk": 2, "score": 0.9,
        "answer_excerpts": [[0, DOCUMENT.index(" It was")]], "instruction_excerpts": [],
        "document_characters": len(DOCUMENT), "seen_characters": 99, "method": "fi_instantiate",
        "model": "fake-model",
    }  # fmt: skip
    # What a student is tuned on: a reply that gives the pair again, or null.
    assert first.provenance["template_text"] == "good of <fi>a thing</fi>?"
    again = Completion("r", first.provenance["reply"], "stop", 1, 1)
    found = read_instance(again, Source(DOCUMENT), 0.8)
    assert isinstance(found, Instance) and found.answer.text == answer
    assert found.reply == first.provenance["reply"] and "<...>" in found.reply
    nulls = records_of(tmp_path / "whole/shards/null")
    assert [one.id for one in nulls] == ["d0#1", "d1#0"]
    assert nulls[0].text == nulls[0].provenance["template_text"] == "null of <fi>a thing</fi>?"
    assert nulls[0].provenance["reply"] == "null"
    # All prompts of a document are the same but for their ends; its rules are those of all.
    prompts = [one.prompt[0].content for one in asked if one.id.startswith("d0/")]  # type: ignore[union-attr]
    ends = [len(one.rpartition("<<<Instruction Template:\n")[2]) for one in prompts]
    assert len({one[:-end] for one, end in zip(prompts, ends, strict=True)}) == 1
    assert f"<<<Compatible Document:\n{DOCUMENT}\n>>>" in prompts[0][-900:] and max(ends) < 50


def test_the_examples_of_the_prompt_are_pairs_themselves() -> None:
    for document, asked in _INSTANTIATE_SHOTS:
        for _, reply in asked:
            completion = Completion("r", json.dumps(reply), "stop", 1, 1)
            found = read_instance(completion, Source(document), 0.8)
            assert (found[0] == "null") if isinstance(found, Reason) else found.answer.share >= 0.8


def test_settings_let_more_and_fewer_pairs_pass(tmp_path: Path) -> None:
    given = matches(tmp_path, [["german", "good"]])
    config = config_of(tmp_path, "a", given, same_language=False, most_templates=1)
    assert run_stage(Instantiate(config), engine=ScriptedEngine(say))["pairs"] == 1
    strict = replace(config, output=str(tmp_path / "b"), excerpt_share=1.0, most_templates=0)
    summary = run_stage(Instantiate(strict), engine=ScriptedEngine(say))
    assert summary["pairs"] == 1 and summary["rejected_pieces"] == {"low_share": 1}
    with pytest.raises(UserError) as refused:
        run_stage(Instantiate(replace(config, excerpt_share=0.5)), engine=ScriptedEngine(say))
    assert "excerpt_share" in str(refused.value)
    asked = replace(config, output=str(tmp_path / "c"), form="published", dry_run_documents=2,
                    engine=EngineConfig(constrain=True))  # fmt: skip
    engine = ScriptedEngine(lambda prompt: said(ALL))
    assert estimate_stage(Instantiate(asked), engine=engine).asked == 2
    (message,) = engine.asked[0].prompt
    read = json.loads(message.content)  # type: ignore[union-attr]
    assert list(read.items()) == [
        ("instruction_template", "german of <fi>a thing</fi>?"), ("document", DOCUMENT),
    ]  # fmt: skip
    pattern = engine.asked[0].sampling.regex
    assert all(re.fullmatch(pattern, one) for one in (said(ALL), said(f"So: {ALL} End."), "null"))  # type: ignore[arg-type]
    for wrong in ("It burned down.", "<excerpt>The town hall", f"<fi>{ALL}", "<excerpt></excerpt>"):
        assert not re.fullmatch(pattern, said(wrong))  # type: ignore[arg-type]
    assert pair_parts("a", "b") == ("Instruction: a\n\nAnswer: ", "b")
