"""Many requests under way at once: a lazy source in, completions out as they come."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any

from data_gen.engines.base import Completion, Request

_IDLE_SECONDS = 0.01  # between two looks at a source that has nothing ready and nothing under way
_LOOK_SECONDS = 5.0  # between two looks at whether the thread lives
_CLOSE_SECONDS = 10.0


class RequestSource:
    """A source of requests that is read only as far as there is room for them."""

    def __init__(self, requests: Iterable[Request | None]) -> None:
        self._source = iter(requests)
        self.exhausted = False

    def take(self, most: int) -> list[Request]:
        """Up to `most` requests; fewer where the source has ended or has nothing ready."""
        taken: list[Request] = []
        while len(taken) < most and not self.exhausted:
            try:
                request = next(self._source)
            except StopIteration:
                self.exhausted = True
                break
            if request is None:
                break
            taken.append(request)
        return taken

    def wait(self) -> None:
        """Let a moment pass before a source that had nothing ready is asked again."""
        time.sleep(_IDLE_SECONDS)


class LoopThread:
    """An asyncio loop in a thread of its own: requests go on while the caller does other work."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def call[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and wait for it. Whatever it raises is raised here."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stream(
        self,
        requests: Iterable[Request | None],
        answer: Callable[[Request], Awaitable[Completion]],
        window: int,
    ) -> Iterator[Completion]:
        """Answer every request by a task of its own; at most `window` are taken and not yielded.

        What `answer` raises is raised here and ends the call; tasks still under way are cancelled.
        """
        feed = RequestSource(requests)
        outbox: queue.SimpleQueue[Completion | BaseException] = queue.SimpleQueue()
        tasks: set[asyncio.Task[Completion]] = set()

        def ended(task: asyncio.Task[Completion]) -> None:
            tasks.discard(task)
            if not task.cancelled():
                outbox.put(task.exception() or task.result())

        async def run(request: Request) -> Completion:
            return await answer(request)

        def start(batch: list[Request]) -> None:
            for request in batch:
                task = self.loop.create_task(run(request))
                tasks.add(task)
                task.add_done_callback(ended)

        async def cancel() -> None:
            left = list(tasks)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

        under_way = 0
        try:
            while True:
                batch = feed.take(window - under_way)
                if batch:
                    under_way += len(batch)
                    self.loop.call_soon_threadsafe(start, batch)
                if not under_way:
                    if feed.exhausted:
                        return
                    feed.wait()
                    continue
                try:
                    result = outbox.get(timeout=_LOOK_SECONDS)
                except queue.Empty:
                    if self._thread.is_alive():
                        continue
                    raise RuntimeError("the thread of the engine's requests has died") from None
                under_way -= 1
                if isinstance(result, BaseException):
                    yield from _received(outbox)
                    raise result
                yield result
        finally:
            if under_way and self._thread.is_alive():
                self.call(cancel())

    def close(self) -> None:
        """End the loop and its thread. A second call does nothing."""
        if self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_CLOSE_SECONDS)
        if not self._thread.is_alive():
            self.loop.close()


def _received(outbox: queue.SimpleQueue[Completion | BaseException]) -> Iterator[Completion]:
    """Completions that lie in the outbox already: paid for, so handed over before the error."""
    while True:
        try:
            result = outbox.get_nowait()
        except queue.Empty:
            return
        if isinstance(result, Completion):
            yield result
