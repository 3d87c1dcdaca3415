"""Units of work through an engine, each turn asked exactly once, outcomes in unit order.

A unit's work is a generator that yields Requests, is sent their Completions and returns its
outcome. It must be a pure function of the unit and the completions: a killed run replays it from
the ledger.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from data_gen.engines.base import Completion, Engine, Request
from data_gen.ledger import Ledger


@dataclass(frozen=True)
class Status:
    """How far a run is; handed to the progress callback."""

    units_done: int
    """Units that ended, replayed ones included."""
    turns_done: int
    """Completions received by this process or replayed from the ledger."""
    turns_expected: int | None
    """How many there will be at most, where the caller knows."""
    prompt_tokens: int
    """Tokens of their prompts."""
    completion_tokens: int
    """Tokens of their texts."""
    seconds: float
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


@dataclass
class _Flight[U, R]:
    """A unit under way."""

    unit: U
    work: Generator[Request, Completion, R]
    turn: int = 0
    done: bool = False
    outcome: R | None = None


def run_units[U: Unit, R](
    units: Iterable[U],
    process: Callable[[U], Generator[Request, Completion, R]],
    engine: Engine,
    ledger: Ledger,
    *,
    units_in_flight: int = 1024,
    turns_expected: int | None = None,
    progress: Progress = no_progress,
) -> Iterator[tuple[U, R]]:
    """Run `process` on every unit; yield (unit, outcome) in the order of `units`.

    At most `units_in_flight` are under way or held back by an earlier one that is not yet done.
    Completions with finish reason `error` are handed on and not stored: the next run asks again.
    """
    source = iter(units)
    order: deque[_Flight[U, R]] = deque()
    begun = time.monotonic()
    status = Status(0, 0, turns_expected, 0, 0, 0.0)

    def advance(flight: _Flight[U, R], completion: Completion | None) -> Request | None:
        """Send completions until the unit asks for something that the ledger does not hold."""
        nonlocal status
        while True:
            try:
                request = next(flight.work) if completion is None else flight.work.send(completion)
            except StopIteration as end:
                flight.done, flight.outcome = True, end.value
                return None
            completion = ledger.get(flight.unit.id, flight.turn)
            if completion is None:
                return request
            flight.turn += 1
            status = replace(status, turns_done=status.turns_done + 1)

    ready: dict[str, tuple[_Flight[U, R], Request]] = {}
    exhausted = False
    while True:
        while not exhausted and len(order) < units_in_flight:
            unit = next(source, None)
            if unit is None:
                exhausted = True
                break
            flight = _Flight(unit, process(unit))
            order.append(flight)
            if (request := advance(flight, None)) is not None:
                ready[request.id] = (flight, request)
        while order and order[0].done:
            flight = order.popleft()
            status = replace(status, units_done=status.units_done + 1)
            yield flight.unit, flight.outcome  # type: ignore[misc]
        progress(replace(status, seconds=time.monotonic() - begun))
        if not order and exhausted:
            return
        if not ready:
            continue  # everything replayed so far; take in more units
        asked, ready = ready, {}
        wave_begun = time.monotonic()
        try:
            for completion in engine.generate([request for _, request in asked.values()]):
                flight, _ = asked.pop(completion.request_id)
                if completion.finish_reason != "error":
                    ledger.put(flight.unit.id, flight.turn, completion)
                flight.turn += 1
                status = replace(
                    status,
                    turns_done=status.turns_done + 1,
                    prompt_tokens=status.prompt_tokens + completion.prompt_tokens,
                    completion_tokens=status.completion_tokens + completion.completion_tokens,
                    seconds=time.monotonic() - begun,
                )
                if (request := advance(flight, completion)) is not None:
                    ready[request.id] = (flight, request)
                progress(status)
        finally:
            ledger.add_seconds(time.monotonic() - wave_begun)
        if asked:
            raise RuntimeError(
                f"engine {engine.name} left {len(asked)} requests unanswered: {list(asked)[:3]}"
            )
