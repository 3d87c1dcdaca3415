"""Blocks of output: whole or absent, made once, made again from the ledger where they are lost."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_gen.engines import Completion, Request, SamplingParams
from data_gen.stages.blocks import BlockTotals, UnitOutput, run_blocks
from data_gen.stages.ledger import Ledger
from data_gen.stages.outputs import OutputFolder
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record
from ipt_jax.core.rejection import Reason, Rejection
from tests.data_gen.fakes import FakeEngine
from tests.data_gen.written import records, written

FAILING, LOST = "u17", "rejected/pieces-00002.jsonl"


@dataclass(frozen=True)
class Number:
    id: str


UNITS = [Number(f"u{number}") for number in range(40)]


def work(unit: Number) -> Generator[Request, Completion, UnitOutput]:
    first = yield Request(f"{unit.id}/0", unit.id, SamplingParams())
    if unit.id == FAILING:
        raise ValueError("no use")
    second = yield Request(f"{unit.id}/1", first.text, SamplingParams())
    part = "odd" if int(unit.id[1:]) % 2 else "even"
    record = Record(unit.id, f"{first.text} {second.text}", "test")
    return UnitOutput([(part, record)], counts={"texts": 2}, samples=[{"id": unit.id}])


def failed(unit: Number, failure: Reason) -> UnitOutput:
    piece = Rejection.at(unit.id, failure.reason, failure.detail)
    return UnitOutput(rejected=[piece], unused={unit.id: failure.reason})


def run(folder: Path, engine: FakeEngine, units: list[Number] = UNITS) -> BlockTotals:
    with Ledger(folder) as ledger:
        output = OutputFolder(folder, ("even", "odd"))
        output.begin()
        return run_blocks(
            units, work, failed, engine, ledger, output,
            parts=("even", "odd"), units_per_block=6, units_in_flight=9,
        )  # fmt: skip


def test_records_lie_in_unit_order_and_sums_are_of_all_units(tmp_path: Path) -> None:
    totals = run(tmp_path, FakeEngine())
    ids = {}
    for part in ("even", "odd"):
        ids[part] = [record.id for record in records(tmp_path / "shards" / part)]
    assert ids["even"] == [f"u{n}" for n in range(0, 40, 2)]
    assert ids["odd"] == [f"u{n}" for n in range(1, 40, 2) if n != 17]
    assert totals.counts == {"texts": 78} and totals.usage.completions == 79
    assert totals.unused == {FAILING: "unit_failed"} and totals.rejected == {"unit_failed": 1}
    assert totals.samples == [{"id": f"u{n}"} for n in range(6)]
    line = json.loads((tmp_path / "rejected" / "pieces-00002.jsonl").read_text())
    assert line == {
        "id": FAILING, "where": FAILING, "reason": "unit_failed", "detail": "ValueError: no use",
    }  # fmt: skip


class DyingEngine(FakeEngine):
    def __init__(self, answers: int) -> None:
        super().__init__()
        self.left = answers

    def answer(self, request: Request) -> Completion:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().answer(request)


@pytest.mark.parametrize("answers", [0, 11, 30, 78])
def test_a_run_that_stopped_ends_with_the_bytes_of_one_that_did_not(
    tmp_path: Path, answers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", FakeEngine())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", DyingEngine(answers))
    with Ledger(tmp_path / "a") as ledger:
        done = {f"u{n}" for block in ledger.blocks() for n in range(block * 6, block * 6 + 6)}
    looked_up: list[str] = []
    get = Ledger.get

    def look(self: Ledger, unit: str, turn: int) -> Any:
        looked_up.append(unit)
        return get(self, unit, turn)

    monkeypatch.setattr(Ledger, "get", look)
    engine = FakeEngine()
    assert run(tmp_path / "a", engine) == whole
    assert written(tmp_path / "a") == written(tmp_path / "whole")
    assert len(engine.asked) == 79 - answers
    assert not done & set(looked_up)  # finished blocks are not even replayed
    assert len(done) >= 6 * (answers // 24)


@pytest.mark.parametrize("how", ["gone", "cut", "flipped"])
@pytest.mark.parametrize(
    "name", ["shards/odd/part-00003.arrayrecord", "rejected/pieces-00002.jsonl"]
)
def test_a_block_whose_files_are_lost_or_changed_is_made_again_without_asking(
    tmp_path: Path, name: str, how: str
) -> None:
    whole = run(tmp_path, FakeEngine())
    before = written(tmp_path)
    if how == "gone":
        (tmp_path / name).unlink()
    else:
        data = bytearray(before[name][: -1 if how == "cut" else None])
        data[len(data) // 2] ^= how == "flipped"
        (tmp_path / name).write_bytes(data)
    engine = FakeEngine()
    assert run(tmp_path, engine) == whole
    assert written(tmp_path) == before and not engine.asked


def test_blocks_whose_results_were_changed_are_made_again_without_asking(tmp_path: Path) -> None:
    whole, before = run(tmp_path, FakeEngine()), written(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as database:
        database.execute("UPDATE blocks SET result = CAST(result AS BLOB) WHERE number = 1")
        database.execute("UPDATE blocks SET result = result || ' ' WHERE number = 2")
        database.execute("UPDATE blocks SET result = NULL WHERE number = 3")
        database.commit()
    engine = FakeEngine()
    assert run(tmp_path, engine) == whole
    assert written(tmp_path) == before and not engine.asked


def test_nothing_half_written_is_left_where_a_shard_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ipt_jax.core import shard_file

    real = shard_file.ArrayRecordWriter
    full = lambda path, options: real("/dev/full", options)  # noqa: E731
    monkeypatch.setattr(shard_file, "ArrayRecordWriter", full)
    with pytest.raises(UserError, match=r"part-00000\.arrayrecord.*No space left.*free disk"):
        run(tmp_path, FakeEngine())
    assert not list(tmp_path.glob("shards/*/*"))
    monkeypatch.undo()
    engine = FakeEngine()
    run(tmp_path, engine)
    run(tmp_path / "whole", FakeEngine())
    assert written(tmp_path / "whole") == {
        name: data for name, data in written(tmp_path).items() if not name.startswith("whole")
    }
    assert len(engine.asked) < 79  # what was answered before the disk was full was kept


def test_shards_of_an_earlier_run_do_not_stay(tmp_path: Path) -> None:
    stray = tmp_path / "shards" / "odd" / "part-00099.arrayrecord"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"old")
    run(tmp_path, FakeEngine())
    assert not stray.exists()
