"""A stage: the recipe of the docs; sums, resuming, and a stage that reads and asks nothing."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from data_gen.engines import Completion, Request
from data_gen.methods import METHODS, stage_of
from data_gen.stages.blocks import UnitOutput
from data_gen.stages.card import Card
from data_gen.stages.config import StageConfig
from data_gen.stages.page import synthesis_report
from data_gen.stages.stage import Stage, Summary, run_stage
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record, RecordSource
from tests.data_gen.fakes import FakeEngine


class Titling(FakeEngine):
    """Answers with so many words, or dies."""

    def __init__(self, left: int = 99) -> None:
        super().__init__()
        self.left = left

    def answer(self, request: Request) -> Completion:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        words = "word " * (9 if "number 3" in str(request.prompt) else 2)
        return Completion(request.id, words, "stop", 5, 2)


@pytest.fixture(scope="module")
def recipe(root: Path) -> Any:
    page = (root / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 60
    module = ModuleType("recipe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "recipe", module)  # dataclasses look there
        exec(compile(code, "adding_a_method.md", "exec", dont_inherit=True), module.__dict__)
    return module


def corpus_of(folder: Path, documents: int) -> list[str]:
    path = folder / "corpus.jsonl"
    lines = [{"id": f"d{n}", "text": f"Text number {n}."} for n in range(documents)]
    path.write_text("\n".join(map(json.dumps, [*lines, {"id": "empty", "text": ""}])))
    return [str(path)]


def test_the_recipes_method_runs_stops_and_goes_on(recipe: Any, tmp_path: Path) -> None:
    def config(name: str) -> Any:
        return recipe.TitlesConfig(
            input=corpus_of(tmp_path, 9), output=str(tmp_path / name), records_per_shard=4
        )

    whole = run_stage(recipe.Titles(config("whole")), engine=Titling())
    with pytest.raises(KeyboardInterrupt):
        run_stage(recipe.Titles(config("stopped")), engine=Titling(5))
    engine = Titling()
    summary = run_stage(recipe.Titles(config("stopped")), engine=engine)
    assert 99 - engine.left == 4  # what was answered before the stop is not asked again
    for one in (whole, summary):
        assert (one["documents_in"], one["documents_augmented"]) == (10, 8)
        assert one["plain_reasons"] == one["rejected_pieces"] == {"no_title": 1}
        assert one["rejected_documents"] == {"empty": 1} and one["completions"] == 9
    shards = [tmp_path / name / "shards" / "titled" for name in ("whole", "stopped")]
    a, b = (RecordSource(folder) for folder in shards)
    assert a.fingerprint == b.fingerprint and a[0].text == "word word\n\nText number 0."
    assert "8 documents, titled" in (tmp_path / "whole" / "card.md").read_text()
    page = synthesis_report(tmp_path / "whole").read_text()
    assert "fake-model" in page and "no title" in page
    other = recipe.TitlesConfig(
        input=corpus_of(tmp_path, 9), output=str(tmp_path / "whole"), words=3
    )
    with pytest.raises(UserError, match=r"words \(then 8, now 3\)"):
        run_stage(recipe.Titles(other), engine=Titling())


def test_documents_that_are_lost_stop_the_run(recipe: Any, tmp_path: Path) -> None:
    class Losing(recipe.Titles):
        def work(self, unit: Record) -> Generator[Request, Completion, UnitOutput]:
            output = yield from super().work(unit)
            return UnitOutput() if unit.id == "d5" else output

    config = recipe.TitlesConfig(input=corpus_of(tmp_path, 9), output=str(tmp_path / "out"))
    with pytest.raises(RuntimeError, match="documents were lost"):
        run_stage(Losing(config), engine=Titling())
    assert not (tmp_path / "out" / "summary.json").exists()


@dataclass(frozen=True)
class Number:
    id: str


class Counting(Stage[StageConfig, Number]):
    """Reads no corpus and asks nothing."""

    name, version, Config = "counting", 1, StageConfig
    parts = ("numbers",)

    def units(self, raw: RecordSource | None) -> Sequence[Number]:
        assert raw is None
        return [Number(f"n{n}") for n in range(5)]

    def work(self, unit: Number) -> Generator[Request, Completion, UnitOutput]:
        yield from ()
        if unit.id == "n3":
            raise ValueError("no such number")
        record = Record(unit.id, unit.id, self.name)
        shown = {"id": unit.id, "source": self.name}
        shown["documents"] = [{"id": unit.id, "text": unit.id, "pairs": []}]
        return UnitOutput([("numbers", record)], counts={"numbers": 1}, samples=[shown])

    def finish(self, totals: Any) -> Summary:
        return {"numbers": totals.counts["numbers"]}

    def card(self, summary: Summary) -> Card:
        return Card(title="Numbers", about="Five of them.", gates=[])


def test_a_stage_may_read_and_ask_nothing(tmp_path: Path) -> None:
    config = StageConfig(output=str(tmp_path / "out"))
    summary = run_stage(Counting(config))
    assert summary["numbers"] == 4 and summary["rejected_pieces"] == {"unit_failed": 1}
    assert not {"model", "documents_in"} & summary.keys()
    assert len(RecordSource(tmp_path / "out" / "shards" / "numbers")) == 4
    assert run_stage(Counting(config)) == summary
    page = synthesis_report(tmp_path / "out").read_text()
    assert "No model was asked." in page and "counting · n0" in page

    class Asking(Counting):
        def work(self, unit: Number) -> Generator[Request, Completion, UnitOutput]:
            yield Request(unit.id, "x", None)  # type: ignore[arg-type]
            return UnitOutput()

    with pytest.raises(UserError, match="asked a model"):
        run_stage(Asking(StageConfig(output=str(tmp_path / "asking"))))


def test_every_method_is_found_by_its_name_and_its_settings() -> None:
    for name, method in METHODS.items():
        assert method.Config.__dataclass_fields__["method"].default == name == method.name
    config = METHODS["random_pairs"].Config
    with pytest.raises(UserError, match="manifest"):
        stage_of(config(synthesis="nowhere"))  # type: ignore[call-arg]
