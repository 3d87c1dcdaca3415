"""What a process is doing, and a thread that says which process a run waits for and ends the wait.

Each process writes its heartbeat into the run folder, which all of them see for the checkpoints'
sake: no network, so it still works when the coordinator is what died. A process that stays in one
phase of one step for too long reads the others' heartbeats, names the one that holds everything
up, prints its own stacks and exits.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ipt_jax.core.bounds import Amount, Config
from ipt_jax.core.errors import TRY_AGAIN
from ipt_jax.core.files import naming
from ipt_jax.core.json_lines import load_json


class _Moment(NamedTuple):
    """All that readers see, replaced whole at every change."""

    name: str
    since: float
    before: Mapping[str, float]
    """Seconds of each phase up to `since`."""


class Phases:
    """Names the phase that the process is in and adds up the seconds of each.

    Usual names: starting, compiling, data, step, checkpoint, other. One thread, the first to do
    so, enters phases; any thread and any signal handler may read, and none ever waits.
    """

    def __init__(self, first: str = "starting"):
        """The process is in the phase `first` from now on."""
        self._moment = _Moment(first, time.monotonic(), MappingProxyType({}))
        self._writer: int | None = None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Be in a phase; afterwards in the one before, which gets none of the time between.

        Raises:
          RuntimeError: another thread entered a phase before.
        """
        outer = self._moment.name
        self.switch(name)
        try:
            yield
        finally:
            self.switch(outer)

    def switch(self, name: str) -> None:
        """Go over from the current phase to another one.

        Raises:
          RuntimeError: another thread entered a phase before.
        """
        if self._writer is None:
            self._writer = threading.get_ident()
        if self._writer != threading.get_ident():
            raise RuntimeError(f"phase {name!r}: phases are entered by one thread only")
        now = time.monotonic()
        self._moment = _Moment(name, now, MappingProxyType(_seconds(self._moment, now)))

    @property
    def current(self) -> tuple[str, float]:
        """The phase's name, and seconds since the process came or came back to it."""
        moment = self._moment
        return moment.name, time.monotonic() - moment.since

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each phase so far, the current one included; together all since the start."""
        return _seconds(self._moment, time.monotonic())


def _seconds(moment: _Moment, now: float) -> dict[str, float]:
    spent = moment.before.get(moment.name, 0.0) + now - moment.since
    return {**moment.before, moment.name: spent}


_LONGEST_BEAT_SECONDS = 10.0


@dataclass(frozen=True)
class WatchdogConfig(Config):
    """How long nothing may happen."""

    timeout_seconds: Amount = 1800.0
    """A process that stays in one phase of a step for longer ends the run; 0: none does. Must be
    longer than compiling, one step and one save take."""
    stop_seconds: Amount = 300.0
    """After SIGINT, SIGTERM or an error the state is saved within this time, or the process exits
    unsaved."""


class Watchdog:
    """Use as a context manager around everything that could hang; `position` is yours to set."""

    def __init__(
        self,
        folder: Path,
        config: WatchdogConfig,
        phases: Phases,
        *,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self.position = 0
        self._config, self._phases = config, phases
        self._index, self._count = process_index, process_count
        self._folder = folder / "heartbeats"
        limits = [s for s in (config.timeout_seconds, config.stop_seconds) if s > 0]
        self._beat_seconds = min([_LONGEST_BEAT_SECONDS, *(limit / 8 for limit in limits)])
        self._started = time.time()
        self._stop_at: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def stop_requested(self) -> None:
        """The deadline for saving and leaving begins now; safe in a signal handler."""
        if self._config.stop_seconds > 0 and self._stop_at is None:
            self._stop_at = time.monotonic() + self._config.stop_seconds

    def __enter__(self) -> Watchdog:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any):
        self._ended.set()
        self._thread.join()
        left = None if kind is None else f"{kind.__name__}: {error}"
        self._beat(ended=True, failed=left)

    def _watch(self) -> None:
        while not self._ended.wait(self._beat_seconds):
            try:
                self._beat()
            except OSError as error:  # a full disk must not end the watch
                print(f"watchdog: heartbeat not written ({error})", file=sys.stderr)
            name, since = self._phases.current
            timeout = self._config.timeout_seconds
            if self._stop_at is not None and time.monotonic() > self._stop_at:
                self._leave(
                    "a signal or an error told this process to stop, and it was not done saving "
                    f"after {self._config.stop_seconds:.0f} s (watchdog.stop_seconds); the "
                    "checkpoints before this one are whole."
                )
            elif failed := self._failed_peer():
                if since > 4 * self._beat_seconds:
                    self._leave(failed)
            elif timeout > 0 and since > timeout:
                self._leave(
                    f"nothing happened for {since:.0f} s in the phase {name!r} of step "
                    f"{self.position + 1} (watchdog.timeout_seconds={timeout:g}). {self._suspect()}"
                )

    def _leave(self, why: str) -> None:
        me = f"process {self._index} of {self._count} ({socket.gethostname()}, pid {os.getpid()})"
        print(f"\nwatchdog: {me}: {why} Run the same command again to go on from the newest "
              "checkpoint. The stacks of this process:", file=sys.stderr)  # fmt: skip
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.flush()
        os._exit(TRY_AGAIN)  # no clean-up: whatever would do it is what hangs

    def _beat(self, *, ended: bool = False, failed: str | None = None) -> None:
        name, since = self._phases.current
        beat = {
            "process": self._index,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "position": self.position,
            "phase": name,
            "phase_seconds": round(since, 1),
            "time": time.time(),
            "ended": ended,
            "failed": failed,
        }
        path = self._folder / f"{self._index:05}.json"
        with naming(path):
            path.with_suffix(".tmp").write_text(json.dumps(beat), encoding="utf-8")
        path.with_suffix(".tmp").replace(path)

    def _beats(self) -> dict[int, dict[str, Any]]:
        """The newest heartbeat of each process of this run; earlier runs' are left out."""
        found = {}
        for index in range(self._count):
            try:
                beat = load_json(self._folder / f"{index:05}.json")
            except (OSError, ValueError):
                continue
            if beat["time"] > self._started - 60:
                found[index] = beat
        return found

    def _failed_peer(self) -> str | None:
        if self._count == 1:
            return None
        for index, beat in self._beats().items():
            if index != self._index and beat["failed"] and beat["time"] > self._started:
                return f"{_name(beat)} ended with an error: {beat['failed']}"
        return None

    def _suspect(self) -> str:
        """Who holds everything up, in a sentence."""
        if self._count == 1:
            return "There is no other process to wait for."
        beats, now = self._beats(), time.time()
        if missing := [str(i) for i in range(self._count) if i not in beats]:
            return f"No heartbeat ever came from process {', '.join(missing)}."
        silent = [b for b in beats.values() if now - b["time"] > 4 * self._beat_seconds]
        if silent:
            names = "; ".join(
                f"{_name(b)}, for {now - b['time']:.0f} s, last in the phase {b['phase']!r} of "
                f"step {b['position'] + 1}"
                for b in silent
            )
            return f"Silent: {names}."
        first = min(beats.values(), key=lambda b: (b["position"], b["phase"] == "step"))
        if first["phase"] == "step":
            return "All processes are alive and wait for their devices."
        return (
            f"All processes are alive; {_name(first)} is the furthest behind: since "
            f"{first['phase_seconds']:.0f} s in the phase {first['phase']!r} of step "
            f"{first['position'] + 1}."
        )


def _name(beat: dict[str, Any]) -> str:
    return f"process {beat['process']} ({beat['host']}, pid {beat['pid']})"
