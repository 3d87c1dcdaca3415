"""Rates that change by step, in both packings: the asked in each stage, and the same batches
however they are made."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ipt_jax.core.errors import UserError
from ipt_jax.data.mixture import PACKINGS, DataConfig
from ipt_jax.data.pipeline import MixtureRows, batches, open_mixture, source_tokens
from ipt_jax.data.tasks import MixtureStage as Stage
from tests.data_batches import digest, joined

RUN = {"row_tokens": 256, "rows_per_batch": 8, "seed": 5, "total_batches": 12}
STAGES = (
    Stage(4, {"raw": 0, "short": 1, "few": 1}),
    Stage(9, {"raw": 3, "short": 0, "few": 1}),
)


@pytest.fixture(scope="module")
def staged(mixture):
    """The mixture of all tests, whose rates change at steps 4 and 9."""
    return replace(mixture, name="staged", stages=STAGES)


@pytest.fixture(scope="module", params=PACKINGS)
def run(request, staged):
    """Packing, and all batches of one process without workers."""
    return request.param, list(batches(staged, **RUN, packing=request.param))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_any_number_of_processes(staged, run, count):
    packing, whole = run
    parts = [
        list(batches(staged, **RUN, packing=packing, process_index=i, process_count=count))
        for i in range(count)
    ]
    assert digest(joined(parts)) == digest(whole)


def test_two_workers(staged):
    """Best fit; test_pipeline.py has rows that are cut."""
    made = [batches(staged, **RUN, packing="best_fit", worker_count=count) for count in (0, 2)]
    assert digest(made[1]) == digest(made[0])


_RESUME = """
import json, sys
from ipt_jax.data.pipeline import batches
from ipt_jax.data.tasks import Mixture, MixtureStage as Stage, Task
from tests.data_batches import digest
tasks, rates, stages, run, starts = json.loads(sys.argv[1])
tasks = tuple(Task(**task) for task in tasks)
mixture = Mixture("staged", tasks, rates, stages=tuple(Stage(**stage) for stage in stages))
for packing in ("concatenate", "best_fit"):
    for start in starts:
        print(packing, start, digest(batches(mixture, **run, packing=packing, start_batch=start)))
