"""Says on stderr what is waited for, when it takes long."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

FIRST_SECONDS = 10.0
_MOST_SECONDS = 300.0  # between two lines
_LOG = logging.getLogger(__name__)


class WaitNotice:
    """A line after `FIRST_SECONDS` of waiting, then each time the wait has doubled."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """What was waited for is there: the next wait begins now."""
        self._begun = self._clock()
        self._next_seconds = FIRST_SECONDS

    def look(self, waits_for: Callable[[float], str]) -> None:
        """To be called often while waiting; `waits_for` is given the seconds waited so far."""
        waited = self._clock() - self._begun
        if waited < self._next_seconds:
            return
        _LOG.warning("%s", waits_for(waited))
        self._next_seconds = waited + min(waited, _MOST_SECONDS)
