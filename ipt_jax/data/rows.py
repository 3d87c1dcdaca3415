"""The rows of a mixture at random access."""

import functools
import math
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from ipt_jax.core.errors import DamagedRecord, UserError
from ipt_jax.core.records import Record
from ipt_jax.core.shards import Reopened
from ipt_jax.data.best_fit import BestFitRows
from ipt_jax.data.encode import extra_tokens, read_examples
from ipt_jax.data.mixture import OpenMixture
from ipt_jax.data.packing import (
    PackedSegments,
    Rows,
    Tokenised,
    assemble_rows,
    concat_and_split,
    flatten,
)
from ipt_jax.data.schedule import MixtureSchedule, TaskSampler
from ipt_jax.data.sources import read_records
from ipt_jax.data.tasks import NATURAL

_CACHE_TOKENS = 4 << 20  # tokenised examples kept: one is cut over several rows and batches


@dataclass(frozen=True)
class Segment:
    """Where a segment of a row comes from."""

    task: str
    where: str
    """File and place of its record."""
    id: str
    start: int
    """Its first token within the example: more than 0 where the example began in another row."""


class MixtureRows(Reopened):
    """Rows of a mixture at random access; picklable, threads may share it.

    With ``rows=None`` they end with one epoch of every task (for evaluation), padded; this needs
    natural rates. Otherwise there are as many as asked; a source that would be seen more often
    than its ``max_epochs`` raises UserError naming the row and, given ``rows_per_batch``, the
    step. A mixture with stages needs ``rows_per_batch``, since they begin at a batch. ``packing``
    overrides the config's.
    """

    _own = ("_cache", "_making", "_cached_tokens", "_lock")

    def __init__(
        self,
        data: OpenMixture,
        *,
        row_tokens: int,
        seed: int,
        rows: int | None = None,
        rows_per_batch: int | None = None,
        packing: str | None = None,
    ) -> None:
        self.data, self.row_tokens = data, row_tokens
        mixture = data.mixture
        if rows is None and (mixture.rates != NATURAL or mixture.by != "tokens"):
            raise UserError(
                f"mixture {mixture.name!r} is to be read once from end to end, which needs `rates: "
                "natural` and `by: tokens`.",
                key="rates",
            )
        if mixture.stages and rows_per_batch is None:
            raise UserError(
                f"mixture {mixture.name!r} has `stages`, which begin at a step",
                key="rows_per_batch",
                advice="say how many rows a step has (rows_per_batch)",
            )
        # The tasks that take part, by their index in the mixture.
        names = enumerate(data.task_names)
        self._tasks = [i for i, name in names if any(rates[name] for _, rates in data.stages)]
        orders, identity = [], [mixture.by, seed]
        for i in self._tasks:
            task, lengths = mixture.tasks[i], data.lengths[i]
            assert lengths is not None  # only tasks of rate 0 have none
            extra = extra_tokens(task)
            orders.append(
                TaskSampler(task.name, lengths, extra_tokens=extra, seed=seed, by=mixture.by)
            )
            identity.append((task.name, lengths.identity, extra))
        rates = [[shares[data.task_names[i]] for i in self._tasks] for _, shares in data.stages]
        self._plan = MixtureSchedule(orders, rates[0], whole=rows is None)
        stages = [
            (step * (rows_per_batch or 0), shares)
            for (step, _), shares in zip(data.stages[1:], rates[1:], strict=True)
        ]
        self._packed: BestFitRows | None = None
        if (packing or data.config.packing) == "best_fit":
            first = data.sources[self._tasks[0]]
            assert first is not None
            self._packed = BestFitRows(
                self._plan,
                row_tokens=row_tokens,
                seed=seed,
                stages=stages,
                caps=self._caps(),
                natural=mixture.rates == NATURAL,
                whole=rows is None,
                folder=first.folder,
                identity=repr([*identity, rates]),
            )
        else:
            for row, shares in stages:
                self._plan.change_at_token(row * row_tokens, shares)
        if rows is not None:
            self._rows = rows
            self._check_epochs(rows, rows_per_batch)
        elif self._packed is not None:
            self._rows = self._packed.count()
        else:
            self._rows = -(-(self._plan.total_tokens or 0) // row_tokens)
        self._reset()

    def _caps(self) -> list[tuple[int, int]]:
        """Of each task with ``max_epochs``: its index in the plan, and how much of it that is."""
        caps = []
        for place, i in enumerate(self._tasks):
            epochs, order = self.data.mixture.tasks[i].max_epochs, self._plan.orders[place]
            if epochs is not None:
                caps.append((place, order.share_of(int(epochs * order.records))))
        return caps

    def _check_epochs(self, rows: int, rows_per_batch: int | None) -> None:
        for place, share in self._caps():
            until = self._rows_until(place, share, rows)
            if until is None:
                continue
            task, order = self.data.mixture.tasks[self._tasks[place]], self._plan.orders[place]
            when = f"row {until:,}"
            if rows_per_batch is not None:
                when = f"step {until // rows_per_batch + 1:,} ({when})"
            rates = [f"{rates[task.name]:.4g}" for _, rates in self.data.stages]
            raise UserError(
                f"the task {task.name!r} runs out at {when} of {rows // (rows_per_batch or 1):,}: "
                f"its {order.records:,} records ({order.epoch_tokens:,} tokens) at rate "
                f"{', then '.join(rates)} would be seen more than `tasks.{task.name}.max_epochs` = "
                f"{task.max_epochs:g} times",
                key=f"tasks.{task.name}.max_epochs",
                advice="raise it, lower the task's rate, train on fewer tokens or add records",
            )

    def _rows_until(self, place: int, share: int, rows: int) -> int | None:
        """Rows before a task is used up; None if that is not within ``rows``."""
        if self._packed is not None:
            return self._packed.rows_until(place, share, rows)
        time = self._plan.time_of(place, share)
        if math.isinf(time):
            return None
        until = self._plan.tokens(time)
        enough = until > rows * self.row_tokens  # the last row's last target is a token more
        return None if enough else max(until - 1, 0) // self.row_tokens

    def _reset(self) -> None:
        self._cache: OrderedDict[tuple[int, int], Tokenised] = OrderedDict()
        self._making: dict[tuple[int, int], Future[Tokenised]] = {}
        self._cached_tokens = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> Rows:
        """Arrays [T] of one row."""
        return {name: array[0] for name, array in self.take(row, row + 1).items()}

    def take(self, start: int, stop: int) -> Rows:
        """Arrays [stop - start, T] of consecutive rows, read and tokenised together.

        Raises UserError for a record that cannot be read, unless the config says `skip_damaged`:
        then it becomes padding and is counted in ``data.damaged``.
        """
        rows, damaged = self.take_marked(start, stop)
        for task, record in damaged:
            self.data.leave_out(task, record)
        return rows

    def take_marked(self, start: int, stop: int) -> tuple[Rows, list[tuple[int, int]]]:
        """As ``take``, with task and record of what is damaged, which is not counted."""
        if not 0 <= start < stop <= self._rows:
            raise IndexError(f"rows {start}..{stop} of {self._rows}")
        if self._packed is not None:
            packed = self._packed.take(start, stop)
            keys = self._keys(packed.task, packed.record)
            examples = self._planned(keys, packed.tokens)
            rows = assemble_rows(
                packed.pieces, examples, [task for task, _ in keys], self.row_tokens
            )
        else:
            first, last = self._span(start, stop)
            stretch = self._plan.stretch(first, last)
            planned = np.diff(stretch.starts)
            there = planned > 0  # neither empty nor known to be damaged
            keys = self._keys(stretch.task[there], stretch.record[there])
            examples = self._planned(keys, planned[there])
            pairs = list(zip(keys, examples, strict=True))
            stream = flatten(
                examples,
                [-1 if example.damaged else n for n, example in enumerate(examples)],
                [-1 if example.damaged else task for (task, _), example in pairs],
            )
            skip = first - int(stretch.starts[0])
            tokens, loss, number, source = (array[skip : skip + last - first] for array in stream)
            rows = concat_and_split(tokens, loss, number, source, self.row_tokens, stop - start)
        marked = zip(keys, examples, strict=True)
        return rows, list(dict.fromkeys(key for key, example in marked if example.damaged))

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        """The stream's tokens that rows cut from it hold, and the last row's last target."""
        first, last = start * self.row_tokens, stop * self.row_tokens + 1
        if self._plan.total_tokens is not None:
            last = min(last, self._plan.total_tokens)
        return first, last

    def _keys(self, task: np.ndarray, record: np.ndarray) -> list[tuple[int, int]]:
        tasks = np.asarray(self._tasks, np.int32)[task].tolist()
        return list(zip(tasks, record.tolist(), strict=True))

    def records(self, start: int, stop: int) -> list[dict[str, str]]:
        """Task, shard and id of every example in rows start..stop - 1, in order."""
        if self._packed is not None:
            packed = self._packed.take(start, stop)
            keys = self._keys(packed.task, packed.record)
            keys = [keys[example] for example in dict.fromkeys(packed.pieces.example.tolist())]
        else:
            stretch = self._plan.stretch(*self._span(start, stop))
            keys = self._keys(stretch.task, stretch.record)
        found = []
        for key in keys:
            record, where = self._record(key)
            id = "(damaged)" if isinstance(record, DamagedRecord) else record.id
            found.append({"task": self.data.task_names[key[0]], "where": where, "id": id})
        return found

    def segments(self, start: int, stop: int) -> list[list[Segment]]:
        """The segments of each of rows start..stop - 1, in the order of their ``segment_ids``."""
        if self._packed is not None:
            packed = self._packed.take(start, stop)
            keys, pieces = self._keys(packed.task, packed.record), packed.pieces
        else:
            first, last = self._span(start, stop)
            stretch = self._plan.stretch(first, last)
            keys = self._keys(stretch.task, stretch.record)
            pieces = _cut_pieces(stretch.starts - start * self.row_tokens, self.row_tokens)
            pieces = pieces.within(0, stop - start)
        parts = zip(*(a.tolist() for a in (pieces.example, pieces.start, pieces.row)), strict=True)
        found: list[list[Segment]] = [[] for _ in range(start, stop)]
        read: dict[tuple[int, int], tuple[Record | DamagedRecord, str]] = {}
        for example, begin, row in parts:
            key = keys[example]
            if key not in read:
                read[key] = self._record(key)
            record, where = read[key]
            if not isinstance(record, DamagedRecord):
                segment = Segment(self.data.task_names[key[0]], where, record.id, begin)
                found[row].append(segment)
        return found

    def _record(self, key: tuple[int, int]) -> tuple[Record | DamagedRecord, str]:
        """A record, and its file and place."""
        source = self.data.sources[key[0]]
        assert source is not None  # only tasks of rate 0 have none
        return read_records(source.read, source, [key[1]], self._skip)[0], source.where(key[1])

    @property
    def _skip(self) -> bool:
        return self.data.config.skip_damaged

    def _planned(self, keys: list[tuple[int, int]], planned: np.ndarray) -> list[Tokenised]:
        """The examples, each as long as planned."""
        examples = []
        for key, example, tokens in zip(keys, self._examples(keys), planned.tolist(), strict=True):
            if example.damaged:
                example = Tokenised(np.zeros(tokens, np.int32), None, damaged=True)
            elif len(example.tokens) != tokens:
                self._stale(key, len(example.tokens), tokens)
            examples.append(example)
        return examples

    def _stale(self, key: tuple[int, int], found: int, planned: int) -> None:
        source, lengths = self.data.sources[key[0]], self.data.lengths[key[0]]
        assert source is not None and lengths is not None
        raise UserError(
            f"{source.where(key[1])} has {found} tokens where the length index says {planned}",
            record=source.where(key[1]),
            advice=f"delete {lengths.path} so that it is counted again",
        )

    def _examples(self, keys: list[tuple[int, int]]) -> list[Tokenised]:
        """The examples; each is made once, also where other threads need it at the same time."""
        found: dict[tuple[int, int], Tokenised] = {}
        ours: dict[tuple[int, int], Future[Tokenised]] = {}
        theirs: dict[tuple[int, int], Future[Tokenised]] = {}
        with self._lock:
            for key in dict.fromkeys(keys):
                if key in self._cache:
                    found[key] = self._cache[key]
                    self._cache.move_to_end(key)
                elif key in self._making:
                    theirs[key] = self._making[key]
                else:
                    ours[key] = self._making[key] = Future()
        found |= self._make(ours)
        # Only now: no two threads wait for each other while one still has something to make.
        found |= {key: future.result() for key, future in theirs.items()}
        return [found[key] for key in keys]

    def _make(
        self, futures: dict[tuple[int, int], Future[Tokenised]]
    ) -> dict[tuple[int, int], Tokenised]:
        """Read and tokenise, and tell the threads that wait."""
        wanted: dict[int, list[int]] = {}
        for task, record in futures:
            wanted.setdefault(task, []).append(record)
        found: dict[tuple[int, int], Tokenised] = {}
        try:
            for task, records in wanted.items():
                made = self._tokenise(task, records)
                found |= {(task, record): m for record, m in zip(records, made, strict=True)}
        except BaseException as error:
            for future in futures.values():
                future.set_exception(error)
            with self._lock:
                for key in futures:
                    del self._making[key]
            raise
        for key, future in futures.items():
            future.set_result(found[key])
        with self._lock:
            for key, example in found.items():
                self._cache[key] = example
                self._cached_tokens += len(example.tokens)
                del self._making[key]
            # The examples just used stay: the next rows begin in the last of them.
            while self._cached_tokens > _CACHE_TOKENS and len(self._cache) > 1:
                _, old = self._cache.popitem(last=False)
                self._cached_tokens -= len(old.tokens)
        return found

    def _tokenise(self, number: int, indices: list[int]) -> list[Tokenised]:
        task, source = self.data.mixture.tasks[number], self.data.sources[number]
        assert source is not None
        read = functools.partial(read_examples, source, task, self.data.tokenizer)
        damaged = Tokenised(np.empty(0, np.int32), None, damaged=True)
        found = read_records(read, source, indices, self._skip)
        return [damaged if isinstance(item, DamagedRecord) else item for item in found]


def _cut_pieces(starts: np.ndarray, row_tokens: int) -> PackedSegments:
    """The pieces that a stream of examples is cut into at the ends of rows.

    ``starts`` [n + 1] is where each example begins, and the end, counted from the first token of
    row 0; the first example may begin before it.
    """
    borders = np.arange(starts[0] // row_tokens, -(-starts[-1] // row_tokens) + 1) * row_tokens
    cuts = np.unique(np.concatenate([starts, borders]))
    cuts = cuts[(cuts >= starts[0]) & (cuts <= starts[-1])]
    begins = cuts[:-1]
    example = np.searchsorted(starts, begins, side="right") - 1
    return PackedSegments(
        example=example,
        start=begins - starts[example],
        length=np.diff(cuts),
        row=begins // row_tokens,
        rows=int(borders[-1] // row_tokens),
    )
