"""Table 5 and Figure 5 as a whole, on real texts, with models whose answers are known."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_gen.engines import EngineConfig
from data_gen.instruction_pretrain.analysis.config import Models, SynthesizerAnalysis
from data_gen.instruction_pretrain.analysis.held_out import held_out_line, read_held_out
from data_gen.instruction_pretrain.analysis.synthesizer import analyse_synthesizer
from data_gen.instruction_pretrain.collection import Example
from data_gen.instruction_pretrain.formats import (
    ANSWER,
    CONTEXT_CLOSE,
    CONTEXT_OPEN,
    END,
    QUESTION,
    Pair,
    render_pairs,
)
from ipt_jax.core.errors import RunStopped
from tests.data_gen.analysis.scripted import ScriptedEngine

PER_SET = 4


@pytest.fixture(scope="module")
def held_out(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real SQuAD paragraphs under two names, one of them as an unseen set."""
    packed = (shared / "data/squad_v1/test-v1.1.json.gz").read_bytes()
    articles = json.loads(gzip.decompress(packed))["data"]
    examples = []
    for number, article in enumerate(articles[: 2 * PER_SET + 3]):
        paragraph = article["paragraphs"][0]
        pairs = tuple(
            Pair(qa["question"].strip(), qa["answers"][0]["text"]) for qa in paragraph["qas"][:4]
        )
        name = "new" if number % 2 else "squad"
        examples.append(Example(f"{name}/{number}", name, paragraph["context"], pairs))
    shots = examples[2 * PER_SET :]
    path = tmp_path_factory.mktemp("held_out") / "held_out.jsonl"
    lines = [held_out_line(e, shots, e.dataset == "new") for e in examples[: 2 * PER_SET]]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


class Knowing:
    """Says the gold pairs and answers of the held-out file."""

    def __init__(self, path: Path) -> None:
        self._examples = {example.text: example for example in read_held_out(path)}

    def __call__(self, prompt: str) -> str:
        if CONTEXT_OPEN not in prompt:
            return " as the pairs say"
        text, _, rest = prompt.rpartition(f" {CONTEXT_CLOSE}\n\n")
        example = self._examples[text.rpartition(f"{CONTEXT_OPEN} ")[2]]
        if not rest:
            return render_pairs(example.pairs) + "</s><s> <CON> and on"
        asked = rest.removeprefix(f"{QUESTION} ").removesuffix(f" {ANSWER}")
        return " " + next(p.answer for p in example.pairs if p.question == asked) + f" {END} more"


def config(held_out: Path, output: Path, **changes: Any) -> SynthesizerAnalysis:
    # Two context lengths, so that the two fake models do not share their answers.
    models = Models(EngineConfig(context_tokens=2048), EngineConfig(context_tokens=4096))
    return SynthesizerAnalysis(
        held_out=[str(held_out)], output=str(output), models=models, **changes
    )


def test_a_knowing_model_scores_100_and_an_ignorant_one_nothing(
    held_out: Path, tmp_path: Path
) -> None:
    base, tuned = ScriptedEngine(lambda prompt: " zzz", cut=True), ScriptedEngine(Knowing(held_out))
    report = analyse_synthesizer(
        config(held_out, tmp_path / "out"), engines={"base": base, "tuned": tuned}
    )
    models = report.measured["models"]
    for what in ("accuracy", "zero", "few"):
        for group in ("seen", "unseen"):
            assert models["tuned"][what][group] == pytest.approx(100)
            assert models["base"][what][group] == 0
    assert set(models["tuned"]["few"]["datasets"]) == {"new", "squad"}
    assert models["tuned"]["accuracy"]["asked"] == sum(
        len(e.pairs) for e in read_held_out(held_out)
    )
    assert models["tuned"]["few"]["shots_dropped"] == 0
    written = models["tuned"]["zero"]["generations"]["all"]
    assert written["well_formed_share"] == 1.0 and written["literal_share"] == 1.0
    assert written["pairs"] == models["tuned"]["accuracy"]["asked"]
    assert models["base"]["zero"]["generations"]["all"]["with_pairs_share"] == 0.0
    assert models["tuned"]["few"]["generations"]["seen"]["same_formats_share"] == 1.0
    # The base reads: it knows nothing under any condition, and had no pairs of its own.
    reading = report.measured["helpfulness"]
    assert reading["without_pairs"] == {"random": 0, "base": 2 * PER_SET, "tuned": 0}
    assert reading["left_out"] == {} and reading["conditions"]["tuned"]["seen"] == 0.0
    table = report.tables[0]
    assert table.header[1:3] == ("base", "tuned")
    assert [row[1:3] for row in table.rows] == [("0.0", "100.0")] * 6
    assert table.rows[0] == ("Accuracy seen", "0.0", "100.0", "30.6", "70.0")
    assert table.rows[5] == ("Quality unseen few", "0.0", "100.0", "19.6", "30.8")
    of_new = next(row for row in report.tables[1].rows if row[0] == "new (unseen)")
    assert of_new[1] == str(PER_SET) and of_new[3:] == ("0.0 → 100.0",) * 3
    assert report.absent == []


