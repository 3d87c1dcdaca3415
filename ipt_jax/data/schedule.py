"""The order of examples as a pure function of seed, rates and lengths: the plan.

Each task's examples come in permutations, one for each epoch. Tasks are merged by how far each is
through its share: example j of task i stands at (tokens of its examples before j, and half of j) /
rate_i, and the smallest comes first. So after any prefix no task is further from its share than
about one example. Since a task's place at a time t depends on nothing but its own cumulative
tokens, any stretch of the stream is found without making what comes before it.

A time counts tokens of the mix, or examples where the rates are shares of examples. Where rates
change at a time, each task's share goes on growing from what it was, at the new rate.
"""

import bisect
import dataclasses
import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ipt_jax.data.encode import Lengths

# A window's places are made at once; its size changes memory, not order.
WINDOW_TOKENS = 1 << 20
WINDOW_EXAMPLES = 1 << 11
_STRIDE = 256  # cumulative tokens are kept for every 256th example of an epoch: 4 bytes a record
_TABLES = 3  # epochs of one task kept in memory


class Recent[K, V](OrderedDict[K, V]):
    """The values used last, and a lock for them. Pickles empty: another process makes its own."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.lock = most, threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.most,)

    def keep(self, key: K, value: V) -> V:
        """Hold a value, and let go of those unused for longest."""
        self[key] = value
        self.move_to_end(key)
        while len(self) > self.most:
            self.popitem(last=False)
        return value


def permutation(seed: int, task: str, epoch: int, records: int) -> np.ndarray:
    """uint32 [records], the order of a task's records in an epoch; each draw has its own key."""
    key = hashlib.sha256(f"{seed}\0{task}\0{epoch}".encode()).digest()[:16]
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(key, "<u8")))
    return generator.permutation(np.arange(records, dtype=np.uint32))


@dataclass(frozen=True)
class ExampleRange:
    """A run of examples of the stream, in order."""

    task: np.ndarray
    """int32 [n], index of the task."""
    record: np.ndarray
    """int64 [n], record in the task's source."""
    starts: np.ndarray
    """int64 [n + 1], place in the stream of each example's first token, and of the end."""


