"""Damaged records: named without `skip_damaged`; with it left out, counted, and the rest as it
was."""

import logging
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record, ShardWriter
from ipt_jax.data.mixture import PACKINGS, DataConfig
from ipt_jax.data.pipeline import MixtureRows, OpenMixture, batches, open_mixture
from tests.damaged_shards import damage, unreadable
from tests.data_batches import digest

RUN = {"row_tokens": 256, "rows_per_batch": 8, "seed": 5, "total_batches": 12}
GROUP = 16  # records that are compressed together: damage takes all of them
AT = 20_000  # a byte of such a group


@pytest.fixture
def shards(tmp_path, documents, write_shards):
    """90 documents in two shards."""
    write_shards(tmp_path / "a", documents[:90])
    return tmp_path / "a"


def config(shards: Path, **changes: object) -> DataConfig:
    mixture = {"name": "m", "tasks": {"a": {"source": str(shards)}}}
    return replace(DataConfig(mixture, skip_damaged=True), **changes)  # type: ignore[arg-type]


def spans(data: OpenMixture, bad: list[int]) -> list[int]:
    """Planned tokens of some records, BOS and EOS included."""
    assert data.lengths[0] is not None
    return (data.lengths[0].array[bad] + 2).tolist()


@pytest.mark.parametrize("packing", PACKINGS)
def test_its_place_becomes_padding(shards, packing, caplog):
    """Damage after the lengths were counted: every other token, target and weight stays."""
    healthy = open_mixture(config(shards))
    whole = MixtureRows(healthy, row_tokens=256, seed=0, packing=packing)
    expected = whole.take(0, len(whole))
    damage(shards / "part-00000.arrayrecord", AT)
    bad = unreadable(shards)
    assert len(bad) == GROUP

    with caplog.at_level(logging.WARNING):
        data = open_mixture(config(shards))
    assert "the sha256 of shard" in caplog.text and len(data.damaged) == 0
    rows = MixtureRows(data, row_tokens=256, seed=0, packing=packing)
    assert len(rows) == len(whole)
    got = rows.take(0, len(rows))
    lost = (expected["source_ids"] >= 0) & (got["source_ids"] < 0)
    assert lost.sum() == sum(spans(data, bad))
    for name in ("segment_ids", "positions", "tokens"):
        assert not got[name][lost].any()
    assert not got["loss_weights"][lost].any()
    kept = ~lost & (expected["segment_ids"] > 0)
    for name in ("tokens", "positions", "source_ids"):
        assert (got[name][kept] == expected[name][kept]).all()
    learnt = expected["loss_weights"] > 0
    assert (got["loss_weights"][kept] == expected["loss_weights"][kept]).all()
    assert (got["targets"][kept & learnt] == expected["targets"][kept & learnt]).all()
    for row in got["segment_ids"]:  # still counted from 1 without gaps
        assert set(row.tolist()) - {0} == set(range(1, row.max() + 1))

    assert {index for _, index in data.damaged.records} == set(bad)
    where = f"record {bad[0]} of {shards / 'part-00000.arrayrecord'}: "
    assert data.damaged.records["a", bad[0]].startswith(where)
    assert caplog.text.count(where) == 1
    rows.take(0, len(rows))
    assert len(data.damaged) == GROUP and caplog.text.count(where) == 1
    ids = [key["id"] for key in rows.records(0, len(rows))]
    assert ids.count("(damaged)") >= GROUP


def test_without_being_asked_it_stops_the_run(shards):
    data = open_mixture(config(shards, skip_damaged=False))
    damage(shards / "part-00000.arrayrecord", AT)
    first = rf"record ({'|'.join(map(str, unreadable(shards)))}) of \S*part-00000\.arrayrecord: "
    with pytest.raises(UserError, match=first + r".*damaged.*`skip_damaged: true`"):
        list(batches(data, **RUN))
    with pytest.raises(UserError, match=r"the sha256 of shard \S*part-00000\.arrayrecord"):
        open_mixture(config(shards, skip_damaged=False))


def test_every_process_worker_and_start_gives_the_same(shards):
    open_mixture(config(shards))
    damage(shards / "part-00000.arrayrecord", AT)
    bad = unreadable(shards)
    data = open_mixture(config(shards))
    run = {**RUN, "total_batches": 30}  # more than an epoch
    whole = list(batches(data, **run))
    assert {index for _, index in data.damaged.records} == set(bad)
    assert all("damaged" not in batch for batch in whole)
    fresh = open_mixture(config(shards))
    assert digest(batches(fresh, **run, start_batch=10, worker_count=1)) == digest(whole[10:])
    assert len(fresh.damaged) == GROUP  # told by the worker


