"""What the server engine says to a server and reads from it; keys, identity, a real model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_gen.engines import (
    Message,
    Request,
    SamplingParams,
    identify_engine,
    open_engine,
)
from data_gen.engines.server_client import allow_connections, api_address
from ipt_jax.core.errors import UserError
from tests.data_gen.asking import ask, config_for, opened
from tests.data_gen.misbehaving_server import MODEL, MisbehavingServer


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer() as running:
        yield running


KEY = "sk-very-secret-42"


def test_the_key_is_sent_and_never_shown(
    server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.key = KEY
    with pytest.raises(UserError, match="IPT_TEST_KEY"):
        opened(server, api_key_env="IPT_TEST_KEY")
    monkeypatch.setenv("IPT_TEST_KEY", KEY)
    config = config_for(server, api_key_env="IPT_TEST_KEY")
    engine = opened(server, api_key_env="IPT_TEST_KEY")
    found = ask(engine, "quote | a", "ok | b", "500 | c", "cut | d")
    assert server.keys == {KEY}
    assert found["ok | b"].finish_reason == "stop"
    assert "Incorrect API key provided: ***" in found["quote | a"].text
    server.key = "another"  # the key is taken back while the run goes on
    engine._last_access_check = float("-inf")
    with pytest.raises(UserError, match="IPT_TEST_KEY") as caught:
        ask(engine, "quote | e")
    with pytest.raises(UserError, match="refuses access") as at_start:
        identify_engine(config)
    engine.close()
    said = [repr(found), str(caught.value), str(at_start.value), caplog.text, repr(config)]
    said += [repr(error.value.__context__) for error in (caught, at_start)]
    assert not any(KEY in text for text in said)


def test_a_wrong_key_is_refused_at_the_start(
    server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.models_status = 401
    with pytest.raises(UserError, match="set `engine.server.api_key_env`"):
        opened(server)
    monkeypatch.setenv("IPT_TEST_KEY", KEY)
    with pytest.raises(UserError, match="check the key in the variable IPT_TEST_KEY") as caught:
        opened(server, api_key_env="IPT_TEST_KEY")
    assert KEY not in str(caught.value) and "***" in str(caught.value)


def test_a_server_is_asked_in_its_own_dialect(server: MisbehavingServer) -> None:
    how = SamplingParams(
        9, temperature=0.7, top_k=3, top_p=0.8, stop=("END",), regex="[ab]+", logprobs=2
    )
    chat = (Message("system", "Be brief."), Message("user", "ok | hello"))
    engine = opened(server, extra_body={"min_p": 0.1})
    requests = [Request("t", "ok | text", how, seed=2**63 - 1), Request("c", chat, how, seed=7)]
    found = {c.request_id: c for c in engine.generate(requests)}
    engine.close()
    assert found["c"].text == "olleh | ko"
    bodies = {"messages" in body: body for body in server.bodies}
    common = {
        "model": MODEL,
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 3,
        "stop": ["END"],
        "structured_outputs": {"regex": "[ab]+"},
        "skip_special_tokens": False,
        "min_p": 0.1,
    }
    assert bodies[False] == {
        **common,
        "prompt": "ok | text",
        "seed": 2**63 - 1,
        "logprobs": 2,
        "add_special_tokens": False,
    }
    assert bodies[True] == {
        **common,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "ok | hello"},
        ],
        "seed": 7,
        "logprobs": True,
        "top_logprobs": 2,
    }
    server.owner = "another"
    server.bodies.clear()
    engine = opened(server, send_seed=False)
    for unknown in (SamplingParams(top_k=5), SamplingParams(regex="a")):
        with pytest.raises(UserError, match="dialect"):
            list(engine.generate([Request("x", "a", unknown)]))
    with pytest.raises(UserError, match=r"engine\.server\.tokenizer"):
        engine.count_tokens("a b")
    ask(engine, "ok | plain")
    assert set(server.bodies[-1]) == {"model", "prompt", "max_tokens", "temperature", "top_p"}
    engine.close()


def test_logprobs_come_in_both_forms() -> None:
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        if "prompt" in body:
            said: dict[str, Any] = {
                "text": "ab END of it",
                "logprobs": {
                    "tokens": ["a", "b"],
                    "token_logprobs": [-0.5, -1.5],
                    "top_logprobs": [{"c": -2.0, "a": -0.5}, None],
                },
            }
        else:
            top = [{"token": "c", "logprob": -2.0}, {"token": "a", "logprob": -0.5}]
            place = {"token": "a", "logprob": -0.5, "top_logprobs": top}
            said = {"message": {"content": "a"}, "logprobs": {"content": [place]}}
        return {"choices": [{"index": 0, **said, "finish_reason": "length"}]}

    how = SamplingParams(logprobs=2, stop=("END",))
    with MisbehavingServer(answer=answer) as server:
        engine = opened(server)
        requests = [Request("t", "x", how), Request("c", (Message("user", "x"),), how)]
        found = {c.request_id: c for c in engine.generate(requests)}
        engine.close()
    assert found["t"].text == "ab " and found["t"].finish_reason == "stop"  # cut here
    assert found["c"].finish_reason == "length"
    text, chat = found["t"].logprobs, found["c"].logprobs
    assert text is not None and chat is not None
    assert [(place.token, place.logprob) for place in text] == [("a", -0.5), ("b", -1.5)]
    assert text[0].likeliest == chat[0].likeliest == (("a", -0.5), ("c", -2.0))
    assert text[1].likeliest == ()


def test_half_a_surrogate_pair_can_be_written_afterwards(server: MisbehavingServer) -> None:
    engine = opened(server)
    text = ask(engine, "surrogate | a")["surrogate | a"].text
    engine.close()
    assert text == "half a pair \ufffd here" and text.encode()


def test_identity_is_what_the_server_says(server: MisbehavingServer) -> None:
    config = config_for(server)
    identity = identify_engine(config)
    engine = open_engine(config)
    assert identity == identify_engine(replace(config, model="auto"))
    assert (identity.model, identity.version) == (MODEL, "vllm 9.9")
    assert identity.revision == (
        f"reported by the server, not verified: model {MODEL}, owned_by vllm, root {MODEL}"
    )
    assert (engine.model, engine.revision) == (identity.model, identity.revision)
    assert engine.version == identity.version
    assert engine.context_tokens == 512  # the server's, less than the config's
    assert engine.count_tokens("three words here") == 3
    engine.close()
    with pytest.raises(UserError, match=f"no model 'other'.*{MODEL}"):
        identify_engine(replace(config, model="other"))
    server.models = (MODEL, "second")
    with pytest.raises(UserError, match="`auto`.*second"):
        identify_engine(replace(config, model="auto"))
    server.models_status = 404  # a server without a list
    server.owner = ""
    assert identify_engine(config).version == "unknown"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("https://h/v1/", "https://h/v1"),
        ("https://h/api/openai/v1", "https://h/api/openai/v1"),
        ("h:1", None),
        ("ftp://h", None),
        ("http://user:word@h:1", None),
    ],
)
def test_addresses(url: str, address: str | None) -> None:
    if address is not None:
        assert api_address(url) == address
        return
    with pytest.raises(UserError, match=r"engine\.server\.url") as caught:
        api_address(url)
    assert "word" not in str(caught.value).replace("password", "")


def test_fewer_than_the_default_at_the_start(server: MisbehavingServer) -> None:
    engine = opened(server, max_concurrency=3)
    assert engine.limit.limit == 3
    engine.close()
    with pytest.raises(UserError, match="ulimit -n"):
        allow_connections(10**9)


@pytest.mark.slow
def test_a_real_model_behind_a_server_writes_what_it_writes_directly(smollm2: Path) -> None:
    """In float32, where a batch does not change the likeliest token."""
    import torch

    from data_gen.engines.transformers import TransformersEngine

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    direct = TransformersEngine(smollm2, batch_size=4)
    direct._model.float()

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        chat = "messages" in body
        prompt = tuple(Message(**m) for m in body["messages"]) if chat else body["prompt"]
        how = SamplingParams(body["max_tokens"], stop=tuple(body.get("stop", ())))
        done = next(iter(direct.generate([Request("x", prompt, how)])))
        said = {"message": {"content": done.text}} if chat else {"text": done.text}
        return {
            "choices": [{"index": 0, **said, "finish_reason": done.finish_reason}],
            "usage": {
                "prompt_tokens": done.prompt_tokens,
                "completion_tokens": done.completion_tokens,
            },
        }

    prompts = [
        "The capital of France is",
        "Bees dance to tell others where",
        "One, two, three,",
        (Message("user", "Name a colour."),),
    ]
    requests = [
        Request(str(number), prompt, SamplingParams(6, stop=(" five",)))
        for number, prompt in enumerate(prompts)
    ]
    with MisbehavingServer(answer=answer) as server:
        engine = opened(server, tokenizer=str(smollm2), read_seconds=120.0, total_seconds=120.0)
        served = {c.request_id: c for c in engine.generate(requests)}
        assert [engine.count_tokens(p) for p in prompts] == [
            direct.count_tokens(p) for p in prompts
        ]
        engine.close()
    assert served == {c.request_id: c for c in direct.generate(requests)}
    torch.set_num_threads(before)
