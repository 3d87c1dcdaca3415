"""One request that an engine cannot bear costs that request alone."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator

from data_gen.engines.base import Completion, Engine, Request
from data_gen.errors.shared import one_line
from ipt_jax.core.errors import UserError

BROKEN_AFTER = 20  # requests that raise one after another, each alone


def with_isolation(engine: Engine, requests: Iterable[Request | None]) -> Generator[Completion]:
    """`engine.generate`, but where that raises, what was under way is asked again one by one.

    What raises alone as well comes back as a permanent error with the engine's reason. What
    `requests` itself raises, and any UserError, is raised as it is.

    Raises:
      Exception: the engine's own, where BROKEN_AFTER requests, or all of several, raise alone.
    """
    watched = _AskedRequests(requests)
    while True:
        stream, error = engine.generate(watched.source()), None
        while True:
            try:
                completion = next(stream)
            except StopIteration:
                return
            except Exception as raised:
                if isinstance(raised, UserError) or raised is watched.error:
                    raise
                error = raised
                break
            watched.asked.pop(completion.request_id, None)
            yield completion
        suspects = list(watched.asked.values())
        if not suspects:
            raise error
        watched.asked.clear()
        yield from _alone(engine, suspects, error)


class _AskedRequests:
    """A source of requests that knows which of them have been asked and not answered."""

    def __init__(self, requests: Iterable[Request | None]) -> None:
        self._requests = iter(requests)
        self.asked: dict[str, Request] = {}
        self.error: Exception | None = None

    def source(self) -> Iterator[Request | None]:
        """What is left of the requests."""
        while True:
            try:
                request = next(self._requests)
            except StopIteration:
                return
            except Exception as error:
                self.error = error  # it comes out of the engine, but is none of it
                raise
            if request is not None:
                self.asked[request.id] = request
            yield request


def _alone(engine: Engine, suspects: list[Request], error: Exception) -> Iterator[Completion]:
    failed = 0
    for request in suspects:
        try:
            answers = list(engine.generate([request]))
        except UserError:
            raise
        except Exception as again:
            failed += 1
            if failed == min(BROKEN_AFTER, max(2, len(suspects))):
                raise again from error  # no poison: the engine itself is broken
            yield Completion.failed(request, one_line(again))
        else:
            failed = 0
            yield from answers
