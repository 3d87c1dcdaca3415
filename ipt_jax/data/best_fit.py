"""Which pieces of which examples lie in which best-fit rows, at random access by row.

The plan's time is cut into windows, and each window's examples are packed into rows of their own.
So a row needs the packing of its window alone, and how many rows the windows before it have. That
is counted from the lengths when it is first needed and kept in a file, so that a run that goes on
need not count again. Counts are those of every process: each finds the same.

Within a window rows come in an order drawn by the seed, in which each kind of row (by the two tasks
that fill most of it) is spread evenly: so rates hold over short stretches too, and rows of like
examples do not come together.

A window also ends where a task has been seen as often as it may, where every epoch of a natural
mixture ends, and where rates change; so no row mixes what lies before and after.
"""

import bisect
import contextlib
import dataclasses
import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from ipt_jax.core.errors import UserError
from ipt_jax.core.manifest import atomic_write
from ipt_jax.data.packing import PackedSegments, best_fit
from ipt_jax.data.schedule import ExampleRange, MixtureSchedule, Recent

_LOG = logging.getLogger(__name__)
_VERSION = "1"
# The last row of a window may stay half empty: more rows fill better (0.9966 of 256 on the tests'
# real texts, 0.9975 of 512, 0.9982 of 1,024), fewer keep rates within a window nearer to the asked.
WINDOW_ROWS = 1 << 9
WINDOW_TOKENS = 1 << 20  # at least, so that short rows do not make many small windows
# Rows made of one long document stay together up to this many, so that it is tokenised fewer times.
_RUN_ROWS = 4
_KEPT_WINDOWS = 4
_SAVE_WINDOWS = 64  # fewer are counted again in less time than it takes to find the file


@dataclass(frozen=True)
class Packed:
    """A run of rows and the N examples that lie in it, wholly or in part."""

    pieces: PackedSegments
    """``example`` counts the N examples."""
    task: np.ndarray
    """int64 [N], index of the task among those of the plan."""
    record: np.ndarray
    """int64 [N], record in the task's source."""
    tokens: np.ndarray
    """int64 [N], of the whole example by the plan."""


