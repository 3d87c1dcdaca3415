"""Mixture to global batches through Grain; a position is one integer, the number of the batch.

Batch n holds rows nB..(n+1)B of a stream that depends on the seed, the rates and the records and
on nothing else: not on processes, workers or where a run was resumed.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grain
import numpy as np
from absl import flags

from ipt_jax.data.config import DataConfig, load_mixture, load_mixture_config
from ipt_jax.data.lengths import Lengths, index_lengths
from ipt_jax.data.packing import Rows, Tokenised, cut, flatten, realised_rates, source_tokens
from ipt_jax.data.plan import Plan, TaskOrder
from ipt_jax.data.tasks import NATURAL, Mixture, Task
from ipt_jax.errors import UserError
from ipt_jax.records import Record, RecordSource
from ipt_jax.tokenizers import Tokenizer, load_tokenizer

__all__ = [
    "DataConfig",
    "MixtureRows",
    "OpenMixture",
    "batches",
    "load_mixture",
    "load_mixture_config",
    "open_mixture",
    "realised_rates",
    "source_tokens",
]

_CACHE_TOKENS = 4 << 20  # tokenised examples kept: one is cut over several rows and batches
_READ_THREADS = 2
_BATCHES_AHEAD = 4


@dataclass(frozen=True)
class OpenMixture:
    """A mixture whose shards are checked and whose lengths are known."""

    mixture: Mixture
    config: DataConfig
    """Where row_tokens, seed and worker_count come from unless ``batches`` is told."""
    tokenizer: Tokenizer
    sources: tuple[RecordSource | None, ...]
    """In the order of the tasks; None where the rate is 0."""
    lengths: tuple[Lengths | None, ...]
    epoch_tokens: tuple[int, ...]
    """Tokens of one epoch of each task, BOS and EOS included."""
    asked_rates: dict[str, float] = field(default_factory=dict)
    """Share of each task, adding up to 1, by ``mixture.by``."""

    @property
    def task_names(self) -> tuple[str, ...]:
        """What ``source_ids`` index."""
        return tuple(task.name for task in self.mixture.tasks)


def _extra_tokens(task: Task) -> int:
    return int(task.bos) + int(task.eos)


def open_mixture(
    data: DataConfig | Mixture,
    *,
    verify: bool | None = None,
    progress: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> OpenMixture:
    """Check the shards of a mixture, load its tokenizer, count tokens where not yet counted.

    ``verify`` overrides the config's ``verify_checksums``; ``progress`` gets a task's name,
    records counted and in all. Raises UserError for what is missing, damaged or empty.
    """
    if isinstance(data, Mixture):
        config, mixture = DataConfig(tokenizer=data.tasks[0].tokenizer), data
    else:
        config, mixture = data, load_mixture(data)
    check = config.verify_checksums if verify is None else verify
    tokenizer = load_tokenizer(mixture.tasks[0].tokenizer)
    natural = mixture.rates == NATURAL
    asked = {t.name: 1.0 if natural else float(mixture.rates[t.name]) for t in mixture.tasks}  # type: ignore[index]
    sources: list[RecordSource | None] = []
    lengths: list[Lengths | None] = []
    sizes: list[int] = []
    for task in mixture.tasks:
        if asked[task.name] == 0:
            sources.append(None)
            lengths.append(None)
            sizes.append(0)
            continue
        source = RecordSource(task.source, verify=check)
        index = index_lengths(
            source, tokenizer, lambda done, total, name=task.name: progress(name, done, total)
        )
        tokens = int(index.array.sum(dtype=np.int64)) + _extra_tokens(task) * len(source)
        if natural:
            asked[task.name] = float(tokens if mixture.by == "tokens" else len(source))
        if tokens == 0 and not natural:
            raise UserError(
                f"mixture {mixture.name!r} asks for `rates.{task.name}` = {asked[task.name]:g} but "
                f"{task.source} holds no tokens: set that rate to 0 or fill the source."
            )
        sources.append(source)
        lengths.append(index)
        sizes.append(tokens)
    total = sum(asked.values())
    if not total > 0:
        raise UserError(
            f"all sources of mixture {mixture.name!r} are empty "
            f"({', '.join(task.source for task in mixture.tasks)}): fill at least one."
        )
    return OpenMixture(
        mixture=mixture,
        config=config,
        tokenizer=tokenizer,
        sources=tuple(sources),
        lengths=tuple(lengths),
        epoch_tokens=tuple(sizes),
        asked_rates={name: rate / total for name, rate in asked.items()},
    )


class MixtureRows:
    """Rows of a mixture's stream at random access; picklable, threads may share it.

    With ``rows=None`` the stream is one epoch of every task (for evaluation), the last row padded;
    this needs natural rates. Otherwise it is as long as asked; a source that would be seen more
    often than its ``max_epochs`` raises UserError naming the row and, given ``rows_per_batch``,
    the step.
    """

    def __init__(
        self,
        data: OpenMixture,
        *,
        row_tokens: int,
        seed: int,
        rows: int | None = None,
        rows_per_batch: int | None = None,
    ) -> None:
        self.data, self.row_tokens = data, row_tokens
        mixture = data.mixture
        if rows is None and (mixture.rates != NATURAL or mixture.by != "tokens"):
            raise UserError(
                f"mixture {mixture.name!r} is to be read once from end to end, which needs "
                "`rates: natural` and `by: tokens`."
            )
        # The tasks that take part, by their index in the mixture.
        self._tasks = [i for i, name in enumerate(data.task_names) if data.asked_rates[name] > 0]
        orders = []
        for i in self._tasks:
            task, lengths = mixture.tasks[i], data.lengths[i]
            assert lengths is not None  # only tasks of rate 0 have none
            extra = _extra_tokens(task)
            orders.append(
                TaskOrder(task.name, lengths, extra_tokens=extra, seed=seed, by=mixture.by)
            )
        rates = [data.asked_rates[data.task_names[i]] for i in self._tasks]
        self._plan = Plan(orders, rates, whole=rows is None)
        if rows is None:
            self._rows = -(-(self._plan.total_tokens or 0) // row_tokens)
        else:
            self._rows = rows
            self._check_epochs(orders, rows, rows_per_batch)
        self._reset()

    def _check_epochs(self, orders: list[TaskOrder], rows: int, rows_per_batch: int | None) -> None:
        needed = rows * self.row_tokens + 1
        for place, i in enumerate(self._tasks):
            task = self.data.mixture.tasks[i]
            if task.max_epochs is None:
                continue
            allowed = int(task.max_epochs * orders[place].records)
            until = self._plan.tokens_before_example(place, allowed)
            if until < needed:
                row = max(until - 1, 0) // self.row_tokens
                when = f"row {row:,}"
                if rows_per_batch is not None:
                    when = f"step {row // rows_per_batch + 1:,} ({when})"
                raise UserError(
                    f"the task {task.name!r} runs out at {when} of "
                    f"{rows // (rows_per_batch or 1):,}: its {orders[place].records:,} records "
                    f"({orders[place].epoch_tokens:,} tokens) at rate "
                    f"{self.data.asked_rates[task.name]:.4g} would be seen more than "
                    f"`max_epochs` = {task.max_epochs:g} times. Raise "
                    f"`tasks.{task.name}.max_epochs`, lower its rate, train on fewer tokens or "
                    "add records."
                )

    def _reset(self) -> None:
        self._cache: OrderedDict[tuple[int, int], Tokenised] = OrderedDict()
        self._cached_tokens = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_cache", "_cached_tokens", "_lock"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> Rows:
        """Arrays [T] of one row."""
        return {name: array[0] for name, array in self.take(row, row + 1).items()}

    def take(self, start: int, stop: int) -> Rows:
        """Arrays [stop - start, T] of consecutive rows, read and tokenised together."""
        if not 0 <= start < stop <= self._rows:
            raise IndexError(f"rows {start}..{stop} of {self._rows}")
        first, last = start * self.row_tokens, stop * self.row_tokens + 1
        if self._plan.total_tokens is not None:
            last = min(last, self._plan.total_tokens)
        stretch = self._plan.stretch(first, last)
        tasks = np.asarray(self._tasks, np.int32)[stretch.task]
        keys = list(zip(tasks.tolist(), stretch.record.tolist(), strict=True))
        examples = self._examples(keys)
        for key, example, planned in zip(keys, examples, np.diff(stretch.starts), strict=True):
            if len(example.tokens) != planned:
                self._stale(key, len(example.tokens), int(planned))
        stream = flatten(examples, np.arange(len(examples)).tolist(), tasks.tolist())
        skip = first - int(stretch.starts[0])
        tokens, loss, number, source = (array[skip : skip + last - first] for array in stream)
        return cut(tokens, loss, number, source, self.row_tokens, stop - start)

    def records(self, start: int, stop: int) -> list[dict[str, str]]:
        """Task, shard and id of every example in rows start..stop - 1, in order."""
        first, last = start * self.row_tokens, stop * self.row_tokens + 1
        if self._plan.total_tokens is not None:
            last = min(last, self._plan.total_tokens)
        stretch = self._plan.stretch(first, last)
        found = []
        for place, index in zip(stretch.task.tolist(), stretch.record.tolist(), strict=True):
            task = self._tasks[place]
            source = self.data.sources[task]
            assert source is not None  # only tasks of rate 0 have none
            record = source.read([index])[0]
            where = source.where(index)
            found.append({"task": self.data.task_names[task], "where": where, "id": record.id})
        return found

    def _stale(self, key: tuple[int, int], found: int, planned: int) -> None:
        source, lengths = self.data.sources[key[0]], self.data.lengths[key[0]]
        assert source is not None and lengths is not None
        raise UserError(
            f"{source.where(key[1])} has {found} tokens where the length index says {planned}: "
            f"delete {lengths.path} so that it is counted again."
        )

    def _examples(self, keys: list[tuple[int, int]]) -> list[Tokenised]:
        with self._lock:
            found = {key: self._cache[key] for key in set(keys) if key in self._cache}
            for key in found:
                self._cache.move_to_end(key)
        wanted: dict[int, list[int]] = {}
        for task, record in dict.fromkeys(key for key in keys if key not in found):
            wanted.setdefault(task, []).append(record)
        for task, records in wanted.items():
            made = self._tokenise(task, records)
            found |= {(task, record): m for record, m in zip(records, made, strict=True)}
        with self._lock:
            for key in dict.fromkeys(keys):
                if key not in self._cache:
                    self._cache[key] = found[key]
                    self._cached_tokens += len(found[key].tokens)
            # The examples just used stay: the next rows begin in the last of them.
            while self._cached_tokens > _CACHE_TOKENS and len(self._cache) > 1:
                _, old = self._cache.popitem(last=False)
                self._cached_tokens -= len(old.tokens)
        return [found[key] for key in keys]

    def _tokenise(self, number: int, indices: list[int]) -> list[Tokenised]:
        task, source = self.data.mixture.tasks[number], self.data.sources[number]
        assert source is not None
        records = source.read(indices)
        ids = self.data.tokenizer.encode_arrays([r.text for r in records], task.bos, task.eos)
        if task.loss == "all":
            return [Tokenised(array, None) for array in ids]
        return [
            Tokenised(array, self._loss(task, record, source.where(index)))
            for array, record, index in zip(ids, records, indices, strict=True)
        ]

    def _loss(self, task: Task, record: Record, where: str) -> np.ndarray:
        """Weight of each token: that of the part its last character lies in; EOS has the last's."""
        if record.parts is None or record.loss is None:
            raise UserError(
                f"{where} (id {record.id!r}) has no `parts`, but the task {task.name!r} has "
                "`loss: responses`: write parts and loss into its records, or use `loss: all`."
            )
        weights = np.asarray(record.loss or (0.0,), np.float32)
        borders = np.cumsum([len(part) for part in record.parts])
        ends = self.data.tokenizer.ends(record.text)
        part = np.searchsorted(borders, np.maximum(ends - 1, 0), side="right")
        loss = weights[np.minimum(part, len(weights) - 1)]
        head, tail = np.zeros(int(task.bos), np.float32), weights[-1:][: int(task.eos)]
        return np.concatenate([head, loss, tail])


