"""The page of a synthesis run, made from a real run's folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_gen.instruction_pretrain.config import SynthesisConfig
from data_gen.methods import synthesize
from data_gen.stages.page import synthesis_report
from data_gen.stages.progress import ProgressLog
from data_gen.stages.runner import Status, Usage
from ipt_jax.core.errors import UserError
from tests.data_gen.fakes import FakeEngine
from tests.pages import Page, assert_nothing_foreign


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
    page = assert_nothing_foreign(synthesis_report(folder).read_text())
    assert f"pairs written {summary['pairs']}" in page.text
    assert f"{summary['cost']:,.2f}" in page.text and summary["cost"] > 1
    assert list(page.figures) == ["Tokens a second"] and "fake-model" in page.text
    assert "<script>Text" in page.text


def test_speed_is_over_the_time_in_which_a_process_ran(folder: Path) -> None:
    (folder / "progress.jsonl").unlink()
    for tokens in ((100, 300), (50,)):
        with ProgressLog(folder, every_seconds=5.0) as log:
            for number, count in enumerate(tokens):
                log(Status(fresh=Usage(1, 2 * count, count), seconds=10.0 * (number + 1)))
    with open(folder / "progress.jsonl", "a") as file:
        file.write('{"seconds": 99, "fre')  # cut by a kill
    page = Page(synthesis_report(folder).read_text())
    assert page.tables["Processes"][0] == ["processes that worked on it", "2"]
    # 100 and 200 tokens in ten seconds each, then 50; twice as many are read.
    drawn = page.figures["Tokens a second"]["data"]
    assert [one["y"] for one in drawn] == [[20, 40, 10], [10, 20, 5]]
    assert drawn[0]["x"] == [10, 20, 30]


def test_a_missing_summary_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"summary\.json"):
        synthesis_report(tmp_path)


def test_a_baselines_samples_of_an_earlier_version_are_shown(folder: Path) -> None:
    old = [{"id": "reading_comprehension/d1", "text": "A text & tasks.", "tasks": {"nli": 1}}]
    (folder / "samples.json").write_text(json.dumps(old))
    text = Page(synthesis_report(folder).read_text()).text
    assert "reading_comprehension/d1 A text & tasks." in text
