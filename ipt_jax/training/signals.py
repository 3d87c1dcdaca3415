"""SIGINT and SIGTERM, noted so that the loop can save and stop."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any


class StopSignal:
    """Notes the first SIGINT or SIGTERM; a second one acts. Use as a context manager."""

    def __init__(self, on_request: Callable[[], None] = lambda: None) -> None:
        """`on_request` is called in the signal handler: it must not take locks or write."""
        self.requested: signal.Signals | None = None
        self._on_request = on_request
        self._previous: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """130 after SIGINT; 143 after SIGTERM, or when another process got the signal."""
        return 128 + (self.requested or signal.SIGTERM)

    def __enter__(self) -> StopSignal:
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