class BestFitRows:
    """The best-fit rows of a plan. Picklable; threads may share it.

    Args:
        plan: of the mixture's examples at the rates of the first row; it is changed here where
            ``stages`` say so.
        row_tokens: T.
        seed: of the order of rows.
        stages: row from which on rates hold, and the rates, in the order of rows.
        caps: index of a task and how much of it (tokens, or examples where rates are by examples)
            may be seen before a window ends.
        natural: whether all tasks end their epochs together.
        whole: whether the rows end with the first epoch.
        folder: where the counts are kept.
        identity: names all that the plan was made of.
    """

    def __init__(
        self,
        plan: MixtureSchedule,
        *,
        row_tokens: int,
        seed: int,
        stages: Sequence[tuple[int, Sequence[float]]],
        caps: Sequence[tuple[int, int]],
        natural: bool,
        whole: bool,
        folder: Path,
        identity: str,
    ) -> None:
        self._plan, self._row_tokens, self._seed = plan, row_tokens, seed
        self._stages = list(stages)
        self._caps, self._natural, self._whole = list(caps), natural, whole
        widths = (WINDOW_ROWS, WINDOW_TOKENS)
        key = f"{_VERSION} {row_tokens} {stages} {caps} {natural} {whole} {widths} {identity}"
        self.path = folder / f"rows-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
        # Of each window: the time it begins at, rows before it, changes of rates until then; and
        # in the end those of the next.
        self._times, self._rows, self._changes = [0], [0], [0]
        self._saved = 0
        self._load()
        self._windows: Recent[int, tuple[ExampleRange, PackedSegments]] = Recent(_KEPT_WINDOWS)

    def take(self, start: int, stop: int) -> Packed:
        """Rows ``start``..``stop`` - 1."""
        found: list[Packed] = []
        with self._windows.lock:
            while self._rows[-1] < stop and not self._at_end:
                self._next()
            number = bisect.bisect_right(self._rows, start) - 1
            while number < len(self._rows) - 1 and self._rows[number] < stop:
                found.append(self._take(number, start, stop))
                number += 1
        return _joined(found)

    def _take(self, number: int, start: int, stop: int) -> Packed:
        """What a window has of some rows."""
        stretch, pieces = self._window(number)
        low, high = (min(max(row - self._rows[number], 0), pieces.rows) for row in (start, stop))
        part = pieces.within(low, high)
        examples, example = np.unique(part.example, return_inverse=True)
        return Packed(
            dataclasses.replace(part, example=example),
            task=stretch.task[examples].astype(np.int64),
            record=stretch.record[examples],
            tokens=np.diff(stretch.starts)[examples],
        )

    def count(self) -> int:
        """Rows of one epoch; only where the rows end with it."""
        with self._windows.lock:
            while not self._at_end:
                self._next()
            return self._rows[-1]

    def rows_until(self, task: int, share: int, rows: int) -> int | None:
        """Rows before a task's cap is reached; None if that is not within ``rows``."""
        if self._surely_lasts(task, share, rows):
            return None
        with self._windows.lock:
            while (time := self._plan.time_of(task, share)) > self._times[-1]:
                if self._rows[-1] >= rows:
                    return None
                self._next()
            until = self._rows[bisect.bisect_right(self._times, int(time)) - 1]
            return until if until < rows else None

    def _surely_lasts(self, task: int, share: int, rows: int) -> bool:
        """Whether a cap is not reached even if rows were full: told without counting any."""
        if not self._plan.by_tokens:
            return False
        begins = [0, *(min(row, rows) for row, _ in self._stages), rows]
        rates = [self._plan.first_rates, *(rates for _, rates in self._stages)]
        used = sum(
            (last - first) * self._row_tokens * stage[task]
            for first, last, stage in zip(begins, begins[1:], rates, strict=False)
        )
        # Where rates change, and in the end, each task is an example behind or ahead.
        return used + len(begins) * sum(order.longest for order in self._plan.orders) <= share

    @property
    def _at_end(self) -> bool:
        return self._whole and self._times[-1] >= self._plan.epoch_time

    def _next(self) -> None:
        """Count the rows of one more window."""
        first, before, changes = self._times[-1], self._rows[-1], self._changes[-1]
        last = self._last_time(first)
        window = self._pack(first, last)
        if changes < len(self._stages):
            wanted = self._stages[changes][0] - before
            if window[1].rows > wanted:
                last = self._time_of_rows(first, last, wanted)
                window = self._pack(first, last)
        after = before + window[1].rows
        while changes < len(self._stages) and self._stages[changes][0] <= after:
            self._plan.change(last, self._stages[changes][1])
            changes += 1
        self._keep(len(self._times) - 1, first, window)
        self._times.append(last)
        self._rows.append(after)
        self._changes.append(changes)
        if len(self._times) > max(self._saved * 1.1, self._saved + _SAVE_WINDOWS):
            self._save()

    def _last_time(self, first: int) -> int:
        tokens = max(WINDOW_ROWS * self._row_tokens, WINDOW_TOKENS)
        ends = [first + max(int(tokens / self._plan.mean_tokens()), 1)]
        if self._natural or self._whole:
            ends.append((first // self._plan.epoch_time + 1) * self._plan.epoch_time)
        for task, share in self._caps:
            time = self._plan.time_of(task, share)
            if math.isfinite(time) and int(time) > first:
                ends.append(int(time))
        return min(ends)

    def _time_of_rows(self, first: int, last: int, wanted: int) -> int:
        """Where a window that fills ``wanted`` rows ends, or a few more where none does."""

        def rows(time: int) -> int:
            return self._pack(first, time)[1].rows

        times = range(first, last + 1)
        above = times[bisect.bisect_right(times, wanted, key=rows)]
        return above - 1 if rows(above - 1) == wanted else above

    def _pack(self, first: int, last: int) -> tuple[ExampleRange, PackedSegments]:
        stretch = self._plan.between(first, last)
        return stretch, best_fit(np.diff(stretch.starts), self._row_tokens)

    def _window(self, number: int) -> tuple[ExampleRange, PackedSegments]:
        if number in self._windows:
            return self._windows.keep(number, self._windows[number])
        first = self._times[number]
        window = self._pack(first, self._times[number + 1])
        planned = self._rows[number + 1] - self._rows[number]
        if window[1].rows != planned:
            raise UserError(
                f"{self.path} says that window {number} has {planned} rows, but it has "
                f"{window[1].rows}: it is damaged",
                path=self.path,
                advice="delete it, and it is counted again",
            )
        return self._keep(number, first, window)

    def _keep(
        self, number: int, first: int, window: tuple[ExampleRange, PackedSegments]
    ) -> tuple[ExampleRange, PackedSegments]:
        """Put a window's rows in order and keep it for the next rows."""
        stretch, pieces = window
        key = hashlib.sha256(f"rows\0{self._seed}\0{first}".encode()).digest()[:16]
        generator = np.random.Generator(np.random.Philox(key=np.frombuffer(key, "<u8")))
        tasks = len(self._plan.orders)
        rank = _spread(pieces, stretch.task[pieces.example], tasks, self._row_tokens, generator)
        return self._windows.keep(number, (stretch, pieces.in_order(rank)))

    def _load(self) -> None:
        if not self.path.exists():
            return
        try:
            table = np.load(self.path, allow_pickle=False)
            if table.ndim != 2 or table.shape[1] != 3 or table.dtype != np.int64:
                raise ValueError(f"{table.dtype} {table.shape}")
            if table[0].any() or (np.diff(table, axis=0) < 0).any() or len(table) < 2:
                raise ValueError("not ascending from 0")
            if table[-1, 2] > len(self._stages):
                raise ValueError("more changes of rates than there are")
        except (ValueError, OSError, EOFError) as error:
            _LOG.warning("the row counts %s are damaged (%s): counting again", self.path, error)
            with contextlib.suppress(OSError):  # where it may not be deleted it stays in the way
                self.path.unlink()
            return
        self._times, self._rows, self._changes = table.T.tolist()
        self._saved = len(self._times)
        for time, before, after in zip(
            self._times[1:], self._changes[:-1], self._changes[1:], strict=True
        ):
            for stage in range(before, after):
                self._plan.change(time, self._stages[stage][1])

    def _save(self) -> None:
        out = BytesIO()
        table = np.asarray([self._times, self._rows, self._changes], np.int64).T
        np.save(out, table, allow_pickle=False)
        try:
            # Another process may have come further.
            if not self.path.exists() or self.path.stat().st_size < len(out.getvalue()):
                atomic_write(self.path, out.getvalue())
        except OSError as error:
            # A run without the file counts again when it goes on, and finds the same.
            _LOG.warning("the row counts %s cannot be kept (%s)", self.path, error.strerror)
        self._saved = len(self._times)


def _spread(
    pieces: PackedSegments,
    task: np.ndarray,
    tasks: int,
    row_tokens: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """New number of each row: in random order, but each kind of row spread evenly.

    ``task`` is that of each piece. Each kind has an order of its own, and a row stands at its
    place in it, counted in tokens of the kind: the rule by which the plan merges tasks.
    """
    if not pieces.rows:
        return np.empty(0, np.int64)
    # Of each row [R]: its first piece, the run of full rows that it would belong to, whether it is
    # full. Rows of one long document stay together, _RUN_ROWS at a time.
    first = np.searchsorted(pieces.row, np.arange(pieces.rows))
    run = pieces.start[first] // (row_tokens * _RUN_ROWS) * len(task) + pieces.example[first]
    full = pieces.length[first] == row_tokens
    # Of each row its unit: a run of full rows of one document, or the row alone (below 0, so that
    # no run has its number).
    unit = np.unique(np.where(full, run, -1 - np.arange(pieces.rows)), return_inverse=True)[1]
    units = int(unit.max()) + 1
    # Tokens of each task in each unit [U, tasks], and from them the unit's kind: the two tasks that
    # fill most of it, or twice the one that fills nearly all.
    cells = unit[pieces.row] * tasks + task
    tokens = np.bincount(cells, pieces.length, minlength=units * tasks).reshape(units, tasks)
    size = tokens.sum(axis=1)
    most = np.argsort(-tokens, axis=1, kind="stable")
    second = most[:, min(1, tasks - 1)]
    pure = tokens[np.arange(units), most[:, 0]] > 0.95 * size
    kind = most[:, 0] * tasks + np.where(pure, most[:, 0], second)
    # Units kind by kind, drawn within each. `begins` and `counts` say where each kind lies.
    drawn = generator.permutation(units)
    order = drawn[np.argsort(kind[drawn], kind="stable")]
    before = np.cumsum(size[order]) - size[order]
    begins = np.flatnonzero(np.diff(kind[order], prepend=-1))
    counts = np.diff(begins, append=units)
    # A unit's place in 0..1: the share of its kind's tokens before it, and within the unit a point
    # drawn once a kind, so that kinds of equal sizes do not fall into step.
    total = np.repeat(np.add.reduceat(size[order], begins), counts)
    phase = np.repeat(generator.random(len(begins)), counts)
    place = (before - np.repeat(before[begins], counts) + phase * size[order]) / total
    # Units by their places, and rows by their units; rows of a unit keep their order.
    rank = np.empty(units, np.int64)
    rank[order[np.argsort(place, kind="stable")]] = np.arange(units)
    rows = np.empty(pieces.rows, np.int64)
    rows[np.argsort(rank[unit], kind="stable")] = np.arange(pieces.rows)
    return rows


def _joined(parts: list[Packed]) -> Packed:
    """Runs of rows one after another."""
    rows = np.cumsum([0] + [part.pieces.rows for part in parts])
    examples = np.cumsum([0] + [len(part.task) for part in parts])
    pieces = [part.pieces for part in parts]
    return Packed(
        PackedSegments(
            example=np.concatenate([p.example + n for p, n in zip(pieces, examples, strict=False)]),
            start=np.concatenate([p.start for p in pieces]),
            length=np.concatenate([p.length for p in pieces]),
            row=np.concatenate([p.row + n for p, n in zip(pieces, rows, strict=False)]),
            rows=int(rows[-1]),
        ),
        task=np.concatenate([part.task for part in parts]),
        record=np.concatenate([part.record for part in parts]),
        tokens=np.concatenate([part.tokens for part in parts]),
    )
