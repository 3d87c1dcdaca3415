"""The plan: every prefix near its rates, every epoch whole, any stretch at random access."""

import pickle
from typing import Literal

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from ipt_jax.data import schedule as plan_module
from ipt_jax.data.schedule import MixtureSchedule, TaskSampler, permutation
from tests.data_batches import Made


def make(
    sizes: list[list[int]],
    rates: list[float],
    by: Literal["tokens", "examples"] = "tokens",
    seed: int = 0,
    whole: bool = False,
) -> MixtureSchedule:
    orders = [
        TaskSampler(f"task-{i}", Made(values), extra_tokens=2, seed=seed, by=by)
        for i, values in enumerate(sizes)
    ]
    return MixtureSchedule(orders, rates, whole)


def sizes_like_real(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).lognormal(5, 1.2, count).astype(int).tolist()


def test_permutations_do_not_change_with_versions():
    assert permutation(0, "raw", 0, 10).tolist() == GOLDEN
    orders = [permutation(*key, 1000).tolist() for key in KEYS]
    assert all(sorted(order) == list(range(1000)) for order in orders)
    assert len({tuple(order) for order in orders}) == len(KEYS)


GOLDEN = [5, 2, 8, 7, 0, 6, 9, 4, 1, 3]
KEYS = [(0, "raw", 0), (1, "raw", 0), (0, "other", 0), (0, "raw", 1)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(0, 50), min_size=1, max_size=700).filter(any), min_size=1, max_size=3
    ),
    st.sampled_from(["tokens", "examples"]),
    st.integers(0, 3),
    st.data(),
)
def test_stretches_are_cut_from_one_stream(sizes, by, seed, data):
    """Any stretch equals that part of the whole stream, and each epoch has each record once."""
    rates = [1 / len(sizes)] * len(sizes)
    with pytest.MonkeyPatch.context() as patch:  # such small sources need small windows
        patch.setattr(plan_module, "WINDOW_TOKENS", 1 << 10)
        patch.setattr(plan_module, "WINDOW_EXAMPLES", 1 << 5)
        plan = make(sizes, rates, by, seed)
    end = 3 * sum(sum(values) + 2 * len(values) for values in sizes)
    whole = plan.stretch(0, end)
    lengths = [sizes[t][r] + 2 for t, r in zip(whole.task, whole.record, strict=True)]
    assert np.diff(whole.starts).tolist() == lengths
    assert whole.starts[0] == 0 and whole.starts[-2] < end <= whole.starts[-1]
    for task, values in enumerate(sizes):
        records = whole.record[whole.task == task]
        for start in range(0, len(records) - len(values) + 1, len(values)):
            epoch = records[start : start + len(values)]
            assert sorted(epoch.tolist()) == list(range(len(values)))
            assert (
                epoch.tolist()
                == permutation(seed, f"task-{task}", start // len(values), len(values)).tolist()
            )
    first = data.draw(st.integers(0, end - 1))
    last = data.draw(st.integers(first + 1, end))
    fresh = pickle.loads(pickle.dumps(plan))
    part = fresh.stretch(first, last)
    assert part.starts[0] <= first < part.starts[1] and part.starts[-2] < last <= part.starts[-1]
    low = int(np.flatnonzero(whole.starts == part.starts[0])[0])
    assert whole.record[low : low + len(part.record)].tolist() == part.record.tolist()
    assert whole.task[low : low + len(part.task)].tolist() == part.task.tolist()


@pytest.mark.parametrize("width", [1 << 12, 1 << 16])
def test_windows_change_nothing(monkeypatch, width):
    sizes, rates = [sizes_like_real(500, 0), sizes_like_real(90, 1)], [0.7, 0.3]
    wide = make(sizes, rates).stretch(0, 400_000)
    monkeypatch.setattr(plan_module, "WINDOW_TOKENS", width)
    narrow = make(sizes, rates).stretch(0, 400_000)
    assert narrow.record.tolist() == wide.record.tolist()
    assert narrow.task.tolist() == wide.task.tolist()


def test_every_prefix_is_near_its_rates():
    """No task is further from its share than one longest example of each task."""
    sizes = [sizes_like_real(3000, 0), sizes_like_real(400, 1), sizes_like_real(50, 2)]
    rates = [0.8, 0.15, 0.05]
    stretch = make(sizes, rates).stretch(0, 10_000_000)
    lengths = np.diff(stretch.starts)
    total = stretch.starts[1:]
    longest = sum(max(values) + 2 for values in sizes)
    for task, rate in enumerate(rates):
        counted = np.cumsum(np.where(stretch.task == task, lengths, 0))
        assert np.abs(counted - rate * total).max() <= longest
        assert counted[-1] / total[-1] == pytest.approx(rate, rel=0.005)


def test_rates_by_examples():
    sizes, rates = [sizes_like_real(3000, 0), [5000] * 40], [0.9, 0.1]
    stretch = make(sizes, rates, "examples").stretch(3_000_000, 9_000_000)
    for task, rate in enumerate(rates):
        counted = np.cumsum(stretch.task == task)
        assert np.abs(counted - rate * np.arange(1, len(counted) + 1)).max() <= 2


def test_a_whole_pass_has_every_record_once():
    sizes = [[7, 0, 3], [1] * 50, sizes_like_real(400, 3)]
    tokens = [sum(values) + 2 * len(values) for values in sizes]
    plan = make(sizes, [t / sum(tokens) for t in tokens], whole=True)
    assert plan.total_tokens == sum(tokens)
    stretch = plan.stretch(0, sum(tokens))
    assert stretch.starts[-1] == sum(tokens)
    found = sorted(zip(stretch.task.tolist(), stretch.record.tolist(), strict=True))
    assert found == [(t, r) for t, values in enumerate(sizes) for r in range(len(values))]


STAGES = ((0, [0.8, 0.2, 0.0]), (300_000, [0.3, 0.2, 0.5]), (900_000, [0.0, 0.9, 0.1]))


def in_stages(
    sizes: list[list[int]], by: Literal["tokens", "examples"], seed: int = 0
) -> MixtureSchedule:
    plan = make(sizes, STAGES[0][1], by, seed)
    for token, rates in STAGES[1:]:
        plan.change_at_token(token, rates)
    return plan


@pytest.mark.parametrize("by", ["tokens", "examples"])
def test_rates_change_where_they_should(by):
    """Each stage has its own rates, every order goes on, and any stretch is the whole's."""
    sizes = [sizes_like_real(3000, 0), sizes_like_real(400, 1), sizes_like_real(50, 2)]
    plan = in_stages(sizes, by)
    whole = plan.stretch(0, 1_500_000)
    lengths = np.diff(whole.starts)
    borders = [token for token, _ in STAGES] + [1_500_000]
    for (first, rates), last in zip(STAGES, borders[1:], strict=True):
        inside = (whole.starts[:-1] >= first) & (whole.starts[1:] <= last)
        counts = lengths if by == "tokens" else np.ones_like(lengths)
        total = counts[inside].sum()
        for task, rate in enumerate(rates):
            found = counts[inside & (whole.task == task)].sum()
            # An example at each border, and as much of each task as it was behind or ahead.
            slack = 3 * (max(sizes[task]) + 2) if by == "tokens" else 4
            assert abs(found - rate * total) <= slack, (first, task)
    for task, values in enumerate(sizes):
        records = whole.record[whole.task == task]
        epochs = [
            permutation(0, f"task-{task}", epoch, len(values))
            for epoch in range(len(records) // len(values) + 1)
        ]
        assert records.tolist() == np.concatenate(epochs)[: len(records)].tolist()
    before = make(sizes, STAGES[0][1], by).stretch(0, 290_000)
    assert whole.record[: len(before.record)].tolist() == before.record.tolist()
    fresh = pickle.loads(pickle.dumps(plan))
    for first, last in ((299_000, 301_000), (1_400_000, 1_450_000), (0, 5), (899_999, 900_001)):
        part = fresh.stretch(first, last)
        low = int(np.flatnonzero(whole.starts == part.starts[0])[0])
        assert part.starts[0] <= first < part.starts[1] and part.starts[-1] >= last
        assert whole.record[low : low + len(part.record)].tolist() == part.record.tolist()


def test_when_a_share_is_reached():
    sizes = [sizes_like_real(3000, 0), sizes_like_real(400, 1), sizes_like_real(50, 2)]
    plan = in_stages(sizes, "tokens")
    assert plan.time_of(0, 240_000) == 300_000
    assert plan.time_of(0, 240_030) == 300_100
    assert plan.time_of(2, 0) == 300_000  # it begins with the second stage
    assert plan.time_of(0, 500_000) == np.inf  # its rate is 0 before it is there
    assert plan.time_of(1, 180_000 + 90) == 900_100


def test_a_damaged_record_has_no_tokens_and_no_ends(monkeypatch):
    monkeypatch.setattr(plan_module, "WINDOW_TOKENS", 64)
    plan = make([[7, -1, 3, -1], [5]], [20 / 27, 7 / 27])
    assert [order.epoch_tokens for order in plan.orders] == [14, 7]
    stretch = plan.stretch(0, 21)
    lengths = np.diff(stretch.starts)
    assert all(
        length == {(0, 0): 9, (0, 1): 0, (0, 2): 5, (0, 3): 0, (1, 0): 7}[task, record]
        for task, record, length in zip(
            stretch.task.tolist(), stretch.record.tolist(), lengths.tolist(), strict=True
        )
    )
