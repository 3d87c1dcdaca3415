"""The pipeline on real text: the same batches however they are made, and what bad input gets."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipt_jax.core.errors import RunStopped, UserError
from ipt_jax.core.records import Record, RecordSource, ShardWriter
from ipt_jax.core.tokenizers import load_tokenizer
from ipt_jax.data.encode import index_lengths
from ipt_jax.data.pipeline import (
    DataConfig,
    MixtureRows,
    batches,
    load_mixture,
    open_mixture,
    realised_rates,
    source_tokens,
)
from ipt_jax.data.tasks import Mixture, Task
from tests.data_batches import digest, joined

KEYS = {"tokens", "targets", "loss_weights", "segment_ids", "positions", "source_ids"}
ROWS = {"row_tokens": 256, "rows_per_batch": 8, "seed": 5, "total_batches": 12}


@pytest.fixture(scope="module")
def whole(mixture):
    """All batches of one process without workers."""
    return list(batches(mixture, **ROWS))


def test_batches_have_their_form(whole):
    assert len(whole) == ROWS["total_batches"]
    for batch in whole:
        assert set(batch) == KEYS
        assert {array.shape for array in batch.values()} == {(8, 256)}
        assert batch["loss_weights"].dtype == np.float32
        assert {a.dtype for n, a in batch.items() if n != "loss_weights"} == {np.dtype(np.int32)}
        assert batch["segment_ids"].min() == 1


def test_cut_rows_are_those_of_earlier_versions(mixture, whole):
    """Or checkpoints of runs that began before would go on with other data."""
    first = "be7db3490e19c15c310990d0ce8a74fe67e45c44b323e28aced6439d8cbd3b39"
    assert digest(whole) == first
    by_examples = batches(replace(mixture, by="examples"), **ROWS)
    second = "fc2b90dd631f31f3b852dca7103581937c62dda21b7b0260cc0c470ed2d6e9c0"
    assert digest(by_examples) == second


def test_rows_are_the_records_one_after_another(mixture, whole):
    """Against sentencepiece on the texts: BOS text EOS, each example as it stands in its record."""
    data = open_mixture(mixture)
    known = set()
    for task in mixture.tasks:
        source = RecordSource(task.source)
        texts = [record.text for record in source.read(range(len(source)))]
        known |= {tuple(ids) for ids in data.tokenizer.encode_batch(texts, bos=True, eos=True)}
    stream = np.concatenate([batch["tokens"].ravel() for batch in whole])
    targets = np.concatenate([batch["targets"].ravel() for batch in whole])
    weights = np.concatenate([batch["loss_weights"].ravel() for batch in whole])
    assert (targets[:-1] == stream[1:]).all()
    examples = np.split(stream, np.flatnonzero(stream == data.tokenizer.bos_id)[1:])
    assert len(examples) > 50
    assert all(tuple(example.tolist()) in known for example in examples[:-1])
    assert (weights == (targets != data.tokenizer.bos_id)).all()


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_any_number_of_processes_reads_the_same_batches(mixture, whole, count):
    parts = [
        list(batches(mixture, **ROWS, process_index=index, process_count=count))
        for index in range(count)
    ]
    assert digest(joined(parts)) == digest(whole)


def test_worker_processes_change_nothing(mixture, whole):
    assert digest(list(batches(mixture, **ROWS, worker_count=2))) == digest(whole)


def test_a_worker_process_that_is_killed_is_no_traceback(mixture):
    made = batches(mixture, **ROWS, worker_count=1)
    next(made)
    for worker in multiprocessing.active_children():
        worker.kill()
    with pytest.raises(RunStopped, match=r"data\.worker_count=.*ended from outside") as told:
        list(made)
    assert told.value.code == 75


_ORPHANS = """
import json, sys, threading
from ipt_jax.data.pipeline import batches
from ipt_jax.data.tasks import Mixture, Task
if __name__ == "__main__":
    mixture = Mixture("one", (Task("raw", sys.argv[1]),))
    next(batches(mixture, rows_per_batch=8, total_batches=10**6, worker_count=1))
    print("reading", flush=True)
    threading.Event().wait()
