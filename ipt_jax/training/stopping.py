"""Why a run has to stop, noted so that the loop can save first: a signal, or an error."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax

from ipt_jax.core.errors import RunStopped, UserError


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
