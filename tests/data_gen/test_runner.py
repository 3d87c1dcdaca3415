"""Units through an engine exactly once, in order, whatever ends the process."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_gen.engines import Completion, Request, Sampling
from data_gen.ledger import Ledger
from data_gen.runner import Status, run_units
from ipt_jax.errors import UserError
from tests.data_gen.fakes import FakeEngine


@dataclass(frozen=True)
class Number:
    id: str
    turns: int


def process(unit: Number) -> Generator[Request, Completion, list[str]]:
    texts: list[str] = []
    for turn in range(unit.turns):
        prompt = f"{unit.id} {texts}"  # a later turn depends on the earlier answers
        completion = yield Request(f"{unit.id}/{turn}", prompt, Sampling(), seed=turn)
        texts.append(completion.text)
    return texts


UNITS = [Number(f"u{number}", number % 4) for number in range(40)]


def outcomes(engine: FakeEngine, folder: Path, **options: int) -> list[tuple[str, list[str]]]:
    with Ledger(folder, {"a": 1}) as ledger:
        found = run_units(UNITS, process, engine, ledger, **options)  # type: ignore[arg-type]
        return [(unit.id, texts) for unit, texts in found]


@pytest.mark.parametrize("in_flight", [1, 3, 1000])
def test_outcomes_come_in_unit_order_and_do_not_depend_on_what_flies(
    tmp_path: Path, in_flight: int
) -> None:
    engine = FakeEngine()
    found = outcomes(engine, tmp_path / "a", units_in_flight=in_flight)
    assert [name for name, _ in found] == [unit.id for unit in UNITS]
    assert found == outcomes(FakeEngine(), tmp_path / "b")
    asked = [request.id for request in engine.asked]
    assert len(asked) == len(set(asked)) == sum(unit.turns for unit in UNITS)


class DyingEngine(FakeEngine):
    """Raises after so many answers."""

    def __init__(self, answers: int, error: type[BaseException]) -> None:
        super().__init__()
        self._left, self._error = answers, error

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for completion in super().generate(requests):
            if self._left == 0:
                raise self._error
            self._left -= 1
            yield completion


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("answers", [0, 1, 17, 40])
def test_what_was_answered_is_never_asked_again(
    tmp_path: Path, answers: int, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        outcomes(DyingEngine(answers, error), tmp_path / "a")
    engine = FakeEngine()
    assert outcomes(engine, tmp_path / "a") == outcomes(FakeEngine(), tmp_path / "b")
    assert len(engine.asked) == sum(unit.turns for unit in UNITS) - answers
    again = FakeEngine()
    outcomes(again, tmp_path / "a")
    assert not again.asked


def test_an_error_of_the_engine_is_handed_on_and_asked_again_next_time(tmp_path: Path) -> None:
    class Failing(FakeEngine):
        def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
            for request in requests:
                yield Completion(request.id, "no room", "error", 1, 0)

    assert outcomes(Failing(), tmp_path)[1] == ("u1", ["no room"])
    engine = FakeEngine()
    assert outcomes(engine, tmp_path)[1] != ("u1", ["no room"])


def test_an_engine_that_leaves_requests_unanswered_is_caught(tmp_path: Path) -> None:
    class Forgetful(FakeEngine):
        def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
            yield from list(super().generate(requests))[1:]

    with pytest.raises(RuntimeError, match="unanswered"):
        outcomes(Forgetful(), tmp_path)


def test_progress_counts_replayed_turns_too(tmp_path: Path) -> None:
    turns = sum(unit.turns for unit in UNITS)
    for _ in range(2):
        seen: list[Status] = []
        with Ledger(tmp_path, {}) as ledger:
            list(run_units(UNITS, process, FakeEngine(), ledger, progress=seen.append))
        assert seen[-1].turns_done == turns
        assert seen[-1].units_done == len(UNITS)


def test_a_ledger_of_other_settings_names_what_changed(tmp_path: Path) -> None:
    with Ledger(tmp_path, {"seed": 1, "rounds": 2}):
        pass
    with pytest.raises(UserError, match=r"\(seed changed\).*--fresh"):
        Ledger(tmp_path, {"seed": 2, "rounds": 2})
    with Ledger(tmp_path, {"seed": 1, "rounds": 2}):
        pass  # the refused one let go of the lock


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with Ledger(tmp_path, {}), pytest.raises(UserError, match="another run"):
        Ledger(tmp_path, {})


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"no database" * 99)
    with pytest.raises(UserError, match=r"ledger\.sqlite cannot be used"):
        Ledger(tmp_path, {})
