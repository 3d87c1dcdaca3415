"""Batches that would ruin a run: skipped, counted, named, and not for ever."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipt_jax.core.errors import RunStopped, UserError
from ipt_jax.core.records import Record, ShardWriter
from ipt_jax.data.pipeline import Lookahead
from ipt_jax.data.sources import DamageLog
from ipt_jax.training.hooks import SkipLog
from ipt_jax.training.loop import train
from ipt_jax.training.optimizer import GuardConfig, OptimizerConfig
from ipt_jax.training.processes import Stopping
from tests.launching import refused
from tests.training_runs import CORPUS, figures, make_config, positions

NO_ROWS: Any = None
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


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_batch_of_nan_is_skipped_and_its_records_named(tmp_path):
    summary = train(config_of(write_shards(tmp_path / "shards", {17}), tmp_path / "run"))
    bad = json.loads(CORPUS.read_text(encoding="utf-8").splitlines()[17])["id"]
    skipped = lines(tmp_path / "run" / "skipped.jsonl")
    assert skipped, "the poisoned record was never drawn"
    for line in skipped:
        assert line["reason"] == "loss or gradient not finite"
        assert bad in [record["id"] for record in line["records"]]
        assert all(record["where"] for record in line["records"])
    assert (
        summary["skipped"] == len(skipped) == lines(tmp_path / "run/metrics.jsonl")[-1]["skipped"]
    )
    assert summary["updates"] + summary["skipped"] == summary["steps"] == 24
    found = figures(tmp_path / "run")
    steps = [line["step"] for line in skipped]
    assert all(found[step] is None for step in steps)  # JSON has no NaN
    assert found[24] is not None and found[24] < found[1] - 0.5  # and training went on


def test_too_many_in_a_row_save_and_stop_and_the_next_start_counts_anew(tmp_path):
    shards = write_shards(tmp_path / "shards", set(range(50)))
    config = config_of(shards, tmp_path / "run", guard=GuardConfig(stop_after=4))
    stopped = [0]
    for _ in range(2):
        with pytest.raises(RunStopped, match=r"skipped 4 batches in a row.*skipped\.jsonl") as told:
            train(config)
        assert told.value.code == 3
        skipped = [line["step"] for line in lines(tmp_path / "run" / "skipped.jsonl")]
        assert skipped[-1] >= stopped[-1] + 4
        stopped.append(max(positions(tmp_path / "run")))
        assert stopped[-1] >= skipped[-1]
    assert not (tmp_path / "run" / "summary.json").exists()


def test_weights_that_are_not_finite_are_said_to_be(tmp_path):
    shards = write_shards(tmp_path / "shards", set())
    optimizer = OptimizerConfig(peak_learning_rate=1e39, warmup_steps=1)  # inf in float32
    guard = GuardConfig(stop_after=4)
    config = config_of(shards, tmp_path / "run", optimizer=optimizer, guard=guard)
    with pytest.raises(RunStopped, match=r"batches are not at fault: weights.*blocks\.down_LFD"):
        train(config)
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=r"init_from=.*blocks\.down_LFD.* hold NaN or infinity"):
        train(config_of(shards, tmp_path / "next", init_from=folder))


def unanswered(folder: Path, answers: int = 0, **changes):
    """A config over pairs of which only the last few have a response."""
    pairs = [{"id": f"n{i}", "instruction": "river lamp " * 40, "response": ""} for i in range(40)]
    for pair in pairs[len(pairs) - answers :]:
        pair["response"] = "stone " * 30
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    task = {"source": "pairs.jsonl", "loss": "responses", "eos": False, "preprocessors": ["pair"]}
    config = make_config(folder, folder / "run", train_tokens=512 * 6, **changes)
    mixture = {"tasks": {"pairs": task}, "rates": "natural", "root": str(folder)}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, mixture=mixture))


def test_a_run_without_a_token_to_learn_is_refused_before_its_first_step(tmp_path):
    with pytest.raises(UserError, match="no token of the first 6 batches is to be learnt"):
        train(unanswered(tmp_path))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_what_cannot_be_read_is_not_called_masked():
    masked: Any = {"loss_weights": np.zeros(4, np.float32)}

    def damaged():
        yield from [masked] * 3
        raise UserError("shard 7 is damaged")

    stream = Lookahead(damaged(), DamageLog())
    assert stream.any_to_learn(6) and stream.error is None
    next(stream), next(stream)
    assert "shard 7" in str(stream.error) and next(stream) is masked
    assert not Lookahead(iter([masked] * 6), DamageLog()).any_to_learn(6)


def test_masked_tokens_are_at_fault_only_where_nothing_else_was_skipped(tmp_path):
    spike = {"skipped": True, "skipped_in_a_row": 1, "loss": 9.0, "gradient_norm": 1.0}
    spike["learnt_tokens"] = np.ones(1)
    masked = spike | {"loss": math.nan, "learnt_tokens": np.zeros(1)}
    at_fault, sound = "All their tokens are masked", "If they are sound"
    for batches, said in (
        ([masked, masked], at_fault),
        ([spike, masked], sound),
        ([spike, {"skipped": False}, masked], at_fault),  # only those in a row count
    ):
        counts = {"rows_per_batch": 1, "stop_after": 2, "first_position": 0}
        log = SkipLog(tmp_path, NO_ROWS, write=False, **counts)
        for position, metrics in enumerate(batches, 1):
            log.after_step(position, metrics)
        assert said in str(log.stop(9, not_finite=""))


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([], 0),
        ([UserError("x")], 2),
        ([OSError(28, "full")], 2),
        ([RunStopped("x", 75)], 75),
        ([ValueError("x")], 1),
        ([UserError("x"), ValueError("y")], 2),  # the first one counts
    ],
)
def test_the_code_that_a_process_wants_to_stop_with(errors, code):
    stop = Stopping()
    for error in errors:
        with stop.noting():
            raise error
    assert stop.code == code


def test_batches_without_a_token_to_learn_are_named_and_the_others_counted(tmp_path):
    """Two long stretches of pairs without a response around few that have one."""
    summary = train(unanswered(tmp_path, answers=3))
    run = tmp_path / "run"
    skipped = lines(run / "skipped.jsonl")
    assert skipped and {line["reason"] for line in skipped} == {"no token to learn"}
    assert summary["updates"] == 6 - len(skipped) > 0
    assert 0 < summary["learnt_tokens"]["pairs"] < summary["tokens"]
    assert summary["learnt_tokens"] == lines(run / "metrics.jsonl")[-1]["learnt_tokens"]
    found = figures(run)
    assert [step for step, loss in found.items() if loss is None] == [x["step"] for x in skipped]
    log = SkipLog(run, rows=list, rows_per_batch=8, stop_after=2, first_position=0, write=False)  # type: ignore[arg-type]
    for position in (1, 2):
        nothing = {"skipped": True, "skipped_in_a_row": position, "learnt_tokens": np.zeros(1)}
        log.after_step(position, {**nothing, "loss": np.nan, "gradient_norm": 0.0})
    assert log.too_many and "tokens are masked" in str(log.stop(2, ""))


@pytest.mark.parametrize("key", ["guard.spike_deviations", "guard.stop_after"])
def test_bounds_that_cannot_be_are_refused(key):
    assert f"{key}=-1" in refused("launch/train.py", f"--{key}", "-1").said
