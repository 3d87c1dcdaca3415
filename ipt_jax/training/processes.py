"""Several processes that train one model: how they meet, share rows and agree to stop."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # what is known of the processes before devices start
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ipt_jax.core.bounds import Config, NotNegative, Positive
from ipt_jax.core.configuration import advice_on
from ipt_jax.core.errors import TRY_AGAIN, RunStopped, UserError, require
from ipt_jax.models.sharding import BATCH, MESH_AXES

_COORDINATOR = "host:port of process 0, or auto on a cluster"


@dataclass(frozen=True)
class ProcessesConfig(Config):
    """One process a host, or several; all run the same command but for `index`."""

    coordinator: str | None = None
    """host:port of process 0; auto: as the cluster says (SLURM, Open MPI, Kubernetes, Cloud TPU);
    null: this process alone."""
    count: Positive | None = None
    """How many processes there are; null with auto."""
    index: NotNegative | None = None
    """Which of them this is, from 0; null with auto."""


def connect(config: ProcessesConfig) -> None:
    """Join the other processes; must come before anything asks JAX for devices.

    Raises:
      UserError: an address without count and index, or processes that cannot be reached.
    """
    if config.coordinator is None:
        if config.count not in (None, 1):
            raise UserError(
                f"processes.count={config.count} without processes.coordinator",
                key="processes.coordinator",
                advice=f"give {_COORDINATOR}",
            )
        return
    given = (config.count, config.index)
    if config.coordinator != "auto":
        if None in given or not 0 <= (config.index or 0) < (config.count or 0):
            raise UserError(
                f"processes.coordinator={config.coordinator!r} needs processes.count and "
                f"processes.index from 0 to count - 1; they are {given[0]} and {given[1]}.",
                key="processes.coordinator",
            )
        host, _, port = config.coordinator.rpartition(":")
        right = bool(host) and port.isdecimal()
        require("processes.coordinator", config.coordinator, right, _COORDINATOR)
    try:
        if config.coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(config.coordinator, config.count, config.index)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"processes.coordinator={config.coordinator!r}: the processes did not find each other "
            f"({' '.join(str(error).split())[:300]})",
            key="processes.coordinator",
            advice=f"see that all {config.count or ''} of them run and can reach process 0 there",
        ) from error
    if process_count() > 1:
        leave_when_aborted()


def process_count() -> int:
    """Of this run, known from `connect` on; JAX's own function starts the devices."""
    return distributed.global_state.num_processes or 1


def from_first_process(key: str, make: Callable[[], str], seconds: float) -> str:
    """What `make` gives process 0, on all processes; call after `connect`, before devices start.

    Raises:
      UserError: process 0 did not say it within so many seconds.
    """
    state = distributed.global_state
    client: Any = state.client
    if client is None or process_count() == 1:
        return make()
    if state.process_id == 0:
        made = make()
        client.key_value_set(f"ipt_jax/{key}", made)
        return made
    try:
        return client.blocking_key_value_get(f"ipt_jax/{key}", int(seconds * 1000))
    except RuntimeError as error:
        raise UserError(
            f"process 0 did not say its {key} within {seconds:g} s",
            advice="see its output, and start all of them again",
        ) from error


# How JAX and its collectives (Gloo, NCCL) tell of a process that is gone.
_GONE = re.compile(
    r"^(UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED)|gloo|nccl|connection|heartbeat", re.I
)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number: int) -> None:
    """Leave with TRY_AGAIN where JAX's client aborts because it lost the other processes.

    It does so in a thread of its own, and its callback for the purpose cannot be used: it aborts
    too, over a status that has no Python type. Python's own signal handlers run too late.
    """
    if threading.get_ident() != threading.main_thread().ident:
        _say_gone("its message is above")
        os._exit(TRY_AGAIN)


def leave_when_aborted() -> None:
    """Let `_aborted` answer SIGABRT."""
    ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)


def _say_gone(what: str) -> None:
    print(
        f"\nAnother process of this run ended or cannot be reached ({what}). Run the same command "
        "again to go on from the newest checkpoint.",
        file=sys.stderr,
        flush=True,
    )


def everyones_error(message: str, **fields: Any) -> Exception:
    """A `UserError` that all processes raise at once: none then loses the others at its exit."""
    error = UserError(message, **fields)
    return error if jax.process_count() == 1 else RunStopped(f"error: {error}", 2)


def refuse_other_configs(config: Mapping[str, str]) -> None:
    """See that all processes were started with the same config; every process calls this.

    Args:
      config: Values by dotted key, without those that may differ between processes.

    Raises:
      RunStopped: in every process, naming the keys that differ and the processes that have other
        values than process 0.
    """
    if jax.process_count() == 1:
        return
    mine = np.frombuffer(json.dumps(config).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(mine.size))
    padded = np.zeros(int(np.max(sizes)), np.uint8)
    padded[: mine.size] = mine
    texts = multihost_utils.process_allgather(padded)
    first, *others = (
        json.loads(bytes(text[:size])) for text, size in zip(texts, sizes.tolist(), strict=True)
    )
    keys = sorted({k for o in others for k in o.keys() | first.keys() if o.get(k) != first.get(k)})
    if keys:
        apart = [str(i) for i, other in enumerate(others, 1) if other != first]
        raise everyones_error(
            f"{', '.join(keys)}: process {', '.join(apart)} of this run has other values than "
            "process 0",
            key=keys[0],
            advice="start all of them with the same config",
        )


def anywhere(true: bool) -> bool:
    """Whether any process says so, the same answer in each; every process calls this."""
    if jax.process_count() == 1:
        return true
    return bool(np.any(multihost_utils.process_allgather(np.int32(true))))


