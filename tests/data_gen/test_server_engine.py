"""The server engine against a server that misbehaves: one completion for each request, always."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from data_gen.engines import (
    Completion,
    Request,
    identify_engine,
    open_engine,
    waiting,
)
from data_gen.engines import server as server_engine
from ipt_jax.core.errors import UserError
from tests.data_gen.asking import PLAIN, ask, config_for, opened
from tests.data_gen.misbehaving_server import MODEL, MisbehavingServer


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer() as running:
        yield running


# Script -> attempts until it is answered right.
MENDED = {
    "ok": 1,
    "plain": 1,
    "choices": 1,
    "nousage": 1,
    "slow": 1,
    "429 ok": 2,
    "429:0.2 ok": 2,
    "503 ok": 2,
    "500 502 504 ok": 4,
    "408 409 425 ok": 4,
    "hang ok": 2,
    "trickle ok": 2,
    "cut ok": 2,
    "reset ok": 2,
    "half ok": 2,
    "html ok": 2,
    "garbage ok": 2,
    "nochoices ok": 2,
    "error200 ok": 2,
    "half cut 500 ok": 4,
}
PERMANENT = {
    "400": "http_400",
    "401": "http_401",
    "403": "http_403",
    "404": "http_404",
    "413": "http_413",
    "422": "http_422",
    "context": "context_too_long",
    "redirect": "http_307",
    "filtered": "finish_content_filter",
}
EXHAUSTED = {"500": "http_500", "hang": "timeout", "cut": "connection_cut", "half": "malformed"}


def test_every_request_gets_its_one_completion(server: MisbehavingServer) -> None:
    """All misbehaviours at once among good requests, in a drawn order."""
    scripts = [*MENDED, *PERMANENT, *EXHAUSTED]
    prompts = [f"{script} | {number}" for number, script in enumerate(scripts * 3)]
    prompts += [f"ok | good {number}" for number in range(200)]
    random.Random(1).shuffle(prompts)
    engine = opened(server)
    found = ask(engine, *prompts)
    engine.close()
    for prompt, completion in found.items():
        script = prompt.split(" | ")[0]
        if script in MENDED:
            assert completion.finish_reason == "stop", (prompt, completion)
            assert completion.text == prompt[::-1]
            assert completion.attempts == server.attempts[prompt] == MENDED[script], prompt
            tokens = (0, 0) if script == "nousage" else (10, 5)
            assert (completion.prompt_tokens, completion.completion_tokens) == tokens
            assert completion.error_kind is None
            continue
        assert completion.finish_reason == "error"
        kind, attempts = ("permanent", 1) if script in PERMANENT else ("transient", 4)
        reason = {**PERMANENT, **EXHAUSTED}[script]
        assert completion.text.startswith(f"{reason}: "), completion
        assert completion.text.endswith(f"(attempts: {attempts})")
        assert (completion.error_kind, completion.attempts) == (kind, attempts), prompt
        assert server.attempts[prompt] == attempts
    errors = Counter({reason: 3 for reason in (*PERMANENT.values(), *EXHAUSTED.values())})
    assert engine.stats.errors == errors
    assert engine.stats.completions == 3 * len(MENDED) + 200
    assert engine.stats.without_usage == 3
    assert engine.stats.attempts == sum(server.attempts.values())
    retried = sum(engine.stats.retried.values())
    assert engine.stats.attempts == retried + len(prompts)


def test_retry_after_is_kept(server: MisbehavingServer) -> None:
    engine = opened(server, max_backoff_seconds=5.0)
    asked = {"429:0.6 ok | a": 0.6, "503:0.4 ok | b": 0.4, "500:0.5 ok | c": 0.5}
    for prompt, seconds in asked.items():  # one by one, for 429 and 503 hold the others back
        assert ask(engine, prompt)[prompt].attempts == 2
        first, second = server.times[prompt]
        assert second - first >= seconds
    engine.close()


def test_a_busy_server_is_left_alone_as_long_as_it_asks(server: MisbehavingServer) -> None:
    engine = opened(server, max_backoff_seconds=5.0, max_concurrency=1)
    ask(engine, "429:0.5 ok | a", "ok | b")
    engine.close()
    begun = server.times["429:0.5 ok | a"][0]
    assert server.times["ok | b"][0] - begun >= 0.5


def test_concurrency_falls_under_429_and_rises_again() -> None:
    with MisbehavingServer(capacity=6, latency_seconds=0.01) as server:
        patient = {"read_seconds": 30.0, "total_seconds": 60.0, "max_attempts": 60}
        engine = opened(server, start_concurrency=64, max_concurrency=64, **patient)
        limit = engine.limit
        assert limit.limit == 64
        assert all(
            c.finish_reason == "stop" for c in ask(engine, *(f"p{n}" for n in range(400))).values()
        )
        assert server.refused > 0
        assert limit.lowest < 8, "it comes near what the server can do"
        refused, server.capacity, server.most_active = server.refused, None, 0
        low = limit.limit
        found = ask(engine, *(f"q{n}" for n in range(1200)))
        engine.close()
    assert all(c.attempts == 1 for c in found.values())
    assert server.refused == refused
    assert limit.limit > low + 4
    assert server.most_active > 8


def test_a_server_that_goes_away_stops_the_run_in_time(server: MisbehavingServer) -> None:
    engine = opened(server, down_seconds=1.0, max_concurrency=16, start_concurrency=16)
    kept, begun = [], 0.0
    with pytest.raises(UserError) as caught:
        for completion in engine.generate(Request(f"r{n}", f"p{n}", PLAIN) for n in range(10_000)):
            kept.append(completion)
            if len(kept) == 50:
                begun = time.monotonic()
                server.stop()
    assert time.monotonic() - begun > 0.9
    engine.close()
    assert server.url in str(caught.value) and "down_seconds" in str(caught.value)
    assert "start it again" in str(caught.value)
    assert all(c.finish_reason == "stop" for c in kept)  # none is given up for want of a server
    assert len(kept) == engine.stats.completions  # and all that was answered was handed over


def test_a_server_that_comes_back_costs_no_attempt(server: MisbehavingServer) -> None:
    engine = opened(server, down_seconds=30.0, max_attempts=2, max_concurrency=8)
    given: list[Completion] = []
    for completion in engine.generate(Request(f"r{n}", f"p{n}", PLAIN) for n in range(300)):
        given.append(completion)
        if len(given) == 40:
            server.stop()
            threading.Timer(1.0, server.start).start()
    engine.close()
    assert len({c.request_id for c in given}) == len(given) == 300
    assert {c.finish_reason for c in given} == {"stop"}
    assert engine.stats.retried["unreachable"] > 8


def test_one_poison_record_does_not_look_like_a_server_that_is_gone(
    server: MisbehavingServer,
) -> None:
    engine = opened(server, down_seconds=0.05, max_attempts=6)
    assert ask(engine, "500 | alone")["500 | alone"].attempts == 6
    engine.close()


def test_a_silent_server_is_named_at_the_start(server: MisbehavingServer) -> None:
    config = config_for(server)
    server.stop()
    for attempt in (identify_engine, open_engine):
        with pytest.raises(UserError, match=f"{server.url} does not answer.*serve.py"):
            attempt(config)
    threading.Timer(0.5, server.start).start()
    engine = open_engine(replace(config, server=replace(config.server, wait_seconds=20.0)))
    assert engine.model == MODEL
    engine.close()


@pytest.mark.parametrize("script", ["429", "hang", "trickle"])
def test_what_is_waited_for_is_said(
    server: MisbehavingServer,
    script: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(server_engine, "_LOOK_SECONDS", 0.02)
    limits = {"read_seconds": 0.2, "total_seconds": 0.4, "max_attempts": 3}
    engine = opened(server, backoff_seconds=0.5, **limits)  # time to look, on a busy machine too
    (completion,) = ask(engine, f"{script} | a").values()
    engine.close()
    assert completion.error_kind == "transient"
    said = caplog.messages[-1]
    assert f"the server at {server.url} has completed nothing for" in said
    assert "the last time for " in said and "after 3 attempts" in said


def test_the_source_is_read_only_as_far_as_the_window(server: MisbehavingServer) -> None:
    engine = opened(server, max_concurrency=5, start_concurrency=5)
    taken = 0

    def endless() -> Iterator[Request]:
        nonlocal taken
        while True:
            taken += 1
            yield Request(f"r{taken}", f"p{taken}", PLAIN)

    completions = engine.generate(endless())
    for given in range(1, 101):
        next(completions)
        assert taken - given <= 10
    completions.close()  # type: ignore[attr-defined]
    assert taken <= 110
    engine.close()


def test_a_source_that_waits_for_completions_is_asked_again(server: MisbehavingServer) -> None:
    """A chain: the next request is known only when the last one is answered."""
    engine = opened(server)
    ready = [Request("0", "p0", PLAIN)]

    def chain() -> Iterator[Request | None]:
        for number in range(1, 31):
            while not ready:
                yield None
            yield ready.pop()
            if number % 10 == 0:
                yield None

    seen = []
    for completion in engine.generate(chain()):
        seen.append(completion.request_id)
        ready.append(Request(str(len(seen)), f"p{len(seen)}", PLAIN))
    engine.close()
    assert seen == [str(number) for number in range(30)]


def test_what_the_source_raises_ends_the_call_and_the_engine_lives(
    server: MisbehavingServer,
) -> None:
    engine = opened(server)

    def broken() -> Iterator[Request]:
        yield Request("a", "hang | a", PLAIN)
        yield Request("b", "ok | b", PLAIN)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        list(engine.generate(broken()))
    assert ask(engine, "ok | c")["ok | c"].finish_reason == "stop"
    assert engine.limit.active == 0
    engine.close()