def test_the_folder_holds_results_tables_and_every_generation(
    held_out: Path, tmp_path: Path
) -> None:
    engines = {"base": ScriptedEngine(lambda p: " z"), "tuned": ScriptedEngine(Knowing(held_out))}
    started: list[Path] = []
    out = tmp_path / "out"
    report = analyse_synthesizer(
        config(held_out, out, examples_per_dataset=2, questions_per_example=1),
        engines=engines,
        on_start=started.append,
    )
    assert started == [out]
    results = json.loads((out / "results.json").read_text())
    assert results["measured"]["examples"] == 4
    assert results["measured"]["models"]["tuned"]["accuracy"]["asked"] == 4
    assert (out / "tables.md").read_text() == report.markdown()
    lines = [json.loads(line) for line in (out / "generations.jsonl").read_text().splitlines()]
    # Of each model 4 answers, 4 texts in two settings; the reader under four conditions.
    assert len(lines) == 2 * (4 + 4 + 4) + 4 * 4
    assert len({(line["model"], line["id"]) for line in lines}) == len(lines)
    tuned = [line for line in lines if line["model"] == "tuned"]
    assert {line["f1"] for line in tuned} == {1.0}
    assert tuned[0]["prompt"].endswith(ANSWER) and tuned[0]["gold"] in tuned[0]["completion"]


def test_a_second_run_asks_nothing_and_finds_the_same(held_out: Path, tmp_path: Path) -> None:
    engines = {"base": ScriptedEngine(lambda p: " z"), "tuned": ScriptedEngine(Knowing(held_out))}
    settings = config(held_out, tmp_path / "out")
    first = analyse_synthesizer(settings, engines=engines)
    asked = sum(len(engine.asked) for engine in engines.values())
    assert analyse_synthesizer(settings, engines=engines).measured == first.measured
    assert sum(len(engine.asked) for engine in engines.values()) == asked


def test_what_is_not_measured_is_absent_with_its_reason(held_out: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen.jsonl"
    lines = [line for line in held_out.read_text().split("\n") if '"unseen": false' in line]
    seen.write_text("\n".join(lines))
    engines = {"base": ScriptedEngine(lambda p: None), "tuned": ScriptedEngine(Knowing(held_out))}
    settings = config(seen, tmp_path / "out", measures=["zero"])
    with pytest.raises(RunStopped, match=r"of them with: no\..*generations\.jsonl"):
        analyse_synthesizer(settings, engines=engines)  # the base answered nothing
    base = replace(settings.models.base, max_failed_share=1.0)
    settings = replace(settings, models=replace(settings.models, base=base))
    report = analyse_synthesizer(settings, engines=engines)
    assert [row[1] for row in report.tables[0].rows] == ["–"] * 6
    assert [row[2] for row in report.tables[0].rows] == ["–", "–", "100.0", "–", "–", "–"]
    absent = {one.what: one.why for one in report.absent}
    assert "no example of unseen" in absent["All unseen columns"]
    assert "`measures` does not name `few`" in absent["Table 5, pair quality, few-shot"]
    assert "no question of these" in absent["Table 5, pair quality, zero-shot, seen, base"]
    assert report.measured["models"]["base"]["zero"]["errors"] == PER_SET
