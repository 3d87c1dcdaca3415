"""Units through an engine exactly once, in order, whatever ends the process."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from data_gen.engines import Completion, Request, SamplingParams
from data_gen.engines.base import TokenLogprob
from data_gen.stages import runner
from data_gen.stages.ledger import Ledger
from data_gen.stages.runner import Status, run_units
from ipt_jax.core.errors import UserError
from ipt_jax.core.rejection import Reason
from tests.data_gen.fakes import FakeEngine


@dataclass(frozen=True)
class Number:
    id: str
    turns: int


def process(unit: Number) -> Generator[Request, Completion, list[str]]:
    texts: list[str] = []
    for turn in range(unit.turns):
        prompt = f"{unit.id} {texts}"  # a later turn depends on the earlier answers
        completion = yield Request(f"{unit.id}/{turn}", prompt, SamplingParams(), seed=turn)
        texts.append(completion.text)
    return texts


UNITS = [Number(f"u{number}", number % 4) for number in range(40)]


def outcomes(engine: FakeEngine, folder: Path, **options: int) -> list[tuple[str, list[str]]]:
    with Ledger(folder) as ledger:
        found = run_units(UNITS, process, engine, ledger, **options)  # type: ignore[arg-type]
        return [(done.unit.id, done.outcome) for done in found]


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

    def answer(self, request: Request) -> Completion:
        if self._left == 0:
            raise self._error
        self._left -= 1
        return super().answer(request)


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
        def answer(self, request: Request) -> Completion:
            return Completion(request.id, "no room", "error", 1, 0, "permanent")

    assert outcomes(Failing(), tmp_path)[1] == ("u1", ["no room"])
    engine = FakeEngine()
    assert outcomes(engine, tmp_path)[1] != ("u1", ["no room"])


@pytest.mark.parametrize("ends", [True, False])
def test_an_engine_that_leaves_requests_unanswered_is_caught(
    tmp_path: Path, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(FakeEngine):
        def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
            for completion in super().generate(requests):
                if completion.request_id != "u5/0":
                    yield completion
                elif ends:
                    return

    monkeypatch.setattr(runner, "STALL_SECONDS", 0.2)
    with pytest.raises(RuntimeError, match=r"unanswered: \['u5/0'" if not ends else "unanswered"):
        outcomes(Forgetful(), tmp_path)


class Breaking(FakeEngine):
    """Raises whenever one of these requests is under way."""

    def __init__(self, *poison: str) -> None:
        super().__init__()
        self.poison = poison

    def answer(self, request: Request) -> Completion:
        if request.id in self.poison:
            raise ValueError(f"cannot bear {request.id}")
        return super().answer(request)


def test_a_poison_is_found_alone_and_the_others_go_on(tmp_path: Path) -> None:
    engine = Breaking("u7/1", "u22/0")
    with Ledger(tmp_path / "a") as ledger:
        found = {done.unit.id: done for done in run_units(UNITS, process, engine, ledger)}
    assert list(found) == [unit.id for unit in UNITS]
    whole = dict(outcomes(FakeEngine(), tmp_path / "b"))
    error = "ValueError: cannot bear "
    assert found["u7"].outcome[1] == error + "u7/1" and found["u22"].outcome[0] == error + "u22/0"
    for name in set(whole) - {"u7", "u22"}:
        assert found[name].outcome == whole[name]
    asked = [request.id for request in engine.asked]
    assert len(asked) == len(set(asked)) == sum(unit.turns for unit in UNITS) - 2


def test_an_engine_that_breaks_on_everything_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot bear"):
        outcomes(Breaking(*(f"u{n}/{t}" for n in range(40) for t in range(3))), tmp_path)


def test_a_transient_error_is_asked_again_and_a_permanent_one_is_not(tmp_path: Path) -> None:
    class Tired(FakeEngine):
        def __init__(self, kind: str, times: int) -> None:
            super().__init__()
            self.kind, self.left, self.tries = kind, times, 0

        def answer(self, request: Request) -> Completion:
            if request.id != "u1/0":
                return super().answer(request)
            self.tries, self.left = self.tries + 1, self.left - 1
            if self.left < 0:
                return super().answer(request)
            return Completion(request.id, "busy", "error", 0, 0, self.kind)  # type: ignore[arg-type]

    for number, (kind, times, tries, text) in enumerate(
        [("transient", 2, 3, None), ("transient", 9, 3, "busy"), ("permanent", 1, 1, "busy")]
    ):
        engine = Tired(kind, times)
        found = dict(outcomes(engine, tmp_path / str(number)))
        assert engine.tries == tries
        assert (found["u1"] == ["busy"]) == (text == "busy")


def failing(unit: Number) -> Generator[Request, Completion, list[str]]:
    outcome = yield from process(unit)
    if unit.turns == 3 or unit.id in ("u0", "u8"):
        raise KeyError(unit.id)
    return outcome


def test_a_unit_whose_work_raises_does_not_end_the_run(tmp_path: Path) -> None:
    seen: list[Status] = []
    with Ledger(tmp_path) as ledger:
        found = run_units(UNITS, failing, FakeEngine(), ledger, progress=seen.append)
        failed = {d.unit.id: d.outcome for d in found if isinstance(d.outcome, Reason)}
    expected = {"u0", "u8", *(f"u{n}" for n in range(3, 40, 4))}
    assert set(failed) == expected and seen[-1].units_failed == len(expected)
    assert failed["u8"] == Reason("unit_failed", "KeyError: 'u8'")


def test_many_failures_in_a_row_end_the_run(tmp_path: Path) -> None:
    def broken(unit: Number) -> Generator[Request, Completion, list[str]]:
        raise KeyError("text")
        yield

    with Ledger(tmp_path) as ledger, pytest.raises(UserError, match="20 units failed one aft"):
        list(run_units(UNITS, broken, FakeEngine(), ledger))


def test_an_error_of_the_ledger_is_not_the_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Ledger, unit: str, turn: int) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(Ledger, "get", broken)
    engine = FakeEngine()
    with pytest.raises(sqlite3.OperationalError, match="disk I/O"):
        outcomes(engine, tmp_path)
    assert not engine.asked


def test_what_a_completion_leads_to_is_asked_before_a_new_unit_begins(tmp_path: Path) -> None:
    class OneByOne(FakeEngine):
        window = 1

    engine = OneByOne()
    outcomes(engine, tmp_path)
    chains = [request.id.split("/")[0] for request in engine.asked]
    assert chains == sorted(chains, key=lambda name: int(name[1:]))  # each to its end


def test_logprobs_are_replayed(tmp_path: Path) -> None:
    class Scoring(FakeEngine):
        def answer(self, request: Request) -> Completion:
            logprobs = (TokenLogprob("a", -0.5, (("a", -0.5), ("b", -1.25))), TokenLogprob("c", -2))
            return replace(super().answer(request), logprobs=logprobs)

    def scores(unit: Number) -> Generator[Request, Completion, object]:
        completion = yield Request(f"{unit.id}/0", unit.id, SamplingParams(logprobs=2), seed=0)
        return completion.logprobs

    def found(engine: FakeEngine) -> list[object]:
        with Ledger(tmp_path) as ledger:
            return [done.outcome for done in run_units(UNITS[:3], scores, engine, ledger)]

    first, idle = found(Scoring()), FakeEngine()
    assert first == found(idle) and not idle.asked
    assert first[0][1] == TokenLogprob("c", -2)  # type: ignore[index]


def test_progress_counts_replayed_turns_too(tmp_path: Path) -> None:
    turns = sum(unit.turns for unit in UNITS)
    for again in (False, True):
        seen: list[Status] = []
        with Ledger(tmp_path) as ledger:
            list(run_units(UNITS, process, FakeEngine(), ledger, progress=seen.append))
        assert seen[-1].usage.completions == turns
        assert seen[-1].units_done == len(UNITS)
        assert seen[-1].fresh.completions == (0 if again else turns)


def damage(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE completions DROP COLUMN logprobs",
        "ALTER TABLE blocks DROP COLUMN result",
        "ALTER TABLE meta RENAME COLUMN value TO other",
        "UPDATE meta SET value = '{' WHERE key = 'seconds'",
        "",
        "flipped",
    ],
)
def test_a_damaged_ledger_is_named(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "ledger.sqlite"
    outcomes(FakeEngine(), tmp_path)
    if statement == "flipped":  # what of every page is no answer's text
        data = bytearray(path.read_bytes())
        for page in range(4096, len(data), 4096):
            data[page : page + 12] = bytes(255 - byte for byte in data[page : page + 12])
        path.write_bytes(data)
    elif statement:
        damage(path, statement)
    else:
        path.write_bytes(b"no database" * 99)
    with pytest.raises(UserError, match=r"ledger\.sqlite cannot be used.*--fresh"):
        outcomes(FakeEngine(), tmp_path)


def test_an_answer_that_was_changed_is_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, engine = tmp_path / "a" / "ledger.sqlite", FakeEngine()
    whole = outcomes(FakeEngine(), tmp_path / "a")
    damage(
        path,
        "UPDATE completions SET text = text || '!' WHERE unit = 'u5'",
        "UPDATE completions SET text = CAST(x'ff41' AS TEXT) WHERE unit = 'u6' AND turn = 1",
        "UPDATE completions SET text = CAST(text AS BLOB) WHERE unit = 'u7' AND turn = 2",
        "UPDATE completions SET prompt_tokens = 0 WHERE unit = 'u9'",
    )
    assert outcomes(engine, tmp_path / "a") == whole
    assert sorted(request.id for request in engine.asked) == ["u5/0", "u6/1", "u7/2", "u9/0"]
    assert "4 damaged answers" in caplog.text
    # Answers of a version before, which had no checksum, are taken as they are.
    damage(path, "ALTER TABLE completions DROP COLUMN checksum")
    idle = FakeEngine()
    assert outcomes(idle, tmp_path / "a") == whole and not idle.asked
