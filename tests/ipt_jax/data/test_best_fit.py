"""Best-fit rows: every example in its window, any row at random access, counts kept in a file."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipt_jax.core.errors import UserError
from ipt_jax.data import best_fit as module
from ipt_jax.data.best_fit import BestFitRows, Packed
from ipt_jax.data.packing import best_fit
from ipt_jax.data.schedule import MixtureSchedule, TaskSampler, permutation
from tests.data_batches import Made

T = 256


def sizes(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).lognormal(4.5, 1.0, count).astype(int).tolist()


SIZES = [sizes(1500, 0), sizes(400, 1), sizes(60, 2)]
RATES = [0.7, 0.2, 0.1]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """64 rows, so that a few thousand examples make many windows."""
    monkeypatch.setattr(module, "WINDOW_ROWS", 64)
    monkeypatch.setattr(module, "WINDOW_TOKENS", 0)


def make(folder: Path, by: Any = "tokens", seed: int = 0, **changes: Any) -> BestFitRows:
    natural = changes.get("natural", False)
    orders = [
        TaskSampler(f"task-{i}", Made(values), extra_tokens=2, seed=seed, by=by)
        for i, values in enumerate(SIZES)
    ]
    tokens = [order.epoch_tokens for order in orders]
    rates = [n / sum(tokens) for n in tokens] if natural else RATES
    settings: dict[str, Any] = dict(
        row_tokens=T,
        seed=seed,
        stages=[],
        caps=[],
        natural=False,
        whole=False,
        folder=folder,
        identity=f"{by} {seed}",
    )
    return BestFitRows(
        MixtureSchedule(orders, rates, changes.get("whole", False)), **{**settings, **changes}
    )


def tokens_of(packed: Packed, task: int) -> int:
    of_pieces = packed.task[packed.pieces.example]
    return int(packed.pieces.length[of_pieces == task].sum())


def same(one: Packed, other: Packed) -> bool:
    def key(packed: Packed) -> list[Any]:
        p = packed.pieces
        arrays = (packed.task[p.example], packed.record[p.example], packed.tokens[p.example])
        return [a.tolist() for a in (*arrays, p.start, p.length, p.row)]

    return key(one) == key(other)


@pytest.mark.parametrize("by", ["tokens", "examples"])
def test_any_rows_at_random_access(tmp_path, by):
    """A fresh object, one from a pickle and one asked backwards give what reading on gives."""
    rows = make(tmp_path, by)
    whole = rows.take(0, 500)
    assert whole.pieces.rows == 500
    copy = pickle.loads(pickle.dumps(rows))
    fresh = make(tmp_path, by)
    for start in (499, 130, 63, 0):
        stop = min(start + 70, 500)
        expected = whole.pieces.within(start, stop)
        for other in (copy, fresh):
            part = other.take(start, stop)
            assert part.pieces.row.tolist() == expected.row.tolist()
            assert part.pieces.length.tolist() == expected.length.tolist()
            assert (
                part.record[part.pieces.example].tolist() == whole.record[expected.example].tolist()
            )
    assert not same(make(tmp_path, by, seed=1).take(0, 500), whole)


def test_an_epoch_has_every_token_once(tmp_path):
    rows = make(tmp_path, natural=True, whole=True)
    count = rows.count()
    packed = rows.take(0, count)
    p = packed.pieces
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for place, start, length in zip(p.example, p.start, p.length, strict=True):
        key = (int(packed.task[place]), int(packed.record[place]))
        found.setdefault(key, []).append((int(start), int(length)))
    assert len(found) == sum(map(len, SIZES))
    for (task, record), parts in found.items():
        length = SIZES[task][record] + 2
        assert [start for start, _ in sorted(parts)] == list(range(0, length, T))
        assert sum(size for _, size in parts) == length
    held = np.bincount(p.row, p.length, minlength=count)
    assert held.max() <= T
    assert held.sum() / (count * T) > 0.985  # windows of 64 rows end half empty


def test_a_natural_epoch_is_whole_before_the_next(tmp_path):
    rows = make(tmp_path, natural=True)
    count = make(tmp_path, natural=True, whole=True).count()
    for epoch in range(2):
        packed = rows.take(epoch * count, (epoch + 1) * count)
        keys = list(zip(packed.task.tolist(), packed.record.tolist(), strict=True))
        assert len(set(keys)) == len(keys) == sum(map(len, SIZES))


def test_rates_hold_over_short_stretches_and_lengths_do_not_order_rows(tmp_path):
    rows = make(tmp_path)
    counts = np.zeros((40, 3))
    segments = []
    for part in range(40):
        packed = rows.take(part * 64, (part + 1) * 64)
        counts[part] = [tokens_of(packed, task) for task in range(3)]
        segments.append(np.bincount(packed.pieces.row, minlength=64))
    total = counts.cumsum(0)
    off = np.abs(total - total.sum(1, keepdims=True) * RATES)
    assert off.max() < 0.2 * 64 * T  # much less than a window's rows, wherever one stops
    # A row with one long example is as likely early in its window as late.
    early, late = np.mean(segments, axis=0).reshape(2, 32).mean(1)
    assert early == pytest.approx(late, rel=0.1)


def test_kinds_of_rows_are_spread_and_documents_stay_together():
    """Rows of one task each: any stretch has each kind's share, to within a row or two."""
    generator = np.random.default_rng(0)
    task = generator.choice(3, 400, p=[0.7, 0.2, 0.1])
    ones = np.ones(400, np.int64)
    pieces = module.PackedSegments(np.arange(400), 0 * ones, (T - 1) * ones, np.arange(400), 400)
    rank = module._spread(pieces, task, 3, T, np.random.default_rng(1))
    assert sorted(rank.tolist()) == list(range(400))
    ordered = np.empty(400, np.int64)
    ordered[rank] = task
    for kind in range(3):
        met = np.cumsum(ordered == kind)
        share = met[-1] / 400 * np.arange(1, 401)
        assert np.abs(met - share).max() <= 2
    assert not (np.diff(rank) > 0).all()  # within a kind the order is drawn
    document = best_fit(np.asarray([6 * T, *[T - 1] * 50]), T)
    rank = module._spread(document, np.zeros(56, np.int64), 1, T, np.random.default_rng(1))
    assert np.diff(rank[:4]).tolist() == [1, 1, 1] and rank[5] - rank[4] == 1


