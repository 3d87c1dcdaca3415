"""Batches that would ruin a run: skipped, counted, named, and not for ever."""

import dataclasses
import json
from pathlib import Path

import pytest

from ipt_jax.records import Record, ShardWriter
from ipt_jax.training.guard import GuardConfig
from tests.training_runs import (
    CORPUS,
    figures,
    finish,
    make_config,
    start,
    write_config,
)

POISON = 1e38  # a loss weight: finite, but a row of them sums to infinity


def write_shards(folder: Path, poisoned: set[int]) -> Path:
    lines = CORPUS.read_text(encoding="utf-8").splitlines()[:80]
    for name, part in (("raw", lines[:50]), ("augmented", lines[50:])):
        with ShardWriter(folder / name) as writer:
            for number, document in enumerate(map(json.loads, part)):
                weight = POISON if name == "raw" and number in poisoned else 1.0
                parts = (document["text"],)
                writer.write(
                    Record(document["id"], document["text"], "text", parts=parts, loss=(weight,))
                )
    return folder


def config_of(shards: Path, folder: Path, **changes):
    config = make_config(shards, folder, **changes)
    assert isinstance(config.data.mixture, dict)
    tasks = {n: {"source": n, "loss": "responses"} for n in ("raw", "augmented")}
    mixture = {**config.data.mixture, "tasks": tasks}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, mixture=mixture))


def run(shards: Path, tmp_path: Path, **changes) -> tuple[int, str, str]:
    path = write_config(config_of(shards, tmp_path / "run", **changes), tmp_path / "c.yaml")
    return finish([start(path)])[0]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_batch_of_nan_is_skipped_and_its_records_named(tmp_path):
    shards = write_shards(tmp_path / "shards", {7})
    code, _, errors = run(shards, tmp_path)
    assert code == 0, errors[-3000:]
    bad = json.loads(CORPUS.read_text(encoding="utf-8").splitlines()[7])["id"]
    skipped = lines(tmp_path / "run" / "skipped.jsonl")
    assert skipped, "the poisoned record was never drawn"
    for line in skipped:
        assert line["reason"] == "loss or gradient not finite"
        assert bad in [record["id"] for record in line["records"]]
        assert all(record["where"] for record in line["records"])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (
        summary["skipped"] == len(skipped) == lines(tmp_path / "run/metrics.jsonl")[-1]["skipped"]
    )
    assert summary["updates"] + summary["skipped"] == summary["steps"] == 24
    found = figures(tmp_path / "run")
    steps = [line["step"] for line in skipped]
    assert all(found[step] is None for step in steps)  # JSON has no NaN
    assert found[24] is not None and found[24] < found[1] - 0.5  # and training went on


def test_too_many_in_a_row_save_and_stop_with_a_code_of_their_own(tmp_path):
    shards = write_shards(tmp_path / "shards", set(range(50)))
    code, _, errors = run(shards, tmp_path, guard=GuardConfig(stop_after=4))
    assert code == 3
    assert "skipped 4 batches in a row" in errors and "skipped.jsonl" in errors
    assert "Traceback" not in errors
    skipped = [line["step"] for line in lines(tmp_path / "run" / "skipped.jsonl")]
    saved = [int(p.name) for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdigit()]
    assert max(saved) >= skipped[-1] >= 4
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("key", ["guard.spike_deviations", "guard.stop_after"])
def test_bounds_that_cannot_be_are_refused(tmp_path, key):
    shards = write_shards(tmp_path / "shards", set())
    path = write_config(config_of(shards, tmp_path / "run"), tmp_path / "c.yaml")
    code, _, errors = finish([start(path, f"--{key}", "-1")])[0]
    assert code == 2 and f"{key}=-1" in errors
