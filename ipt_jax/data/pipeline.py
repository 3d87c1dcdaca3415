"""Mixture to global batches through Grain; a position is one integer, the number of the batch.

Batch n holds rows nB..(n+1)B of a sequence that depends on the seed, the rates, the records and
the packing and on nothing else: not on processes, workers or where a run was resumed.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from ipt_jax.core.errors import TRY_AGAIN, RunStopped, UserError
from ipt_jax.core.orphans import end_with_parent
from ipt_jax.data.mixture import (
    DataConfig,
    OpenMixture,
    load_mixture,
    load_mixture_config,
    open_mixture,
)
from ipt_jax.data.packing import Rows, realised_rates, source_tokens
from ipt_jax.data.rows import MixtureRows
from ipt_jax.data.sources import DamageLog
from ipt_jax.data.tasks import Mixture

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

_DAMAGED = "damaged"  # key under which a batch brings the records that could not be read
_WORKER_LOST = "terminated unexpectedly"  # in Grain's RuntimeError
_READ_THREADS = 2
_BATCHES_AHEAD = 4


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
            rows, damaged = self._rows.take_marked(start, start + share)
        except UserError as error:
            return error  # Grain's workers would wrap it; it is raised where batches are read
        # A worker's own count would be lost with it.
        return {**rows, _DAMAGED: np.asarray(damaged, np.int64)} if damaged else rows


def batches(
    mixture: OpenMixture | Mixture,
    *,
    rows_per_batch: int,
    total_batches: int,
    start_batch: int = 0,
    row_tokens: int | None = None,
    packing: str | None = None,
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
        row_tokens, packing, seed, worker_count: override those of the mixture's DataConfig.
        process_index, process_count: which of the B rows: B / process_count consecutive ones.

    Returns:
        An iterator of arrays [B / process_count, T]: tokens, targets, segment_ids, positions,
        source_ids (int32) and loss_weights (float32), as ``packing.concat_and_split`` or
        ``packing.assemble_rows`` says.

    Raises:
        UserError: at once for a source that runs out or rows that do not divide; while reading
            for a damaged record, unless the config says `skip_damaged`.
    """
    data = open_mixture(mixture) if isinstance(mixture, Mixture) else mixture
    config = data.config
    workers = config.worker_count if worker_count is None else worker_count
    if rows_per_batch < 1 or rows_per_batch % process_count:
        raise UserError(
            f"a batch of {rows_per_batch} rows does not divide among {process_count} processes",
            advice="make the batch a multiple of the number of processes",
        )
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index {process_index} is not within 0..{process_count - 1}.")
    rows = MixtureRows(
        data,
        row_tokens=config.row_tokens if row_tokens is None else row_tokens,
        packing=packing,
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
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
            worker_init_fn=_start_worker,
        )
    return _checked(iter(dataset), data)


def _start_worker(index: int, count: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process stops, and ends them
    end_with_parent()


def _checked(items: Iterator[Rows | UserError], data: OpenMixture) -> Iterator[Rows]:
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except RuntimeError as error:
            if _WORKER_LOST not in str(error):
                raise
            raise RunStopped(
                f"data.worker_count={data.config.worker_count}: a process that reads data was "
                "ended from outside, perhaps for want of memory. Run the same command again, with "
                "fewer of them if it comes again.",
                TRY_AGAIN,
            ) from error
        if isinstance(item, UserError):
            raise item
        if _DAMAGED in item:
            for task, record in item.pop(_DAMAGED).tolist():
                data.leave_out(task, record)
        yield item


# `SyncPoint` answers a step late: what is voted at step n stops all processes after step n + 1.
_AHEAD = 2


class Lookahead(Iterator[Rows]):
    """This process's batches, some of them read ahead."""

    def __init__(self, batches: Iterator[Rows], damage: DamageLog):
        """Read the first batches; reading them fills `damage`, taking them says what it showed.

        Raises:
          Exception: what reading them raises, for nothing is learnt yet that could be saved.
        """
        self._batches, self._damage = batches, damage
        self._read: deque[tuple[Rows, int]] = deque()
        self._error: Exception | None = None
        self._fill(_AHEAD)
        if self.error is not None:
            raise self.error

    def __next__(self) -> Rows:
        batch, self._damage.shown = self._read.popleft()
        self._fill(_AHEAD)
        return batch

    @property
    def error(self) -> Exception | None:
        """Why reading cannot go on, once it is time to stop: the next batch is still there."""
        return self._error if len(self._read) < _AHEAD else None

    def any_to_learn(self, most: int) -> bool:
        """Whether one of the next `most` batches has a token with a loss weight, or may have.

        Reads on only while none has. What cannot be read may: `error` tells of it in time.
        """
        looked = 0
        while looked < most:
            self._fill(looked + 1)
            if looked == len(self._read):
                return self._error is not None
            if self._read[looked][0]["loss_weights"].any():
                return True
            looked += 1
        return False

    def _fill(self, count: int) -> None:
        while self._error is None and len(self._read) < count:
            try:
                batch = next(self._batches)
                self._read.append((batch, len(self._damage)))
            except StopIteration:
                return
            except Exception as error:  # raised by the loop, when what was learnt is saved
                self._error = error