def test_rates_change_at_their_row(tmp_path):
    stages = [(333, [0.0, 0.5, 0.5]), (700, [0.9, 0.1, 0.0])]
    rows = make(tmp_path, stages=stages)
    borders = [0, 333, 700, 1100]
    longest = [max(values) + 2 for values in SIZES]
    for rates, first, last in zip(
        [RATES, *(r for _, r in stages)], borders, borders[1:], strict=False
    ):
        packed = rows.take(first, last)
        total = int(packed.pieces.length.sum())
        # Windows end where rates change: no row before has what comes after.
        if last < 1100:
            for task, rate in enumerate(rates):
                assert abs(tokens_of(packed, task) - rate * total) <= 2 * max(longest)
            assert total / ((last - first) * T) > 0.97
        for task, rate in enumerate(rates):
            if rate == 0:
                assert tokens_of(packed, task) <= longest[task]
    # Each task's examples go on in their order: what was met is a prefix of it, windows apart.
    packed = rows.take(0, 700)
    for task, values in enumerate(SIZES):
        met = packed.record[packed.task == task]
        epochs = range(len(met) // len(values) + 1)
        order = [permutation(0, f"task-{task}", epoch, len(values)) for epoch in epochs]
        expected = np.concatenate(order)[: len(met)]
        assert sorted(met.tolist()) == sorted(expected.tolist())
    fresh = make(tmp_path, stages=stages)
    assert same(fresh.take(690, 720), rows.take(690, 720))


def test_a_window_ends_at_a_cap(tmp_path):
    """So rows before it have the task's first examples and no others."""
    order = TaskSampler("task-2", Made(SIZES[2]), extra_tokens=2, seed=0, by="tokens")
    share = order.share_of(2 * len(SIZES[2]))
    rows = make(tmp_path, caps=[(2, share)])
    until = rows.rows_until(2, share, 10_000)
    assert until is not None
    assert rows.rows_until(2, share, until) is None
    packed = rows.take(0, until)
    met = packed.record[packed.task == 2]
    assert tokens_of(packed, 2) <= share
    assert np.bincount(met).max() == 2
    assert np.count_nonzero(np.bincount(met) == 2) >= len(SIZES[2]) - 1
    later = rows.take(until, until + 64)
    assert (later.task == 2).any()
    paused = make(tmp_path, caps=[(2, share)], stages=[(20, [0.8, 0.2, 0.0])])
    assert paused.rows_until(2, share, 2000) is None  # a task that pauses is never used up


def test_a_cap_that_is_far_needs_no_counting(tmp_path, monkeypatch):
    stages = [(300, [0.5, 0.0, 0.5])]
    used = T * (300 * 0.1 + 200 * 0.5)  # of task 2 by row 500, if rows were full
    near = make(tmp_path, stages=stages, caps=[(2, int(0.9 * used))])
    assert near.rows_until(2, int(0.9 * used), 500) == pytest.approx(
        300 + (0.9 * used / T - 30) / 0.5, rel=0.05
    )

    def next_window(self: BestFitRows) -> None:
        raise AssertionError("counted")

    monkeypatch.setattr(BestFitRows, "_next", next_window)
    far = make(tmp_path, stages=stages, caps=[(2, int(1.5 * used))])
    assert far.rows_until(2, int(1.5 * used), 500) is None
    with pytest.raises(AssertionError, match="counted"):
        far.rows_until(2, int(1.5 * used), 900)


def test_counts_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SAVE_WINDOWS", 3)
    stages = [(333, [0.1, 0.5, 0.4])]
    rows = make(tmp_path, stages=stages)
    expected = rows.take(0, 1000)
    assert rows.path.name.startswith("rows-") and rows.path.parent == tmp_path
    kept = make(tmp_path, stages=stages)
    packs: list[int] = []
    pack = BestFitRows._pack

    def counting(self: BestFitRows, first: int, last: int) -> Any:
        packs.append(first)
        return pack(self, first, last)

    monkeypatch.setattr(BestFitRows, "_pack", counting)
    assert kept.take(900, 910).record.tolist() == rows.take(900, 910).record.tolist()
    assert len(packs) <= 3  # and not all windows before
    assert same(kept.take(0, 1000), expected)
    assert make(tmp_path, stages=stages, row_tokens=T + 1).path != rows.path
    assert make(tmp_path, stages=[(334, [0.1, 0.5, 0.4])]).path != rows.path
    assert make(tmp_path, stages=stages, identity="other").path != rows.path


def test_counts_that_are_damaged(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "_SAVE_WINDOWS", 3)
    rows = make(tmp_path)
    expected = rows.take(0, 1000)
    good = rows.path.read_bytes()
    rows.path.write_bytes(good[:-5])
    assert same(make(tmp_path).take(0, 1000), expected)
    assert f"{rows.path} are damaged" in caplog.text
    table = np.load(rows.path)
    table[2:, 1] += 1
    np.save(rows.path, table)
    with pytest.raises(UserError, match=r"rows-.*\.npy says that window 1 has .*; delete it"):
        make(tmp_path).take(0, 200)


def test_a_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "_SAVE_WINDOWS", 3)
    rows = make(tmp_path / "gone")
    assert same(rows.take(0, 800), make(tmp_path).take(0, 800))
    assert "gone/rows-" in caplog.text and "cannot be kept" in caplog.text