def barrier(what: str) -> None:
    """Return when every process has come here; at once where there is one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


@contextmanager
def abort_on_error() -> Iterator[None]:
    """Let one of several processes that fails end without waiting for the others.

    At a normal exit JAX waits for all processes, and the others wait for this one in their step.
    They learn of its end from its heartbeat. A `RunStopped` comes in all processes at once. One
    that loses the others leaves with TRY_AGAIN.
    """
    try:
        yield
    except RunStopped:
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        code = 1
        advice = advice_on(error) if isinstance(error, OSError) else None
        if isinstance(error, UserError) or advice is not None:
            print(f"error: {' '.join((advice or str(error)).split())}", file=sys.stderr)
            code = 2
        elif isinstance(error, jax.errors.JaxRuntimeError) and _GONE.search(str(error)):
            _say_gone(" ".join(str(error).split())[:300])
            code = TRY_AGAIN
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class GlobalBatches:
    """Which rows of a global batch this process reads, and how they get to its devices."""

    def __init__(self, mesh: Mesh, rows: int, row_tokens: int):
        """For batches [rows, row_tokens], which divide among the mesh's devices.

        Raises:
          UserError: processes whose devices hold unequal shares.
        """
        self._sharding = NamedSharding(mesh, BATCH)
        self._shape = (rows, row_tokens)
        shares: dict[int, set[tuple[int, int]]] = {}
        for device, index in self._sharding.devices_indices_map(self._shape).items():
            first, last, _ = index[0].indices(rows)
            shares.setdefault(device.process_index, set()).add((first, last))
        spans = {p: (min(s)[0], max(s)[1]) for p, s in shares.items()}
        self.first_row, last = spans[jax.process_index()]
        size = last - self.first_row
        if rows % size or any(b - a != size or a % size for a, b in spans.values()):
            raise UserError(
                f"processes hold rows {sorted(spans.values())} of a batch, which are no equal "
                "shares",
                advice=(
                    "give each process the same number of devices and let mesh.data × mesh.fsdp be "
                    "a multiple, or a divisor, of the number of processes"
                ),
            )
        self.share_index, self.share_count = self.first_row // size, rows // size

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Global arrays from this process's rows."""

        def one(rows: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                first, last, _ = index[0].indices(self._shape[0])
                return rows[first - self.first_row : last - self.first_row, index[1]]

            return jax.make_array_from_callback(self._shape, self._sharding, part)

        return {name: one(rows) for name, rows in batch.items()}


class SyncPoint:
    """Whether any process has to stop, the same answer in all of them at the same step.

    With several processes the answer is that of the votes cast one step before, so that nobody
    waits for a step that is still running.
    """

    def __init__(self, mesh: Mesh):
        self._alone = jax.process_count() == 1
        self._sharding = NamedSharding(mesh, PartitionSpec(MESH_AXES))
        self._shape = (mesh.size,)
        whole = NamedSharding(mesh, PartitionSpec())
        self._most = jax.jit(lambda votes: votes.max(), out_shardings=whole)
        self._before: jax.Array | None = None

    def reached_sync_point(self, code: int) -> int:
        """Cast this process's vote and hear the outcome; every process calls this every step.

        A vote is the exit code that the process wants to stop with, 0 to go on; the highest wins.
        """
        if self._alone:
            return code
        before = self._before
        mine = np.full(self._shape, code, np.int32)
        votes = jax.make_array_from_callback(self._shape, self._sharding, lambda part: mine[part])
        self._before = self._most(votes)
        return 0 if before is None else int(before)


class Stopping:
    """Notes the first SIGINT or SIGTERM (a second one acts) and the first error.

    Use as a context manager.
    """

    def __init__(self, on_request: Callable[[], None] = lambda: None) -> None:
        """`on_request` is called in the signal handler: it must not take locks or write."""
        self.requested: signal.Signals | None = None
        self.error: Exception | None = None
        self._on_request = on_request
        self._previous: dict[int, Any] = {}

    def note(self, error: Exception | None) -> None:
        """An error after which the state can be saved; the first one counts."""
        if error is not None and self.error is None:
            self.error = error
            self._on_request()

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note what goes wrong in here (a full disk, a service for metrics), and go on to save."""
        try:
            yield
        except Exception as error:  # raised when the run has stopped
            self.note(error)

    @property
    def code(self) -> int:
        """The exit code that this process wants to stop with; 0: it does not."""
        if self.requested is not None:
            return 128 + self.requested
        if isinstance(self.error, RunStopped):
            return self.error.code
        if self.error is not None:
            return 2 if isinstance(self.error, (UserError, OSError)) else 1
        return 0

    def ended(self, position: int, code: int, saved: bool) -> Exception:
        """What to raise after all processes stopped at `position` with `code`."""
        where = f"after step {position}, {'saved' if saved else 'not saved'}"
        if self.error is not None and self.requested is None:
            print(f"Stopped by an error {where}.", flush=True)
            if jax.process_count() == 1:
                return self.error
            # The others stop too: JAX may wait for all of them at the exit.
            if not isinstance(self.error, (UserError, OSError, RunStopped)):
                traceback.print_exception(self.error, file=sys.stderr)
            return RunStopped(f"error: {self.error}", self.code)
        if code > 128:
            why = "by a signal"
        else:
            why = f"by an error of another process (it says which, exit code {code})"
        return RunStopped(
            f"Stopped {why} {where}. The same command goes on from here.", self.code or code
        )

    def after_the_end(self) -> None:
        """Raise RunStopped where a signal came too late to stop this run: it stops what follows."""
        if self.requested is not None:
            said = "The training is finished. Stopped by a signal before what follows it. "
            raise RunStopped(f"{said}The same command goes on from here.", self.code)

    def __enter__(self) -> Stopping:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number)
        signal.signal(number, self._previous[number])
        self._on_request()