def test_what_the_index_knows_has_no_place(shards, caplog):
    """Damage before the lengths are counted: rows of all other records, and without waste."""
    everything = open_mixture(config(shards)).epoch_tokens[0]
    for index in shards.glob("lengths-*"):
        index.unlink()
    damage(shards / "part-00000.arrayrecord", AT)
    bad = unreadable(shards)
    with pytest.raises(UserError, match=rf"record {bad[0]} of .*part-00000.*skip_damaged: true"):
        open_mixture(config(shards, skip_damaged=False, verify_checksums=False))
    assert not list(shards.glob("lengths-*"))
    data = open_mixture(config(shards))
    assert len(data.damaged) == GROUP
    assert f"record {bad[0]} of {shards / 'part-00000.arrayrecord'}" in caplog.text
    rows = MixtureRows(data, row_tokens=256, seed=0)
    got = rows.take(0, len(rows))
    assert (got["source_ids"] >= 0).sum() == data.epoch_tokens[0] < everything
    assert (got["tokens"] == data.tokenizer.bos_id).sum() == 90 - GROUP
    best = MixtureRows(data, row_tokens=256, seed=0, packing="best_fit")
    assert (best.take(0, len(best))["source_ids"] >= 0).sum() == data.epoch_tokens[0]

    # Mended later: who skips goes on with the rows there were, who does not has all records.
    damage(shards / "part-00000.arrayrecord", AT)
    assert digest(batches(open_mixture(config(shards)), **RUN)) == digest(batches(data, **RUN))
    assert "could not be read before, but can be now" in caplog.text
    assert open_mixture(config(shards, skip_damaged=False)).epoch_tokens[0] == everything
    with ShardWriter(shards) as writer:  # other records: neither index is left
        writer.write(Record("x", "text", "s"))
    assert not list(shards.glob("lengths-*"))


def test_a_shard_cut_short_and_one_that_is_gone(shards):
    shard = shards / "part-00000.arrayrecord"
    shard.write_bytes(shard.read_bytes()[:-3000])
    with pytest.raises(UserError, match=r"part-00000\.arrayrecord has .* bytes where"):
        open_mixture(config(shards, skip_damaged=False))
    data = open_mixture(config(shards))
    assert {index for _, index in data.damaged.records} == set(range(64))
    assert data.lengths[0] is not None and data.lengths[0].tokens(2) == data.epoch_tokens[0]
    batch = next(batches(data, **RUN))
    assert (batch["source_ids"] == 0).all()
    shard.unlink()  # not damage: no record of it may be left out in silence
    with pytest.raises(UserError, match=r"part-00000\.arrayrecord is missing"):
        open_mixture(config(shards))


def test_a_shard_that_vanishes_is_no_damage(shards):
    data = pickle.loads(pickle.dumps(open_mixture(config(shards))))  # no file is open yet
    (shards / "part-00000.arrayrecord").unlink()
    with pytest.raises(UserError, match=r"part-00000\.arrayrecord is missing though it was there"):
        list(batches(data, **RUN))
    assert len(data.damaged) == 0


def test_a_record_that_does_not_parse(tmp_path, monkeypatch):
    """Whole bytes of another kind: checksums are right, and the record alone is damaged."""
    from ipt_jax.core import records

    true = records.serialize
    broken = {"d/3": b"\xff\xff\xff"}
    monkeypatch.setattr(records, "serialize", lambda r: broken.get(r.id) or true(r))
    with ShardWriter(tmp_path) as writer:
        for number in range(40):
            writer.write(Record(f"d/{number}", "some text " * 20, "d"))
    with pytest.raises(
        UserError, match=r"^record 3 of .*part-00000.*is not a record of this project.*true"
    ):
        open_mixture(config(tmp_path, skip_damaged=False))
    data = open_mixture(config(tmp_path))
    assert [index for _, index in data.damaged.records] == [3]
    rows = MixtureRows(data, row_tokens=64, seed=0)
    tokens = rows.take(0, len(rows))["tokens"]
    assert (tokens == data.tokenizer.bos_id).sum() == 39
    assert np.flatnonzero(data.lengths[0].array < 0).tolist() == [3]  # type: ignore[union-attr]


def test_a_source_of_damage_alone_is_empty(shards):
    for shard in shards.glob("part-*"):
        shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(UserError, match="all sources of mixture 'm' are empty"):
        open_mixture(config(shards))
