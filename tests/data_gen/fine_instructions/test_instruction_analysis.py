"""What instructions are made of, by numbers that were counted by hand; templates in categories."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_gen.engines import Completion, EngineConfig
from data_gen.fine_instructions.analysis import (
    InstructionAnalysis,
    PairTally,
    analyse_instructions,
    fit_power_law,
)
from data_gen.fine_instructions.analysis_page import TABLE_4
from data_gen.fine_instructions.categories import (
    Categorise,
    CategoriseConfig,
    TemplateTask,
    read_task,
)
from data_gen.fine_instructions.prompts import _CATEGORY_SHOTS, CATEGORIES, category_prompt
from data_gen.stages.stage import run_stage
from ipt_jax.core.configuration import parse_config
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record
from ipt_jax.core.rejection import Reason
from tests.data_gen.analysis.scripted import ScriptedEngine
from tests.data_gen.fine_instructions.instructions_made import pair, write_instructions
from tests.data_gen.fine_instructions.stages import (
    records_of,
    rejected_of,
    run_stopped_and_whole,
    write_shards,
)


def test_everything_is_counted(tmp_path: Path) -> None:
    report = analyse_instructions(write_instructions(tmp_path))
    found, tables = report.measured, {table.title: table for table in report.tables}
    assert (found["pairs"], found["documents"], found["templates_used"]) == (6, 4, 3)
    assert found["commonest_share"] == 4 / 6 and found["used_few_times"] == 3
    assert [(x, y) for x, y, _ in found["growth"]] == [(1, 2), (2, 3), (3, 3), (4, 3)]
    assert found["by_origin"]["pairs"] == {"gooaq": 5, "reddit_qa": 1, "my/own": 0}
    assert found["by_tags"]["bank"] == [2, 1, *[0] * 7, 1]
    assert found["by_tags"]["pairs"] == [4, 1, *[0] * 7, 1]
    assert found["null"] == {"null": 2, "pairs": 18, "share": 0.1}
    assert found["drawn"]["by_origin"] == {"gooaq": 3, "reddit_qa": 1}
    assert (found["drawn"]["documents_cut_off"], found["drawn"]["seen_share"]) == (1, 0.75)
    assert sum(found["by_uses"]["counts"]) == 3 and found["by_uses"]["counts"][0] == 2

    whole, seen = found["in_document"], found["in_seen"]
    assert whole["answers"] == seen["answers"] == [1, 2, 0, 1, 0, 2]
    assert whole["means"] == pytest.approx([0.5, 0.15, None, 0.5, None, 0.599])
    assert seen["means"] == pytest.approx([0.5, 0.2, None, 0.5, None, 0.798])
    by_pair = np.corrcoef([1, 5, 1, 5, 3], [0.2, 0.8, 0.1, 0.398, 0.5])[0, 1]
    assert whole["over_pairs"] == pytest.approx(by_pair)
    by_mean = np.corrcoef([1, 3, 5], [0.15, 0.5, 0.599])[0, 1]
    assert whole["over_chunk_means"] == pytest.approx(by_mean)
    assert seen["over_chunk_means"] == pytest.approx(1, abs=1e-4)
    places = {row[0]: row[1:] for row in tables["Chunk and place of the answer (section 3.2)"].rows}
    assert places["Chunk 5"] == ("2", "59.9", "79.8", "83.3")
    # 0.2, 0.398, 0.5 and 0.5 of the document; of what was seen 0.2, 0.2, 0.5 and 0.5.
    assert places["Answers between 19 and 71%, %"] == ("", "66.7", "66.7", "")

    sources = tables["Sources of the templates' queries (section 6.1)"].rows
    assert sources[0] == ("GooAQ", "50.0", "75.0", "83.3", "~50")
    assert sources[-1] == ("my/own", "25.0", "0.0", "0.0", "")
    # t0 (4 pairs) and t2 (1) have categories, and 7 was not used.
    shares = {row[0]: row[1:] for row in tables["Table 4: categories"].rows}
    assert shares["Science"] == ("80.00", "36.61") and shares["Medicine"] == ("20.00", "10.40")
    assert TABLE_4.keys() == CATEGORIES.keys() and shares["Math"][0] == "0.00"
    rings = {key: dict(of) for key, of in found["categories"]["tasks"].items()}
    assert rings["all"]["give"][0] == ("advice", 4)
    assert rings["medicine"]["name"][0] == ("cause", 1) and "give" not in rings["medicine"]
    assert tables["The commonest templates"].rows[0][1:] == ("4", "66.667")
    assert report.absent == []
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("results.json", "tables.md", "report.html")
    }
    assert json.loads((tmp_path / "out/results.json").read_text())["measured"]["pairs"] == 6


def test_what_is_not_given_is_left_out_and_said(tmp_path: Path) -> None:
    only = {name: [] for name in ("nulls", "instantiated", "matches", "categories")}
    made = [Record("a", "x", "x", provenance={"parents": ["d"], "template": 7})]  # as published
    only["pairs"] = [write_shards(tmp_path / "bare", made)]
    report = analyse_instructions(write_instructions(tmp_path, **only))
    assert [one.what for one in report.absent] == [
        *("What was drawn, and how much of it the encoder saw", "Null share"),
        *("Power law of templates and documents", "Places relative to what the encoder saw"),
        *("Table 4 (categories)", "Figure 3 (tasks by verb and object)"),
    ]
    assert report.measured["in_document"]["over_pairs"] is None
    assert report.measured["by_origin"]["pairs"]["my/own"] == 1


def test_a_power_law_is_found_again() -> None:
    exact: list[Any] = [(x, 3 * x**0.5) for x in (100, 1000, 10_000)]
    law = fit_power_law([(1, 900), (99, 1), *exact])  # those lie before the last two decades
    assert law is not None and law.since == 100
    assert (law.factor, law.exponent, law.r2) == pytest.approx((3, 0.5, 1))
    # By hand: log10 x is 0, 1, 2 and log10 y 0, 1, 1: slope 1/2, 1/6 of 2/3 is left.
    rough = fit_power_law([(1, 1), (10, 10), (100, 10)])
    assert rough is not None and (rough.exponent, rough.r2) == pytest.approx((0.5, 0.75))
    assert rough.factor == pytest.approx(10 ** (1 / 6))
    assert fit_power_law([(1, 5), (2, 5), (3, 5)]) is fit_power_law([]) is None


def test_memory_does_not_grow_with_pairs() -> None:
    tally = PairTally(5)

    def count(first: int, last: int) -> int:
        for n in range(first, last):
            tally.add(pair(f"d{n // 6}", f"t{n % 100}", n % 6))
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = count(0, 2000)
        assert count(2000, 12_000) - before < 10_000  # a byte a pair
    finally:
        tracemalloc.stop()
    tally.finish()
    assert tally.growth[-1] == (2000, 100) and len(tally.growth) < 40


@pytest.mark.parametrize(
    ("changed", "records", "key"),
    [
        ({"chunks": 3}, None, "chunks"),
        ({}, ("templates", [Record("t9", "<fi>x</fi> y", "x")]), "templates"),
        ({}, ("pairs", []), "templates"),
        ({}, ("pairs", [Record("p", "x", "x", provenance={"parents": ["d"]})]), "pairs"),
        ({}, ("matches", [Record("m", "x", "x")]), "matches"),
        ({}, ("categories", [Record("c", "x", "x")]), "categories"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, changed: dict[str, Any], records: Any, key: str
) -> None:
    config = write_instructions(tmp_path, **changed)
    if records is not None:
        write_shards(tmp_path / records[0], records[1])
    with pytest.raises(UserError) as refused:
        analyse_instructions(config)
    assert refused.value.key == key and not (tmp_path / "out/results.json").exists()


NO = dict.fromkeys(CATEGORIES, "no")


def said(
    task: object = "Give advice.", verb: object = "give", what: object = "advice", **more: Any
):
    return json.dumps({"task": task, "verb": verb, "object": what, **NO, **more})


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("It is about health.", "no_json"),
        (said(""), "no_task"),
        (said("Give " + "advice " * 40), "long_task"),
        (said(verb="explain"), "no_verb"),
        (said(verb=None), "no_verb"),
        (said(what=""), "no_object"),
        (said(what="advice to all who ask"), "no_object"),
        (said(math="perhaps"), "no_category"),
        (json.dumps({"task": "Give advice.", "verb": "give", "object": "advice"}), "no_category"),
    ],
)
def test_replies_that_do_not_count_say_why(reply: str, reason: str) -> None:
    found = read_task(Completion("r", reply, "stop", 1, 1))
    assert isinstance(found, Reason) and found.reason == reason


def test_templates_are_put_into_categories_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    def say(prompt: str) -> str | None:
        asked = prompt.rpartition("<<<Instruction Template:\n")[2]
        if asked.startswith("bad"):
            return said(verb="tell")
        return None if asked.startswith("error") else said(science="yes", tasky=True)

    names = ["good0", "bad1", "good2", "error3", "good4", "good5"]
    records = [Record(name, f"{name} of <fi>a thing</fi>?", "fi_templates") for name in names]
    given = write_shards(tmp_path / "templates", records)
    pairs = write_shards(tmp_path / "pairs", [pair("d", name) for name in names[:5]])
    config = CategoriseConfig(
        input=[given], pairs=[pairs], output=str(tmp_path / "whole"), records_per_shard=2
    )
    summary, _ = run_stopped_and_whole(
        lambda name: Categorise(replace(config, output=str(tmp_path / name))), say, after=3
    )
    assert summary["documents_augmented"] == 3
    assert summary["plain_reasons"] == {"no_verb": 1, "engine_error": 1}
    assert summary["rejected_documents"] == {"unused": 1}
    assert rejected_of(tmp_path / "whole")["bad1"] == "no_verb"
    assert summary["templates_by_category"] == {
        **dict.fromkeys(CATEGORIES, 0), "science": 3, "tasky": 3,
    }  # fmt: skip
    first = records_of(tmp_path / "whole/shards/categories")[0]
    told = {key: first.provenance[key] for key in ("parents", "verb", "object", "categories")}
    assert (first.text, told) == ("Give advice.", {
        "parents": ["good0"], "verb": "give", "object": "advice",
        "categories": ["science", "tasky"],
    })  # fmt: skip
    # Of all templates half, drawn by their ids; constrained, a reply has no other form.
    half = replace(config, pairs=[], share=0.5, engine=EngineConfig(constrain=True),
                   output=str(tmp_path / "half"))  # fmt: skip
    engine = ScriptedEngine(say)
    left_out = run_stage(Categorise(half), engine=engine)["rejected_documents"]["not_drawn"]
    assert 0 < left_out < 6 and left_out + len(engine.asked) == 6


def test_the_examples_of_the_prompt_are_replies_that_count() -> None:
    shown = category_prompt("x").split("<<<Instruction Template:")[1:-1]
    for part, (_, told, belongs) in zip(shown, _CATEGORY_SHOTS, strict=True):
        reply = Completion("r", part.partition(">>>\n")[2], "stop", 1, 1)
        assert read_task(reply) == TemplateTask(*told, belongs)


def test_settings(root: Path) -> None:
    for name in ("fi_small", "fi_instructions"):
        path = str(root / f"configs/analyse/{name}.yaml")
        config = parse_config(InstructionAnalysis, ["--config", path], prog="x", description="")
    assert config.matches == ["runs/fi_match/shards/matched"] and config.categories == []
    for cls, values, key in (
        (InstructionAnalysis, {"pairs": []}, "pairs"),
        (InstructionAnalysis, {"pairs": ["x"]}, "templates"),
        (InstructionAnalysis, {"pairs": ["x"], "templates": "x", "chunks": 0}, "chunks"),
        (CategoriseConfig, {"share": 0.0}, "share"),
        (CategoriseConfig, {"share": 1.1}, "share"),
    ):
        with pytest.raises(UserError) as refused:
            cls(**values)
        assert refused.value.key == key