class TaskSampler:
    """The endless order of one task's examples, and sums over it. Picklable without its tables."""

    def __init__(
        self,
        name: str,
        lengths: Lengths,
        *,
        extra_tokens: int,
        seed: int,
        by: Literal["tokens", "examples"],
    ) -> None:
        self.name, self.seed, self.by = name, seed, by
        self.records = lengths.records
        self._lengths, self._extra = lengths, extra_tokens  # BOS and EOS of each example
        self.epoch_tokens = lengths.tokens(extra_tokens)
        self._tables: Recent[int, tuple[np.ndarray, np.ndarray]] = Recent(_TABLES)

    @functools.cached_property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return int(self._lengths.array.max()) + self._extra

    def _table(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order of an epoch, and its tokens before every ``_STRIDE``-th example."""
        if epoch in self._tables:
            return self._tables.keep(epoch, self._tables[epoch])
        order = permutation(self.seed, self.name, epoch, self.records)
        sums = [np.zeros(1, np.int64)]
        for start in range(0, self.records, _STRIDE * 4096):  # gathered lengths stay small
            part = self._gather(order[start : start + _STRIDE * 4096])
            blocks = np.add.reduceat(part, np.arange(0, len(part), _STRIDE))
            sums.append(sums[-1][-1] + np.cumsum(blocks))
        return self._tables.keep(epoch, (order, np.concatenate(sums)))

    def _gather(self, records: np.ndarray) -> np.ndarray:
        lengths = self._lengths.array[records].astype(np.int64)
        # A damaged record (-1) is no example: neither BOS nor EOS stand for it.
        return np.where(lengths < 0, 0, lengths + self._extra)

    def tokens_before(self, examples: int) -> int:
        """Tokens of the first ``examples`` of the order."""
        epoch, place = divmod(examples, self.records)
        order, before = self._table(epoch)
        block = place // _STRIDE
        rest = self._gather(order[block * _STRIDE : place])
        return epoch * self.epoch_tokens + int(before[block]) + int(rest.sum())

    def share_of(self, examples: int) -> int:
        """What the rates are shares of in the first ``examples``: tokens, or their number."""
        return examples if self.by == "examples" else self.tokens_before(examples)

    def examples_before(self, doubled: int) -> int:
        """How many examples have their middle before ``doubled`` / 2 tokens (or examples)."""
        if self.by == "examples":
            return doubled // 2
        # Whole epochs, then the block of _STRIDE examples in which the place lies, by the sums kept
        # for each; only that block's middles (doubled, to stay whole numbers) are worked out.
        epoch, rest = divmod(doubled, 2 * self.epoch_tokens)
        order, before = self._table(epoch)
        block = max(int(np.searchsorted(2 * before, rest)) - 1, 0)
        lengths = self._gather(order[block * _STRIDE : (block + 1) * _STRIDE])
        middles = 2 * (int(before[block]) + np.cumsum(lengths)) - lengths
        return epoch * self.records + block * _STRIDE + int(np.searchsorted(middles, rest))

    def examples(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Records, lengths and doubled middles (int64 each) of examples first..last-1."""
        orders = []
        for epoch in range(first // self.records, -(-last // self.records)):
            start = epoch * self.records
            order = self._table(epoch)[0]
            orders.append(order[max(first - start, 0) : last - start].astype(np.int64))
        records = np.concatenate(orders) if orders else np.empty(0, np.int64)
        lengths = self._gather(records)
        if self.by == "examples":
            return records, lengths, 2 * np.arange(first, last) + 1
        ends = self.tokens_before(first) + np.cumsum(lengths)
        return records, lengths, 2 * ends - lengths


class MixtureSchedule:
    """The stream of a mixture's examples at random access. Threads may share it.

    ``rates`` add up to 1; they may be 0 only where ``change`` gives others. With ``whole`` the
    stream is one epoch of each task, then ends; the rates must then be the tasks' own sizes.
    """

    def __init__(self, orders: Sequence[TaskSampler], rates: Sequence[float], whole: bool) -> None:
        self.orders, self._whole = list(orders), whole
        self.by_tokens = orders[0].by == "tokens"
        self._width = WINDOW_TOKENS if self.by_tokens else WINDOW_EXAMPLES
        self.total_tokens = sum(o.epoch_tokens for o in orders) if whole else None
        self.epoch_time = sum(o.epoch_tokens if self.by_tokens else o.records for o in orders)
        """Time that one epoch of every task takes at natural rates."""
        # Of each stage: the time it begins at, rates, and each task's doubled share until then.
        self._times, self._rates = [0], [list(rates)]
        self._shares = [[0.0] * len(self.orders)]
        self._tokens_at = [0]
        self._windows: Recent[int, ExampleRange] = Recent(4)

    @property
    def first_rates(self) -> list[float]:
        """Those before any change."""
        return self._rates[0]

    def mean_tokens(self, stage: int = -1) -> float:
        """Tokens of the mix in one unit of time, about, at a stage's rates; -1 for the latest."""
        if self.by_tokens:
            return 1.0
        means = [o.epoch_tokens / o.records for o in self.orders]
        return sum(mean * rate for mean, rate in zip(means, self._rates[stage], strict=True))

    def change(self, time: int, rates: Sequence[float]) -> None:
        """Let other rates hold from a time on, later than those of earlier changes."""
        with self._windows.lock:
            tokens = time if self.by_tokens else self.tokens(time)
            shares = [self._doubled(i, time) for i in range(len(self.orders))]
            self._times.append(time)
            self._rates.append(list(rates))
            self._shares.append(shares)
            self._tokens_at.append(tokens)
            self._windows.clear()

    def change_at_token(self, token: int, rates: Sequence[float]) -> None:
        """As ``change``, at the time that holds that token of the stream."""
        if self.by_tokens:
            return self.change(token, rates)
        low = self._window_of(token) * self._width
        times = range(low, low + self._width + 1)
        self.change(times[bisect.bisect_left(times, token, key=self.tokens)], rates)

    def _doubled(self, task: int, time: float) -> float:
        """Twice the share of a task before a time."""
        stage = bisect.bisect_right(self._times, time) - 1
        since = time - self._times[stage]
        return self._shares[stage][task] + 2 * since * self._rates[stage][task]

    def _doubled_times(self, task: int, doubled: np.ndarray) -> np.ndarray:
        """Twice the time at which a task's share is ``doubled`` / 2; infinite if it never is."""
        # The stage in which each share is reached: shares grow from stage to stage, so it is the
        # last that begins at or below it. A task of rate 0 there never gets further.
        shares = np.asarray([shares[task] for shares in self._shares])
        stage = np.searchsorted(shares, doubled, side="right") - 1
        rates = np.asarray([rates[task] for rates in self._rates])[stage]
        times = np.asarray(self._times)[stage]
        with np.errstate(divide="ignore", invalid="ignore"):
            found = 2 * times + (doubled - shares[stage]) / rates
        return np.where(rates > 0, found, np.inf)

    def _counts(self, time: float) -> list[int]:
        """Examples of each task before a time."""
        if self._whole and time >= self.epoch_time:
            return [order.records for order in self.orders]
        shares = [int(self._doubled(i, time)) for i in range(len(self.orders))]
        counts = [o.examples_before(d) for o, d in zip(self.orders, shares, strict=True)]
        if not self._whole:
            return counts
        return [min(count, o.records) for count, o in zip(counts, self.orders, strict=True)]

    def tokens(self, time: float) -> int:
        """Tokens of all examples before a time."""
        counts = zip(self.orders, self._counts(time), strict=True)
        return sum(order.tokens_before(count) for order, count in counts)

    def time_of(self, task: int, share: int) -> float:
        """When a task's tokens (or examples) are that many; infinite if never."""
        return float(self._doubled_times(task, np.asarray([2 * share]))[0]) / 2

    def between(self, first: int, last: int) -> ExampleRange:
        """The examples of times ``first``..``last`` - 1; ``starts`` count from the first."""
        pairs = zip(self.orders, self._counts(first), self._counts(last), strict=True)
        parts = [order.examples(a, b) for order, a, b in pairs]
        times = [self._doubled_times(i, part[2]) for i, part in enumerate(parts)]
        sizes = [len(part[0]) for part in parts]
        task = np.repeat(np.arange(len(parts), dtype=np.int32), sizes)
        # Equal times go to the task listed first, and a task's own order stays.
        order = np.lexsort((task, np.concatenate(times)))
        lengths = np.concatenate([part[1] for part in parts])[order]
        return ExampleRange(
            task=task[order],
            record=np.concatenate([part[0] for part in parts])[order],
            starts=np.concatenate([[0], np.cumsum(lengths)]),
        )

    def _window(self, number: int) -> ExampleRange:
        if number in self._windows:
            return self._windows.keep(number, self._windows[number])
        first = number * self._width
        window = self.between(first, first + self._width)
        window = dataclasses.replace(window, starts=self.tokens(first) + window.starts)
        return self._windows.keep(number, window)

    def stretch(self, first: int, last: int) -> ExampleRange:
        """The examples that hold the stream's tokens first..last-1."""
        with self._windows.lock:
            number = self._window_of(first)
            windows = [self._window(number)]
            while windows[-1].starts[-1] < last:
                number += 1
                windows.append(self._window(number))
        starts = np.concatenate([w.starts[:-1] for w in windows] + [windows[-1].starts[-1:]])
        low = int(np.searchsorted(starts, first, side="right")) - 1
        high = int(np.searchsorted(starts, last, side="left"))
        return ExampleRange(
            task=np.concatenate([w.task for w in windows])[low:high],
            record=np.concatenate([w.record for w in windows])[low:high],
            starts=starts[low : high + 1],
        )

    def _window_of(self, token: int) -> int:
        """The window that holds a token of the stream, guessed and then set right."""
        stage = bisect.bisect_right(self._tokens_at, token) - 1
        since = (token - self._tokens_at[stage]) / self.mean_tokens(stage)
        number = int(self._times[stage] + since) // self._width
        while number > 0 and self.tokens(number * self._width) > token:
            number -= 1
        while self.tokens((number + 1) * self._width) <= token:
            number += 1
        return number