"""


def test_a_fresh_process_goes_on_in_any_stage(staged):
    starts = [1, 4, 7, 10]
    tasks = [dataclasses.asdict(task) for task in staged.tasks]
    stages = [{"from_step": s.from_step, "rates": s.rates} for s in STAGES]
    argument = json.dumps([tasks, dict(staged.rates), stages, RUN, starts])  # type: ignore[arg-type]
    ran = subprocess.run(
        [sys.executable, "-c", _RESUME, argument],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parents[3],
    )
    assert ran.returncode == 0, ran.stderr
    expected = []
    for packing in PACKINGS:
        whole = list(batches(staged, **RUN, packing=packing))
        expected += [f"{packing} {start} {digest(whole[start:])}" for start in starts]
    assert ran.stdout.splitlines() == expected


def test_a_task_that_pauses_is_not_there(run):
    packing, whole = run
    seen = [set(np.unique(batch["source_ids"])) - {-1} for batch in whole]
    # Cut rows change where the nearest example does, less than a batch away.
    near = 1 if packing == "concatenate" else 0
    assert all(0 not in tasks for tasks in seen[4 + near : 9 - near])
    assert all(1 not in tasks for tasks in seen[9 + near :])
    assert all({0, 1} <= tasks for tasks in seen[:4])


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("by", ["tokens", "examples"])
def test_each_stage_has_its_rates(staged, packing, by):
    steps = {"rows_per_batch": 16, "row_tokens": 512, "seed": 0}
    stages = (
        Stage(9, {"raw": 1, "short": 0, "few": 1}),
        Stage(30, {"raw": 5, "short": 4, "few": 1}),
    )
    data = open_mixture(replace(staged, stages=stages, by=by))  # type: ignore[arg-type]
    longest = max(int(lengths.array.max()) for lengths in data.lengths if lengths is not None) + 2
    counts, examples = np.zeros((60, 3)), np.zeros((60, 3))
    for step, batch in enumerate(batches(data, **steps, packing=packing, total_batches=60)):
        counts[step] = source_tokens(batch["source_ids"], 3)
        begun = batch["tokens"] == data.tokenizer.bos_id
        examples[step] = source_tokens(np.where(begun, batch["source_ids"], -1), 3)
    found = counts if by == "tokens" else examples
    for (first, rates), last in zip(data.stages, (9, 30), strict=False):
        inside = found[first:last].sum(0)
        asked = inside.sum() * np.asarray([rates[name] for name in data.task_names])
        slack = 2 * longest if by == "tokens" else 6
        assert np.abs(inside - asked).max() <= slack, (first, inside, asked)
    # The last stage stops where the run does, inside a best-fit window.
    inside = found[30:].sum(0)
    asked = [data.stages[-1][1][name] for name in data.task_names]
    assert inside / inside.sum() == pytest.approx(
        asked, abs=0.02 if packing == "best_fit" else 0.01
    )


def test_shares_of_a_whole_run(staged):
    data = open_mixture(staged)
    assert [step for step, _ in data.stages] == [0, 4, 9]
    assert data.asked_rates == pytest.approx({"raw": 0.6, "short": 0.3, "few": 0.1})
    expected = {
        "raw": (4 * 0.6 + 11 * 0.75) / 20,
        "short": (4 * 0.3 + 5 * 0.5) / 20,
        "few": (4 * 0.1 + 5 * 0.5 + 11 * 0.25) / 20,
    }
    assert data.asked_over(20) == pytest.approx(expected)
    assert data.asked_over(3) == pytest.approx(data.asked_rates)
    with pytest.raises(UserError, match=r"'staged' has `stages`.*rows_per_batch"):
        MixtureRows(data, row_tokens=256, seed=0, rows=96)
    later = replace(staged, rates={"raw": 0, "short": 1, "few": 0})
    assert all(source is not None for source in open_mixture(later).sources)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_source_that_runs_out_in_a_later_stage(staged, packing):
    few = replace(staged.tasks[2], max_epochs=3)
    stages = (Stage(10, {"raw": 1, "short": 1, "few": 2}),)
    limited = replace(staged, tasks=(*staged.tasks[:2], few), stages=stages)
    data = open_mixture(limited)
    settings = {"row_tokens": 256, "seed": 0, "rows_per_batch": 8, "packing": packing}
    with pytest.raises(UserError, match=r"'few' runs out at step .* 0\.1, then 0\.5 .*few\.max"):
        MixtureRows(data, rows=8000, **settings)
    with pytest.raises(UserError) as told:
        MixtureRows(data, rows=8000, **settings)
    row = int(str(told.value).split("(row ")[1].split(")")[0].replace(",", ""))
    used = 10 * 8 * 256 * 0.1  # in the first stage
    expected = 10 * 8 + (3 * data.epoch_tokens[2] - used) / 0.5 / 256
    assert row == pytest.approx(expected, rel=0.05)
    rows = MixtureRows(data, rows=row, **settings)  # so many rows are allowed
    seen = [key["where"] for key in rows.records(0, row) if key["task"] == "few"]
    assert len(seen) > 10 and max(map(seen.count, seen)) <= 3


def test_settings_of_the_config(corpus):
    inline = {
        "name": "test",
        "root": str(corpus),
        "rates": {"raw": 1, "few": 1},
        "stages": [{"from_step": 2, "rates": {"raw": 1, "few": 3}}],
        "tasks": {"raw": {"source": "raw"}, "few": {"source": "few"}},
    }
    config = DataConfig(inline, row_tokens=256, seed=5, packing="best_fit")
    data = open_mixture(config)
    read = batches(data, rows_per_batch=8, total_batches=4)
    told = batches(data.mixture, **{**RUN, "total_batches": 4}, packing="best_fit")
    assert digest(read) == digest(told)
    other = batches(data.mixture, **{**RUN, "total_batches": 4})
    assert digest(other) != digest(batches(data, rows_per_batch=8, total_batches=4))
