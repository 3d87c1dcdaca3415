"""A server engine with short limits, and what it answers, for the tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data_gen.engines import (
    Completion,
    EngineConfig,
    Request,
    SamplingParams,
    ServerConfig,
    open_engine,
)
from data_gen.engines.server import ServerEngine
from tests.data_gen.misbehaving_server import MODEL, MisbehavingServer

PLAIN = SamplingParams(max_tokens=5)


def config_for(server: MisbehavingServer, **changes: Any) -> EngineConfig:
    quick = ServerConfig(
        url=server.url,
        backoff_seconds=0.02,
        max_backoff_seconds=0.5,
        connect_seconds=2.0,
        read_seconds=0.6,
        total_seconds=1.0,
        down_seconds=5.0,
        wait_seconds=0.2,
        max_attempts=4,
    )
    return EngineConfig(name="server", model=MODEL, server=replace(quick, **changes))


def opened(server: MisbehavingServer, **changes: Any) -> ServerEngine:
    engine = open_engine(config_for(server, **changes))
    assert isinstance(engine, ServerEngine)
    return engine


def ask(engine: ServerEngine, *prompts: str) -> dict[str, Completion]:
    """Completions by prompt; each comes once."""
    requests = [Request(f"r{number}", text, PLAIN) for number, text in enumerate(prompts)]
    found: dict[str, Completion] = {}
    for completion in engine.generate(requests):
        prompt = prompts[int(completion.request_id[1:])]
        assert prompt not in found
        found[prompt] = completion
    assert set(found) == set(prompts)
    return found
