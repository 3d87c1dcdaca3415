"""Questions are asked once, however often a measurement runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_gen.engines import EngineConfig, SamplingParams
from data_gen.stages.cached import CachedEngine, Query
from ipt_jax.core.errors import UserError
from tests.data_gen.analysis.scripted import ScriptedEngine


def question(name: str, prompt: str, max_tokens: int = 5) -> Query:
    return Query(name, prompt, SamplingParams(max_tokens=max_tokens))


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda prompt: None if prompt == "bad" else prompt.upper())
    questions = [question("a", "one"), question("b", "two"), question("c", "bad")]
    found = CachedEngine("m", EngineConfig(), tmp_path, engine).ask(questions)
    assert {name: c.text for name, c in found.items()} == {"a": "ONE", "b": "TWO", "c": "no"}
    assert len(engine.asked) == 3
    again = CachedEngine("m", EngineConfig(), tmp_path, engine).ask(questions)
    assert {name: c.text for name, c in again.items()} == {"a": "ONE", "b": "TWO", "c": "no"}
    assert [r.prompt for r in engine.asked[3:]] == ["bad"]  # an error is no answer


def test_another_prompt_sampling_or_model_is_another_question(tmp_path: Path) -> None:
    engine = ScriptedEngine(str.upper)
    model = CachedEngine("m", EngineConfig(), tmp_path, engine)
    model.ask([question("a", "one")])
    assert model.ask([question("a", "other")])["a"].text == "OTHER"
    model.ask([question("a", "one", max_tokens=6)])
    assert len(engine.asked) == 3
    other = ScriptedEngine(str.title)
    other.revision = "r2"
    assert (
        CachedEngine("m", EngineConfig(), tmp_path, other).ask([question("a", "one")])["a"].text
        == "One"
    )
    assert len(list((tmp_path / "answers").iterdir())) == 2


def test_constrained_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`constrain` is true"):
        CachedEngine("m", EngineConfig(constrain=True), tmp_path, ScriptedEngine(str))


def test_draws_of_a_question_depend_on_it_alone(tmp_path: Path) -> None:
    engine = ScriptedEngine(str.upper)
    model = CachedEngine("m", EngineConfig(), tmp_path, engine)
    model.ask([question("a", "one"), question("b", "two")])
    seeds = {request.prompt: request.seed for request in engine.asked}
    assert seeds["one"] != seeds["two"]
    again = ScriptedEngine(str.upper)
    CachedEngine("m", EngineConfig(), tmp_path / "other", again).ask([question("b", "two")])
    assert again.asked[0].seed == seeds["two"]
