"""Records that cannot be read, in a real run: left out if asked, counted and named."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest

from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record, ShardWriter
from ipt_jax.data.pipeline import MixtureRows, open_mixture
from ipt_jax.data.sources import DamageLog
from ipt_jax.training.checkpoints import CheckpointConfig
from ipt_jax.training.config import TrainConfig
from ipt_jax.training.hooks import DamageFile
from ipt_jax.training.loop import train
from tests.damaged_shards import damage, unreadable
from tests.launching import launch
from tests.training_runs import (
    CORPUS,
    figures,
    finish,
    make_config,
    positions,
    start,
    start_several,
    write_config,
)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """As those of the other runs, but with a shard for every few records."""
    lines = CORPUS.read_text(encoding="utf-8").splitlines()[:80]
    for name, part in (("raw", lines[:50]), ("augmented", lines[50:])):
        with ShardWriter(tmp_path / name, records_per_shard=5) as writer:
            for document in map(json.loads, part):
                writer.write(Record(document["id"], document["text"], "text"))
    return tmp_path


def config_of(shards: Path, skip: bool = True, **changes) -> TrainConfig:
    config = make_config(shards, shards / "run", **changes)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, skip_damaged=skip))


SPOILT = {"raw": (1, 6), "augmented": (3,)}  # shards by task


def spoil(
    config: TrainConfig, *, late: bool, spoilt: dict[str, tuple[int, ...]] = SPOILT
) -> dict[str, list[int]]:
    """Spoil shards, after their lengths were counted if `late`; the records by task."""
    root = config.run_folder.parent
    if late:
        open_mixture(config.data)
    for task, numbers in spoilt.items():
        for number in numbers:
            damage(root / task / f"part-{number:05d}.arrayrecord")
    return {task: unreadable(root / task) for task in spoilt}


def drawn(config: TrainConfig, bad: dict[str, list[int]]) -> dict[tuple[str, int], int]:
    """The damaged records that come in the run, and the batch that each first comes in, from 1."""
    mixture = open_mixture(config.data)
    rows = MixtureRows(mixture, row_tokens=64, seed=0, rows=config.steps * 8, rows_per_batch=8)
    first: dict[tuple[str, int], int] = {}
    for step in range(1, config.steps + 1):
        _, damaged = rows.take_marked((step - 1) * 8, step * 8)
        for task, record in damaged:
            first.setdefault((mixture.task_names[task], record), step)
    assert first and all(record in bad[task] for task, record in first)
    return first


def told(run: Path) -> list[dict]:
    """The lines of all processes."""
    files = sorted((run / "damaged").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def summary_of(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def counted(keys: set[tuple[str, int]]) -> dict[str, int]:
    return {name: sum(task == name for task, _ in keys) for name in ("raw", "augmented")}


def test_without_being_asked_the_run_stops_and_names_the_record(shards):
    """What was learnt before it is saved; the same command stops there again."""
    rare = CheckpointConfig(every_steps=1000)
    config = config_of(shards, skip=False, checkpoints=rare)
    bad = spoil(config, late=True, spoilt={"raw": (1, 6)})
    first = min(drawn(config_of(shards), bad).values())
    data = dataclasses.replace(config.data, verify_checksums=False)
    wanted = r"^record \d+ of \S+\.arrayrecord: .*skip_damaged: true"
    saved = [first - 2] if first > 2 else []
    for _ in range(2):
        with pytest.raises(UserError, match=wanted):
            train(dataclasses.replace(config, data=data))
        assert positions(config.run_folder) == saved
    assert saved, "the damage comes too soon to see anything"


def test_what_shows_while_rows_are_made_is_counted_and_named(shards):
    """Also over a stop: the lines past the checkpoint are not written twice."""
    config = config_of(shards)
    bad = spoil(config, late=True)
    first = drawn(config, bad)
    path = write_config(config, shards / "c.yaml")
    killed = (signal.SIGKILL, 13)  # some batches past the checkpoint
    assert finish([start(path, signal=killed)])[0][0] == -signal.SIGKILL
    ended = launch("launch/train.py", "--config", path, "--resume", "required")
    assert ended.code == 0, ended.err
    lines = told(config.run_folder)
    assert {(line["task"], line["record"]): line["step"] for line in lines} == first
    assert len(lines) == len(first)
    for line in lines:
        assert line["what"].startswith("record ") and ".arrayrecord" in line["what"]
    assert summary_of(config.run_folder)["damaged_records"] == counted(set(first))
    assert f"{len(first)} damaged record(s) left out" in ended.out
    # And what the model saw has no token of them.
    tokens = sum(summary_of(config.run_folder)["source_tokens"].values())
    assert tokens == figures(config.run_folder, "tokens")[24] < 24 * 512


def test_what_the_length_index_knows_is_counted_before_the_first_batch(shards):
    config = config_of(shards)
    bad = spoil(config, late=False)
    summary = train(config)
    assert summary["damaged_records"] == {task: len(records) for task, records in bad.items()}
    lines = told(config.run_folder)
    assert {line["step"] for line in lines} == {0}
    assert {(line["task"], line["record"]) for line in lines} == {
        (task, record) for task, records in bad.items() for record in records
    }
    assert summary["tokens"] == 24 * 512  # they leave no gap
    assert train(config) == summary  # again does no harm


def test_several_processes_count_what_one_would(shards):
    config = config_of(shards, train_tokens=512 * 10)
    bad = spoil(config, late=True)
    first = drawn(config, bad)
    path = write_config(config, shards / "c.yaml")
    for code, _, errors in finish(start_several(path, 2)):
        assert code == 0, errors[-3000:]
    lines = told(config.run_folder)
    assert {(line["task"], line["record"]) for line in lines} == set(first)
    assert all(line["step"] >= first[line["task"], line["record"]] for line in lines)
    assert len(sorted((config.run_folder / "damaged").iterdir())) == 2  # each met some
    assert summary_of(config.run_folder)["damaged_records"] == counted(set(first))


def test_a_run_without_damage_says_so(tmp_path):
    file = DamageFile(tmp_path, DamageLog(), first_position=0, process=0, processes=1)
    file.note(1, 0)
    assert file.counts(("raw", "augmented")) == {"raw": 0, "augmented": 0}
    assert not (tmp_path / "damaged").exists()


def test_another_number_of_processes_goes_on(shards):
    """What processes wrote that are there no more is cut off like the rest, and counts."""
    config = config_of(shards)
    spoil(config, late=False)
    log = open_mixture(config.data).damaged
    keys = list(log.records)
    folder = shards / "run"
    (folder / "damaged").mkdir(parents=True)
    for process, lines in enumerate([[(keys[0], 0), (keys[4], 6)], [(keys[1], 4), (keys[2], 9)]]):
        text = "".join(
            json.dumps({"step": step, "task": task, "record": record, "what": "line\u2028end"})
            + "\n"
            for (task, record), step in lines
        )
        (folder / "damaged" / f"{process}.jsonl").write_text(text + '{"step": 3, "ta')
    log.records = {key: log.records[key] for key in keys[:1]}
    file = DamageFile(folder, log, first_position=5, process=0, processes=1)
    log.add(*keys[3], "a new one")
    file.note(6, len(log))
    file.note(7, len(log))
    assert [(line["task"], line["record"], line["step"]) for line in told(folder)] == [
        (*keys[0], 0),
        (*keys[3], 6),
        (*keys[1], 4),
    ]
    assert file.counts(("raw", "augmented", "other")) == {
        **counted({keys[0], keys[1], keys[3]}),
        "other": 0,
    }