"""


def test_worker_processes_do_not_outlive_a_killed_run(corpus, tmp_path):
    (tmp_path / "read.py").write_text(_ORPHANS)  # a spawned worker imports it again
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "read.py"), str(corpus / "raw")],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "reading\n"
    process.kill()
    # The workers hold the pipe too: it ends when the last of them has.
    assert process.communicate(timeout=600)[0] == ""


_RESUME = """
import json, sys
from ipt_jax.data.pipeline import batches
from ipt_jax.data.tasks import Mixture, Task
from tests.data_batches import digest
name, tasks, rates, start, rows = json.loads(sys.argv[1])
mixture = Mixture(name, tuple(Task(**task) for task in tasks), rates)
print(digest(batches(mixture, start_batch=start, **rows)))
"""


def test_a_fresh_process_goes_on_exactly(mixture, whole):
    tasks = [task.__dict__ for task in mixture.tasks]
    argument = json.dumps([mixture.name, tasks, dict(mixture.rates), 7, ROWS])  # type: ignore[arg-type]
    ran = subprocess.run(
        [sys.executable, "-c", _RESUME, argument],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
        cwd=Path(__file__).parents[3],
    )
    assert ran.stdout.strip() == digest(whole[7:])
    assert list(batches(mixture, **ROWS, start_batch=12)) == []


def test_a_longer_run_begins_as_the_shorter(mixture, whole):
    longer = batches(mixture, **{**ROWS, "total_batches": 50})
    assert digest([next(longer) for _ in whole]) == digest(whole)
    other = batches(mixture, **{**ROWS, "seed": 6})
    assert digest([next(other) for _ in whole]) != digest(whole)


def test_realised_rates_are_the_asked(mixture):
    data = open_mixture(mixture)
    total = np.zeros(3, np.int64)
    for batch in batches(data, row_tokens=1024, rows_per_batch=16, seed=0, total_batches=30):
        total += source_tokens(batch["source_ids"], 3)
    assert total.sum() == 30 * 16 * 1024
    for name, rate in realised_rates(total, data.task_names).items():
        assert rate == pytest.approx(data.asked_rates[name], rel=0.005)


def test_natural_rates_follow_the_sizes(mixture):
    data = open_mixture(replace(mixture, rates="natural"))
    sizes = dict(zip(data.task_names, data.epoch_tokens, strict=True))
    expected = {name: size / sum(sizes.values()) for name, size in sizes.items()}
    assert data.asked_rates == pytest.approx(expected)


def test_one_whole_pass_is_padded_at_its_end_only(mixture):
    data = open_mixture(replace(mixture, rates="natural"))
    rows = pickle.loads(pickle.dumps(MixtureRows(data, row_tokens=500, seed=0)))
    everything = [rows[row] for row in range(len(rows))]
    counts = np.sum([source_tokens(row["source_ids"], 3) for row in everything], axis=0)
    assert counts.tolist() == list(data.epoch_tokens)
    assert all((row["segment_ids"] > 0).all() for row in everything[:-1])
    last = everything[-1]
    assert (last["source_ids"] == -1).sum() == -sum(data.epoch_tokens) % 500
    assert last["loss_weights"][last["segment_ids"] == 0].sum() == 0
    with pytest.raises(UserError, match="natural"):
        MixtureRows(open_mixture(mixture), row_tokens=500, seed=0)


def test_a_source_that_runs_out_is_told_before_the_first_step(mixture):
    few = replace(mixture.tasks[2], max_epochs=2)
    limited = replace(mixture, tasks=(*mixture.tasks[:2], few))
    data = open_mixture(limited)
    allowed = 2 * data.epoch_tokens[2] / data.asked_rates["few"]
    lasting = int(allowed * 0.9) // (8 * 256)
    steps = {"row_tokens": 256, "rows_per_batch": 8, "seed": 0}
    counts = np.zeros(3, np.int64)
    for batch in batches(data, **steps, total_batches=lasting):
        counts += source_tokens(batch["source_ids"], 3)
    assert counts[2] <= 2 * data.epoch_tokens[2]
    with pytest.raises(UserError, match=r"'few' runs out at step .*tasks\.few\.max_epochs") as told:
        batches(data, **steps, total_batches=1000)
    step = int(str(told.value).split("at step ")[1].split(" ")[0].replace(",", ""))
    assert step == pytest.approx(allowed / (8 * 256), rel=0.1)


def test_loss_on_responses_only(tmp_path):
    question, answer = "Question: why is the sky blue? Answer:", " Because of né scattering.\n"
    parts = (question, answer, "Next: what?", " That.")
    with ShardWriter(tmp_path / "qa") as writer:
        writer.write(Record("a", "".join(parts), "made", parts, (0.0, 1.0, 0.0, 1.0)))
    task = Task("qa", str(tmp_path / "qa"), loss="responses")
    data = open_mixture(Mixture("m", (task,)))
    row = MixtureRows(data, row_tokens=200, seed=0)[0]
    learnt = row["targets"][row["loss_weights"] > 0]
    assert data.tokenizer.decode(learnt[:-1].tolist()) == "Because of né scattering.\n That."
    assert learnt[-1] == data.tokenizer.eos_id
    whole_loss = replace(data.mixture, tasks=(replace(task, loss="all"),))
    row = MixtureRows(open_mixture(whole_loss), row_tokens=200, seed=0)[0]
    assert (row["loss_weights"] > 0).sum() == data.epoch_tokens[0] - 1
    with ShardWriter(tmp_path / "qa") as writer:
        writer.write(Record("b", "plain text", "made"))
    with pytest.raises(UserError, match=r"record 0 of .*qa/part-00000.*'b'.*`parts`"):
        MixtureRows(open_mixture(data.mixture), row_tokens=200, seed=0)[0]


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_eos_has_the_weight_of_what_it_ends(tmp_path, weight):
    """A record that ends in what is not learnt does not teach to end there."""
    parts, loss = ("A question.", " An answer.", " A remark."), (0.0, 1.0, weight)
    with ShardWriter(tmp_path / "qa") as writer:
        writer.write(Record("a", "".join(parts), "made", parts, loss))
    task = Task("qa", str(tmp_path / "qa"), loss="responses")
    row = MixtureRows(open_mixture(Mixture("m", (task,))), row_tokens=30, seed=0)[0]
    (place,) = np.flatnonzero(row["targets"] == load_tokenizer(task.tokenizer).eos_id)
    assert row["loss_weights"][place] == row["loss_weights"][place - 1] == weight
    assert (row["loss_weights"][: place - 4] == 1).any()


def test_lengths_are_counted_once_and_never_taken_for_others(tmp_path, documents, write_shards):
    tokenizer = load_tokenizer("mistral-7b-v0.1")
    calls: list[tuple[int, int]] = []

    def count() -> Any:
        source = RecordSource(write_folder)
        return index_lengths(source, tokenizer, lambda done, total: calls.append((done, total)))

    write_folder = write_shards(tmp_path / "a", documents[:20])
    first = count()
    expected = [len(ids) for ids in tokenizer.encode_batch(documents[:20])]
    assert first.array.tolist() == expected
    assert (count().path, calls) == (first.path, [(20, 20)])
    first.path.write_bytes(first.path.read_bytes()[:-4])  # damaged: counted again
    assert count().array.tolist() == expected
    assert len(calls) == 2
    write_shards(tmp_path / "a", documents[1:21])  # other records: another index
    assert not first.path.exists()
    assert count().path != first.path
    assert len(calls) == 3


def test_a_stale_index_names_the_record(tmp_path, documents, write_shards):
    task = Task("a", write_shards(tmp_path / "a", documents[:20]))
    data = open_mixture(Mixture("m", (task,)))
    assert data.lengths[0] is not None
    path = data.lengths[0].path
    np.save(path, np.load(path) + 1)
    with pytest.raises(UserError, match=r"record \d+ of .*part-00000.*delete .*lengths-"):
        next(batches(Mixture("m", (task,)), **ROWS))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_is_named_while_reading(tmp_path, documents, write_shards, workers):
    task = Task("a", write_shards(tmp_path / "a", documents[:20]))
    data = open_mixture(Mixture("m", (task,)))
    shard = tmp_path / "a" / "part-00000.arrayrecord"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(UserError, match=r"part-00000\.arrayrecord cannot be read"):
        list(batches(data, **ROWS, worker_count=workers))
    with pytest.raises(UserError, match=r"part-00000\.arrayrecord"):
        open_mixture(Mixture("m", (task,)))


def test_empty_sources(tmp_path, documents, write_shards):
    full = Task("full", write_shards(tmp_path / "full", documents[:5]))
    empty = Task("empty", write_shards(tmp_path / "empty", []))
    data = open_mixture(Mixture("m", (empty, full)))
    assert data.asked_rates == {"empty": 0.0, "full": 1.0}
    batch = next(batches(data, **ROWS))
    assert (batch["source_ids"] == 1).all()
    with pytest.raises(UserError, match=r"`rates.empty` = 1 but .*empty holds no tokens"):
        open_mixture(Mixture("m", (empty, full), {"empty": 1, "full": 1}))
    with pytest.raises(UserError, match="all sources of mixture 'm' are empty"):
        open_mixture(Mixture("m", (empty,)))


def test_a_source_of_rate_zero_is_not_touched(mixture):
    gone = replace(mixture.tasks[0], source="/nowhere")
    data = open_mixture(
        replace(mixture, tasks=(gone, *mixture.tasks[1:]), rates={"raw": 0, "short": 1, "few": 1})
    )
    batch = next(batches(data, **ROWS))
    assert set(np.unique(batch["source_ids"])) == {1, 2}


def test_settings_come_from_the_config(corpus):
    inline = {"name": "test", "root": str(corpus), "tasks": {"raw": {"source": "raw"}}}
    config = DataConfig(inline, row_tokens=256, seed=5)
    told = batches(load_mixture(config), **{**ROWS, "total_batches": 2})
    read = batches(open_mixture(config), rows_per_batch=8, total_batches=2)
    assert digest(list(read)) == digest(list(told))


def test_batches_that_cannot_be(mixture):
    with pytest.raises(UserError, match="8 rows does not divide among 3"):
        batches(mixture, **ROWS, process_count=3)
    with pytest.raises(UserError, match="process_index 2"):
        batches(mixture, **ROWS, process_index=2, process_count=2)
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_mixture(Mixture("m", (Task("a", "nowhere"),)))


class _Slow:
    """`_tokenise` that takes its time, counts, and fails where it is told to."""

    def __init__(self, rows: MixtureRows) -> None:
        self._tokenise, self.seen, self.fails = rows._tokenise, [], True
        rows._tokenise = self  # type: ignore[method-assign]

    def __call__(self, task: int, records: list[int]) -> Any:
        self.seen += [(task, record) for record in records]
        time.sleep(0.05)
        if self.fails:
            raise UserError("shard gone")
        return self._tokenise(task, records)


def test_an_example_that_several_threads_need_is_tokenised_once(tmp_path, documents, write_shards):
    long = " ".join(documents[:20])
    source = write_shards(tmp_path / "long", [long, *documents[20:26]])
    data = open_mixture(Mixture("long", (Task("long", source),)))
    # Each thread takes a row; most lie in the one long example.
    rows = MixtureRows(data, row_tokens=64, seed=0, rows=100)
    expected = [rows[number] for number in range(100)]
    rows = MixtureRows(data, row_tokens=64, seed=0, rows=100)
    slow = _Slow(rows)
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(rows.__getitem__, n) for n in range(8)]:
            with pytest.raises(UserError, match="shard gone"):
                future.result()
        slow.fails = False
        slow.seen.clear()
        found = list(pool.map(rows.__getitem__, range(100)))
    assert len(slow.seen) == len(set(slow.seen)) > 1
    for one, other in zip(expected, found, strict=True):
        for name, array in one.items():
            np.testing.assert_array_equal(other[name], array)
