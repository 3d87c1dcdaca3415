"""What is counted of a mixture is what its records and batches hold."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ipt_jax.core import manifest
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record, RecordSource, ShardWriter
from ipt_jax.core.tokenizers import load_tokenizer
from ipt_jax.data.mixture import PACKINGS, DataConfig
from ipt_jax.data.pipeline import OpenMixture, batches, open_mixture
from ipt_jax.data.statistics import QUANTILES, survey
from tests.damaged_shards import damage


@pytest.fixture(scope="module")
def folder(tmp_path_factory, documents, write_shards):
    """``raw``: 150 documents; ``talk``: 60 openings of which a half is learnt; ``idle``."""
    folder = tmp_path_factory.mktemp("survey")
    write_shards(folder / "raw", documents[:150])
    write_shards(folder / "idle", documents[:3])
    with ShardWriter(folder / "talk") as writer:
        for number, text in enumerate(documents[:60]):
            parts = (text[:90], text[90:200])
            writer.write(Record(f"t/{number}", "".join(parts), "talk", parts, (0.0, 0.5)))
    return folder


@pytest.fixture
def config(folder):
    """Rates that change at batch 6; a task of rate 0."""
    tasks = {"raw": {}, "idle": {}, "talk": {"loss": "responses", "bos": False}}
    content = {
        "root": str(folder),
        "rates": {"raw": 3, "idle": 0, "talk": 1},
        "stages": [{"from_step": 6, "rates": {"raw": 1, "idle": 0, "talk": 1}}],
        "tasks": {name: {"source": name, **values} for name, values in tasks.items()},
    }
    return DataConfig(content, row_tokens=256)


def lengths_of(data: OpenMixture, folder: Path, task: int) -> np.ndarray:
    """Counted by hand."""
    source, extra = RecordSource(folder / data.task_names[task]), 2 - (task == 2)
    texts = [record.text for record in source.read(range(len(source)))]
    ids = load_tokenizer("mistral-7b-v0.1").encode_batch(texts)
    return np.asarray([len(i) + extra for i in ids])


@pytest.mark.parametrize("packing", PACKINGS)
def test_batches_are_counted(config, packing):
    data = open_mixture(replace(config, packing=packing))  # type: ignore[arg-type]
    found = survey(data, batch_count=10, rows=8)
    made = list(batches(data, rows_per_batch=8, total_batches=10))
    assert found.places == 8 * 256
    for n, batch in enumerate(made):
        for task in range(3):
            mine = batch["source_ids"] == task
            weights = batch["loss_weights"][mine]
            assert found.tokens[n, task] == mine.sum()
            assert found.learnt[n, task] == (weights > 0).sum()
            assert found.weight[n, task] == weights.sum()
        assert found.fill[n] == (batch["segment_ids"] > 0).mean()
    assert found.weight[:, 2].sum() == found.learnt[:, 2].sum() / 2  # all its weights are 0.5
    rows = np.concatenate([batch["segment_ids"].max(axis=1) for batch in made])
    assert found.segments.tolist() == np.bincount(rows).tolist()
    assert found.stages == (6,)
    np.testing.assert_allclose(found.asked[5], [0.75, 0, 0.25])
    np.testing.assert_allclose(found.asked[6], [0.5, 0, 0.5])
    assert found.epochs(2) == pytest.approx(found.tokens[:, 2].sum() / data.epoch_tokens[2])


def test_lengths_are_counted(config, folder):
    data = open_mixture(config)
    found = survey(data, batch_count=1, rows=1)
    edges = found.edges(20)
    everything = np.concatenate([lengths_of(data, folder, 0), lengths_of(data, folder, 2)])
    assert (edges[0], edges[-1]) == (everything.min(), everything.max() + 1)
    assert (np.diff(edges) > 0).all() and len(edges) <= 21
    for task in (0, 2):
        lengths, told = lengths_of(data, folder, task), found.tasks[task]
        assert told.records == len(lengths) == told.lengths.sum()
        assert told.epoch_tokens == lengths.sum()
        assert told.longer_than(256) == (lengths > 256).sum()
        wanted = np.quantile(lengths, QUANTILES, method="inverted_cdf")
        assert [told.quantile(share) for share in QUANTILES] == wanted.tolist()
        columns, _ = np.histogram(lengths, [*edges[:-1], edges[-1] - 0.5])
        assert told.histogram(edges).tolist() == columns.tolist()
    idle = found.tasks[1]  # of rate 0: not even opened
    assert (idle.records, idle.quantile(0.5), idle.histogram(edges).sum()) == (0, 0, 0)


def test_asked_shares_are_of_tokens(config):
    """Where rates are shares of examples: as many tokens as those examples have."""
    assert isinstance(config.mixture, dict)
    data = open_mixture(replace(config, mixture={**config.mixture, "by": "examples"}))
    found = survey(data, batch_count=60, rows=8)
    assert found.asked.sum(axis=1) == pytest.approx(np.ones(60))
    assert found.asked[0, 2] < 0.12  # a quarter of the examples, and short ones
    realised = found.tokens.sum(axis=0) / found.tokens.sum()
    np.testing.assert_allclose(realised, found.asked.mean(axis=0), atol=0.01)


def test_the_corpus_is_not_read_for_its_lengths(config, monkeypatch):
    open_mixture(config)  # the indexes are there
    read: set[int] = set()
    true = RecordSource.read

    def noted(self: RecordSource, indices: list[int]) -> list[Record]:
        if self.folder.name == "raw":
            read.update(indices)
        return true(self, indices)

    monkeypatch.setattr(RecordSource, "read", noted)
    monkeypatch.setattr(manifest, "file_sha256", lambda path: pytest.fail(f"{path} was read"))
    found = survey(open_mixture(config, verify=False), batch_count=1, rows=1)
    assert 0 < len(read) < 10 and found.tasks[0].lengths.sum() == 150


def test_damage_is_told(config, folder):
    shard = folder / "raw" / "part-00001.arrayrecord"
    whole = shard.read_bytes()
    open_mixture(config)
    try:
        damage(shard)
        opened = open_mixture(replace(config, skip_damaged=True), verify=False)
        found = survey(opened, batch_count=40, rows=8)
    finally:
        shard.write_bytes(whole)
    assert found.damaged and {task for task, *_ in found.damaged} == {"raw"}
    assert all(64 <= record < 128 for _, record, _ in found.damaged)
    assert all("part-00001.arrayrecord" in what for *_, what in found.damaged)
    assert found.fill.min() < 1  # their places are padding


def test_what_the_index_leaves_out_has_no_length(tmp_path, documents, write_shards):
    shard = Path(write_shards(tmp_path / "a", documents[:90])) / "part-00000.arrayrecord"
    damage(shard)
    mixture = {"tasks": {"a": {"source": str(tmp_path / "a")}}}
    data = open_mixture(DataConfig(mixture, row_tokens=256, skip_damaged=True))
    found = survey(data, batch_count=2, rows=2)
    assert len(found.damaged) > 0 and found.fill.min() == 1
    assert found.tasks[0].records == 90
    assert found.tasks[0].lengths.sum() == 90 - len(found.damaged)
    tokens = found.tasks[0].lengths @ np.arange(len(found.tasks[0].lengths))
    assert tokens == found.tasks[0].epoch_tokens == data.epoch_tokens[0]


def test_nothing_is_no_survey(config):
    with pytest.raises(UserError, match="batches=0"):
        survey(open_mixture(config), batch_count=0, rows=1)
