"""How many requests a server is sent at once: more while it copes, fewer when it does not."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable

_PREFILL_TOKENS = 32  # what a request costs beside its tokens, so that short answers look no slower
_LEAST_WINDOW, _MOST_WINDOW = 16, 64  # answers whose pace is averaged


class ConcurrencyLimit:
    """A limit by additive increase and multiplicative decrease (as in TCP), with a queue.

    It doubles each round until the first sign of trouble, then grows by 1/64 of `most` a round;
    only while it is in use. A refusal (429, 503) or a timeout halves it, at most once for the
    requests that were under way together. Where the time a token takes, averaged over a window of
    answers, passes `latency_ratio` times the best window, it falls in the same proportion, at most
    by half, and never below `start`: the best may have come out of the server's cache.
    """

    def __init__(
        self, start: int, most: int, *, latency_ratio: float, clock: Callable[[], float]
    ) -> None:
        self.most = most
        self.limit = float(min(start, most))
        self.active = 0
        self.lowest = self.highest = self.limit
        self._floor = self.limit
        self._ratio, self._clock = latency_ratio, clock
        self._doubling = True
        self._cut_at = -math.inf
        self._paused_until = -math.inf
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._best_pace = math.inf
        self._window = [0, 0.0, 0.0]  # answers, seconds, tokens

    async def acquire(self, *, first: bool = False) -> None:
        """Wait for a place; `first` before the others that wait (they have waited before)."""
        if not self._waiting and self._free():
            self.active += 1
            return
        place = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if first else self._waiting.append)(place)
        self._wake()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # the place was given in the same moment
                self.release()
            raise

    def release(self) -> None:
        """Give a place back."""
        self.active -= 1
        self._wake()

    def pause(self, seconds: float) -> None:
        """Give out no place for so long, as the server asked."""
        until = self._clock() + seconds
        if until > self._paused_until:
            self._paused_until = until
            # A little later than asked, or rounding would find the pause not quite over.
            asyncio.get_running_loop().call_later(seconds + 0.001, self._wake)

    def answered(self, sent_at: float, tokens: int) -> None:
        """What was sent at `sent_at` came back with `tokens` tokens; its place is still held."""
        if sent_at <= self._cut_at:
            return  # sent when the limit was another
        if self.active >= 0.75 * self.limit:
            step = 1.0 if self._doubling else max(1.0, self.most / 64) / self.limit
            self._set(min(self.limit + step, self.most))
        window = self._window
        window[0] += 1
        window[1] += self._clock() - sent_at
        window[2] += tokens + _PREFILL_TOKENS
        if window[0] < min(_MOST_WINDOW, max(_LEAST_WINDOW, self.limit)):
            return
        pace = window[1] / window[2]
        self._window = [0, 0.0, 0.0]
        self._best_pace = min(pace, self._best_pace)
        if pace > self._ratio * self._best_pace:
            share = max(0.5, self._ratio * self._best_pace / pace)
            self._cut(max(self.limit * share, min(self.limit, self._floor)))

    def refused(self, sent_at: float) -> None:
        """The server refused or lost what was sent at `sent_at`: it has too much to do."""
        if sent_at <= self._cut_at:
            return  # sent before the limit was lowered: no news
        self._cut(max(1.0, self.limit / 2))

    def _cut(self, limit: float) -> None:
        self._cut_at, self._doubling = self._clock(), False
        self._window = [0, 0.0, 0.0]
        self._set(limit)

    def _set(self, limit: float) -> None:
        self.limit = limit
        self.lowest, self.highest = min(self.lowest, limit), max(self.highest, limit)

    def _free(self) -> bool:
        return self.active < int(self.limit) and self._clock() >= self._paused_until

    def _wake(self) -> None:
        while self._waiting and self._free():
            place = self._waiting.popleft()
            if not place.done():
                self.active += 1
                place.set_result(None)
