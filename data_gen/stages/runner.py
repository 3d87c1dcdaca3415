"""Units of work through an engine, each turn asked exactly once, outcomes in unit order.

A unit's work is a generator that yields Requests, is sent their Completions and returns its
outcome. It must be a pure function of the unit and the completions: a killed run replays it from
the ledger.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from data_gen.engines.base import Completion, Engine, Request
from data_gen.engines.isolation import with_isolation
from data_gen.errors.shared import one_line
from data_gen.stages.ledger import Ledger
from ipt_jax.core.errors import UserError
from ipt_jax.core.rejection import Reason

FAILURES_IN_A_ROW = 20  # units that may fail one after another
STALL_SECONDS = 3600.0  # without an answer, while an engine asks for more work
RETRIES = 2  # times that a transient error of the engine is asked again before it counts


@dataclass(frozen=True)
class Usage:
    """What the engine did for one unit or many."""

    completions: int = 0
    """Answers received, replayed ones included."""
    prompt_tokens: int = 0
    """Tokens of their prompts."""
    completion_tokens: int = 0
    """Tokens of their texts."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.completions + other.completions,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


_NOTHING = Usage()


@dataclass(frozen=True)
class Status:
    """How far a run is; handed to the progress callback."""

    units_done: int = 0
    """Units that ended, replayed ones included."""
    units_failed: int = 0
    """Those whose work raised an error."""
    requests_failed: int = 0
    """Requests that the engine could not answer, in this process."""
    turns_expected: int | None = None
    """Completions there will be at most, where the caller knows."""
    usage: Usage = field(default_factory=Usage)
    """Of the whole run so far, earlier processes included."""
    fresh: Usage = field(default_factory=Usage)
    """Received by this process."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """What was not used, by reason, where the caller counts it."""
    seconds: float = 0.0
    """Since this process began to ask."""


Progress = Callable[[Status], None]


def no_progress(status: Status) -> None:
    """For callers that show nothing."""


class Unit(Protocol):
    """A piece of work with a name that is the same in every run."""

    @property
    def id(self) -> str:
        """Unique among the units."""
        ...


@dataclass(frozen=True)
class Done[U, R]:
    """A unit that has ended."""

    unit: U
    outcome: R | Reason
    usage: Usage
    errors: tuple[Completion, ...] = ()
    """What the engine could not answer; not stored, so that a later run asks again."""


@dataclass
class _Flight[U, R]:
    """A unit under way."""

    unit: U
    work: Generator[Request, Completion, R]
    turn: int = 0
    retries: int = 0
    usage: Usage = field(default_factory=Usage)
    errors: list[Completion] = field(default_factory=list)
    done: bool = False
    outcome: R | Reason | None = None


def run_units[U: Unit, R](
    units: Iterable[U],
    process: Callable[[U], Generator[Request, Completion, R]],
    engine: Engine,
    ledger: Ledger,
    *,
    units_in_flight: int = 1024,
    turns_expected: int | None = None,
    before: Usage = _NOTHING,
    progress: Progress = no_progress,
) -> Generator[Done[U, R]]:
    """Run `process` on every unit; yield units with their outcomes in the order of `units`.

    At most `units_in_flight` are under way or held back by an earlier one that is not yet done.
    The engine is kept busy: what a completion leads to is asked at once, before a new unit begins,
    so that it finds the prompt it continues still in the engine's cache.

    Completions with finish reason `error` are handed on and not stored: a later run asks again. A
    transient one is asked up to RETRIES times again before. Requests on which the engine itself
    raises are found and count as errors (see `with_isolation`). Where a unit's work raises, its
    outcome is a Reason.

    `before` is what earlier processes did for units that are not among these; Status counts it.

    Raises:
      UserError: what the engine or the work raises as such (a server that is gone, a full disk),
        and where FAILURES_IN_A_ROW units failed one after another.
      RuntimeError: the engine ended without answering all, or gave nothing for STALL_SECONDS.
    """
    run = _Run(units, process, engine, ledger, units_in_flight, progress)
    run.status = Status(turns_expected=turns_expected, usage=before)
    return run.results()


class _Run[U: Unit, R]:
    def __init__(
        self,
        units: Iterable[U],
        process: Callable[[U], Generator[Request, Completion, R]],
        engine: Engine,
        ledger: Ledger,
        units_in_flight: int,
        progress: Progress,
    ) -> None:
        self.status = Status()
        self._units: Iterator[U] | None = iter(units)
        self._process, self._engine, self._ledger = process, engine, ledger
        self._most, self._progress = units_in_flight, progress
        self._order: deque[_Flight[U, R]] = deque()
        self._ready: deque[tuple[_Flight[U, R], Request]] = deque()
        self._asked: dict[str, tuple[_Flight[U, R], Request]] = {}
        self._failed_in_a_row = 0
        self._begun = self._answered = time.monotonic()

    def results(self) -> Generator[Done[U, R]]:
        """See run_units."""
        while self._units is not None or self._order:
            since = time.monotonic()
            try:
                with contextlib.closing(with_isolation(self._engine, self._feed())) as stream:
                    for completion in stream:
                        self._receive(completion)
                        yield from self._ended()
            finally:
                self._ledger.add_seconds(time.monotonic() - since)
            if self._asked:
                raise self._unanswered()
            yield from self._ended()
            self._tell()

    def _feed(self) -> Iterator[Request | None]:
        """Requests as they become ready; None while they hang on what is under way.

        Ends where nothing is under way, so that outcomes can be taken away.
        """
        while True:
            request = self._next()
            if request is None:
                if not self._asked:
                    return
                if time.monotonic() - self._answered > STALL_SECONDS:
                    raise self._unanswered()
            yield request

    def _next(self) -> Request | None:
        while not self._ready:
            if not self._admit():
                return None
        flight, request = self._ready.popleft()
        if request.id in self._asked:
            raise RuntimeError(f"two requests have the id {request.id!r}")
        self._asked[request.id] = flight, request
        return request

    def _admit(self) -> bool:
        """Begin a unit, if there is one and room for it."""
        if self._units is None or len(self._order) >= self._most:
            return False
        unit = next(self._units, None)
        if unit is None:
            self._units = None
            return False
        flight = _Flight(unit, self._process(unit))
        self._order.append(flight)
        self._advance(flight, None)
        return True

    def _advance(self, flight: _Flight[U, R], completion: Completion | None) -> None:
        """Send completions until the unit asks for something that the ledger does not hold."""
        while True:
            try:
                request = next(flight.work) if completion is None else flight.work.send(completion)
            except StopIteration as end:
                flight.done, flight.outcome = True, end.value
                self._failed_in_a_row = 0
                return
            except UserError:
                raise
            except Exception as error:
                self._fail(flight, error)
                return
            completion = self._ledger.get(flight.unit.id, flight.turn)
            if completion is None:
                self._ready.appendleft((flight, request))
                return
            self._count(flight, completion, fresh=False)

    def _fail(self, flight: _Flight[U, R], error: Exception) -> None:
        detail = one_line(error)
        flight.done, flight.outcome = True, Reason("unit_failed", detail)
        self._failed_in_a_row += 1
        self.status = replace(self.status, units_failed=self.status.units_failed + 1)
        if self._failed_in_a_row >= FAILURES_IN_A_ROW:
            raise UserError(
                f"{self._failed_in_a_row} units failed one after another, the last "
                f"({flight.unit.id}) with {detail}: this is no matter of single records. What was "
                "answered is kept; mend the cause and run the same command again.",
                record=flight.unit.id,
            ) from error

    def _receive(self, completion: Completion) -> None:
        self._answered = time.monotonic()
        flight, request = self._asked.pop(completion.request_id)
        if completion.finish_reason == "error":
            if completion.error_kind == "transient" and flight.retries < RETRIES:
                flight.retries += 1
                self._ready.append((flight, request))
                return
            flight.errors.append(completion)
            failed = self.status.requests_failed + 1
            self.status = replace(self.status, requests_failed=failed)
        else:
            self._ledger.put(flight.unit.id, flight.turn, completion)
        flight.retries = 0
        self._count(flight, completion, fresh=True)
        self._advance(flight, completion)
        self._tell()

    def _unanswered(self) -> RuntimeError:
        names = list(self._asked)
        return RuntimeError(
            f"engine {self._engine.name} left {len(names)} requests unanswered: {names[:3]}"
        )

    def _count(self, flight: _Flight[U, R], completion: Completion, fresh: bool) -> None:
        flight.turn += 1
        used = Usage(1, completion.prompt_tokens, completion.completion_tokens)
        flight.usage += used
        status = self.status
        self.status = replace(
            status,
            usage=status.usage + used,
            fresh=status.fresh + used if fresh else status.fresh,
        )

    def _ended(self) -> Iterator[Done[U, R]]:
        while self._order and self._order[0].done:
            flight = self._order.popleft()
            self.status = replace(self.status, units_done=self.status.units_done + 1)
            yield Done(flight.unit, flight.outcome, flight.usage, tuple(flight.errors))  # type: ignore[arg-type]

    def _tell(self) -> None:
        self._progress(replace(self.status, seconds=time.monotonic() - self._begun))