class _Batches:
    """One process's part of each batch, at random access, for Grain."""

    def __init__(self, rows: MixtureRows, rows_per_batch: int, index: int, count: int) -> None:
        self._rows, self._rows_per_batch = rows, rows_per_batch
        self._index, self._count = index, count

    def __len__(self) -> int:
        return len(self._rows) // self._rows_per_batch

    def __getitem__(self, index: int) -> Rows | UserError:
        share = self._rows_per_batch // self._count
        start = index * self._rows_per_batch + self._index * share
        try:
            return self._rows.take(start, start + share)
        except UserError as error:
            return error  # Grain's workers would wrap it; it is raised where batches are read


def batches(
    mixture: OpenMixture | Mixture,
    *,
    rows_per_batch: int,
    total_batches: int,
    start_batch: int = 0,
    row_tokens: int | None = None,
    seed: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    worker_count: int | None = None,
) -> Iterator[Rows]:
    """This process's part of batches ``start_batch``..``total_batches`` - 1.

    Args:
        mixture: opened, or to be opened with the defaults of DataConfig.
        rows_per_batch: B of the global batch.
        total_batches: of the whole run; whether the sources last for it is checked here, before
            the first batch.
        start_batch: the position: how many batches were read before.
        row_tokens, seed, worker_count: override those of the mixture's DataConfig.
        process_index, process_count: which of the B rows: B / process_count consecutive ones.

    Returns:
        An iterator of arrays [B / process_count, T]: tokens, targets, segment_ids, positions,
        source_ids (int32) and loss_weights (float32), as ``packing.cut`` says.

    Raises:
        UserError: at once for a source that runs out or rows that do not divide; while reading
            for a damaged record.
    """
    data = open_mixture(mixture) if isinstance(mixture, Mixture) else mixture
    config = data.config
    workers = config.worker_count if worker_count is None else worker_count
    if rows_per_batch < 1 or rows_per_batch % process_count:
        raise UserError(
            f"a batch of {rows_per_batch} rows does not divide among {process_count} processes: "
            "make the batch a multiple of the number of processes."
        )
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index {process_index} is not within 0..{process_count - 1}.")
    rows = MixtureRows(
        data,
        row_tokens=config.row_tokens if row_tokens is None else row_tokens,
        seed=config.seed if seed is None else seed,
        rows=total_batches * rows_per_batch,
        rows_per_batch=rows_per_batch,
    )
    if start_batch >= total_batches:
        return iter(())
    source = _Batches(rows, rows_per_batch, process_index, process_count)
    dataset = grain.MapDataset.source(source)[start_batch:].to_iter_dataset(
        grain.ReadOptions(num_threads=_READ_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)
    )
    if workers > 0:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl's flags
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        )
    return _raising(iter(dataset))


def _raising(items: Iterator[Rows | UserError]) -> Iterator[Rows]:
    for item in items:
        if isinstance(item, UserError):
            raise item
        yield item
