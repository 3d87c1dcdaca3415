"""The pages of the measurements in a real browser: tables, charts, nothing of theirs that runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from data_gen.engines import EngineConfig
from data_gen.fine_instructions.analysis import analyse_instructions
from data_gen.instruction_pretrain.analysis.config import (
    CorpusAnalysis,
    Models,
    SynthesizerAnalysis,
)
from data_gen.instruction_pretrain.analysis.corpus import analyse_corpus
from data_gen.instruction_pretrain.analysis.held_out import held_out_line
from data_gen.instruction_pretrain.analysis.synthesizer import analyse_synthesizer
from data_gen.instruction_pretrain.collection import Example
from data_gen.instruction_pretrain.config import SynthesisConfig
from data_gen.instruction_pretrain.formats import Pair, render_pairs
from data_gen.methods import synthesize
from tests.browser.browsing import counted_colours, drawn, screenshot, shapes
from tests.data_gen.analysis.scripted import ScriptedEngine
from tests.data_gen.fine_instructions.instructions_made import write_instructions
from tests.made_run import HOSTILE

PAIRS = (Pair("Whom did the police call?", f"They. {HOSTILE}"), Pair("Which?", "b", ("a", "b")))


@pytest.fixture(scope="module")
def synthesizer_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analysis")
    lines = [
        held_out_line(
            Example(f"{name}/{n}", name, f"Text {n}. {HOSTILE}", PAIRS), [], name == "new"
        )
        for n in range(3)
        for name in ("old<b>", "new")
    ]
    (folder / "held_out.jsonl").write_text("\n".join(lines))
    analyse_synthesizer(
        SynthesizerAnalysis(
            held_out=[str(folder / "held_out.jsonl")],
            output=str(folder),
            models=Models(EngineConfig(context_tokens=2048), EngineConfig()),
            measures=["accuracy", "zero"],
        ),
        engines={
            "base": ScriptedEngine(lambda prompt: " They."),
            "tuned": ScriptedEngine(lambda prompt: render_pairs(PAIRS)),
        },
    )
    return folder / "report.html"


@pytest.fixture(scope="module")
def corpus_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analysis")
    corpus = folder / "corpus.jsonl"
    texts = [{"id": f"d{n}", "text": f"The police said {n}. {HOSTILE}"} for n in range(30)]
    corpus.write_text("\n".join(map(json.dumps, texts)))
    synthesis = folder / "synthesis"
    synthesize(
        SynthesisConfig(input=[str(corpus)], output=str(synthesis), fraction=1.0),
        engine=ScriptedEngine(lambda prompt: render_pairs(PAIRS)),
    )
    judge = ScriptedEngine(
        lambda prompt: '{"relevant": 1, "accurate": 1, "category": "Question Answering"}'
    )
    analyse_corpus(
        CorpusAnalysis(synthesis=str(synthesis), output=str(folder / "out"), judge=EngineConfig()),
        engines={"judge": judge},
    )
    return folder / "out" / "report.html"


def test_the_synthesizer_s_page(chromium: str, synthesizer_page: Path, tmp_path: Path) -> None:
    dom, charts = drawn(chromium, synthesizer_page, tmp_path / "profile")
    assert "<title>The instruction synthesizer on held-out examples</title>" in dom
    assert "<script" not in dom and "<img" not in dom and "<b>" not in dom.split("<table>")[2]
    assert "<caption>Table 5: response accuracy and pair quality</caption>" in dom
    cells = {
        name: re.findall(r">([^<]*)</td>", row)
        for name, row in re.findall(r"<tr>\s*<td>(Quality [^<]*)</td>(.*?)</tr>", dom)
    }
    assert cells["Quality seen zero"][1:] == ["100.0", "16.5", "49.4"]
    assert cells["Quality seen few"] == ["–", "–", "21.8", "49.9"]
    chart = charts["Table 5, F1 in per cent"]
    # Few-shot was not measured: a dash, no bar of zero.
    assert "Quality seen few" in chart and chart.count(">–</text>") == 4
    assert "does not name" in dom and "Not everything was measured" in dom


def test_the_corpus_s_page(chromium: str, corpus_page: Path, tmp_path: Path) -> None:
    dom, charts = drawn(chromium, corpus_page, tmp_path / "profile")
    assert "<script" not in dom and "<img" not in dom
    assert list(charts) == [
        "Figure 6: task scenarios, per cent of pairs (grouping and names ours)",
        "Task categories within the scenarios",
        "Table 12: domains, per cent",
        "Pairs kept of each text",
        "Length of texts",
        "Tokens written about each text",
        "Length of questions",
        "Length of answers",
    ]
    assert dom.count("<details") == 8


def test_bars_are_drawn(chromium: str, corpus_page: Path, tmp_path: Path) -> None:
    colours = counted_colours(screenshot(chromium, corpus_page, tmp_path, "light", "1000,5200"))
    for colour in ("fbfbfa", "a9b2bc", "2a8a5a"):  # page, texts, pairs
        assert colours.get(tuple(bytes.fromhex(colour)), 0) > 300, colour


def test_the_instructions_page(chromium: str, tmp_path: Path) -> None:
    analyse_instructions(write_instructions(tmp_path, says=HOSTILE, corpus=HOSTILE))
    dom, charts = drawn(chromium, tmp_path / "out/report.html", tmp_path / "profile")
    assert "<script" not in dom and "<img" not in dom
    assert {title: shapes(figure) for title, figure in charts.items()} == {
        "Templates used by number of documents; dashed: 2.14 x^0.30": 2,
        "How often templates were used": 5,
        "Tags of a template, per cent": 3 * 10,
        "Places that answers were taken from": 50,
        "Table 4, per cent of instructions": 2 * 7,
        "Figure 3: tasks, by verb and object": 5,
        "Figure 3: tasks of medicine, by verb and object": 3,
    }
