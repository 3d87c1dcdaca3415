"""What a process is doing now, and how long it has done each thing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple


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
