"""The page of a synthesis run, made from a real run's folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from data_gen.instruction_pretrain.config import SynthesisConfig
from data_gen.methods import synthesize
from data_gen.stages.progress import ProgressLog
from data_gen.stages.runner import Status, Usage
from ipt_jax.core.errors import UserError
from ipt_jax.evaluation.synthesis_page import synthesis_report
from tests.data_gen.fakes import FakeEngine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    corpus = tmp_path / "corpus.jsonl"
    lines = [{"id": f"<i>{n}", "text": f"<script>Text {n}</script>"} for n in range(60)]
    corpus.write_text("\n".join(map(json.dumps, lines)))
    synthesize(
        SynthesisConfig(
            input=[str(corpus)], output=str(tmp_path / "out"), fraction=1.0, rounds=2, gpus=36000,
            price_per_gpu_hour=2.0,
        ),
        engine=FakeEngine(delay_seconds=0.002),
    )  # fmt: skip
    return tmp_path / "out"


def test_a_page_has_counts_cost_speed_and_samples(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    html = synthesis_report(folder).read_text()
    assert f"<dd>{summary['pairs']}</dd>" in html
    assert f"{summary['cost']:,.2f}" in html and summary["cost"] > 1
    assert 'aria-label="Tokens a second"' in html and "fake-model" in html
    assert "<script>Text" not in html and "&lt;script&gt;Text" in html


def test_speed_is_over_the_time_in_which_a_process_ran(folder: Path) -> None:
    (folder / "progress.jsonl").unlink()
    for tokens in ((100, 300), (50,)):
        with ProgressLog(folder, every_seconds=5.0) as log:
            for number, count in enumerate(tokens):
                log(Status(fresh=Usage(1, 2 * count, count), seconds=10.0 * (number + 1)))
    with open(folder / "progress.jsonl", "a") as file:
        file.write('{"seconds": 99, "fre')  # cut by a kill
    html = synthesis_report(folder).read_text()
    assert 'processes that worked on it</td><td class="number">2' in re.sub(r"\s+", " ", html)
    # 100 and 200 tokens in ten seconds each, then 50: the highest rates are 40 read, 20 written.
    chart = re.search(r'aria-label="Tokens a second">(.*?)</svg>', html, re.DOTALL)
    assert chart is not None and ">40<" in chart[1] and ">30<" in chart[1]


def test_a_missing_summary_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"summary\.json"):
        synthesis_report(tmp_path)


def test_a_baselines_samples_of_an_earlier_version_are_shown(folder: Path) -> None:
    old = [{"id": "reading_comprehension/d1", "text": "A text & tasks.", "tasks": {"nli": 1}}]
    (folder / "samples.json").write_text(json.dumps(old))
    page = synthesis_report(folder).read_text()
    assert "A text &amp; tasks." in page and "<summary>reading_comprehension/d1</summary>" in page
