"""What all engines share: settings, lazy sources, chats, log-probabilities, models of the hub."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_gen.engines import (
    EngineConfig,
    Message,
    RayConfig,
    Request,
    SamplingParams,
    ServerConfig,
    VllmConfig,
    identify_engine,
    max_in_flight,
    open_engine,
)
from data_gen.engines.model_folder import folder_revision
from data_gen.engines.transformers import TransformersEngine
from ipt_jax.core.configuration import parse_config
from ipt_jax.core.errors import UserError

SHORT = SamplingParams(max_tokens=2)


@pytest.fixture
def engine(bfloat16_engine: TransformersEngine) -> TransformersEngine:
    return bfloat16_engine


def test_an_endless_source_is_read_a_window_ahead(engine: TransformersEngine) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Request]:
        while True:
            taken.append(len(taken))
            yield Request(str(taken[-1]), "word " * (1 + taken[-1] % 5), SHORT)

    completions = engine.generate(endless())
    given = []
    for number in range(1, 20):
        given.append(int(next(completions).request_id))
        assert len(taken) - number <= 6 + 4  # the window and the batch
    completions.close()  # type: ignore[attr-defined]
    assert len(set(given)) == 19
    # Sorted within a window, longest first, and windows one after the other: nobody starves.
    assert given[:1] == [4]
    assert all(abs(place - number) <= 10 for place, number in enumerate(given))


def test_a_source_that_waits_for_completions_is_asked_again(engine: TransformersEngine) -> None:
    ready, seen = [Request("0", "one", SHORT)], []

    def chain() -> Iterator[Request | None]:
        for _ in range(4):
            while not ready:
                yield None
            yield ready.pop()

    for completion in engine.generate(chain()):
        seen.append(completion.request_id)
        ready.append(Request(str(len(seen)), f"{completion.text} and", SHORT))
    assert seen == ["0", "1", "2", "3"]


def test_a_chat_is_rendered_by_the_models_template(engine: TransformersEngine) -> None:
    turns = (Message("system", "Be brief."), Message("user", "Name a colour."))
    text = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n"
    )
    requests = [Request("c", turns, SamplingParams(8)), Request("t", text, SamplingParams(8))]
    found = {c.request_id: c for c in engine.generate(requests)}
    assert found["c"].prompt_tokens == found["t"].prompt_tokens == engine.count_tokens(turns)
    assert found["c"].text == found["t"].text and found["c"].text


def test_a_chat_that_the_template_refuses_hurts_no_other(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('first the user') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    monkeypatch.setattr(engine.tokenizer, "chat_template", strict)
    requests = [
        Request("bad", (Message("assistant", "Hm."),), SHORT),
        Request("good", (Message("user", "One two"),), SHORT),
    ]
    found = {c.request_id: c for c in engine.generate(requests)}
    assert found["bad"].finish_reason == "error" and found["bad"].error_kind == "permanent"
    assert "first the user" in found["bad"].text
    assert found["good"].finish_reason == "length" and found["good"].prompt_tokens == 2
    monkeypatch.setattr(engine.tokenizer, "chat_template", None)
    with pytest.raises(UserError, match="no chat template"):
        list(engine.generate(requests[1:]))


def test_logprobs_are_those_of_the_model_itself(
    float_engine: TransformersEngine, reference: Any
) -> None:
    """Against a forward of transformers; temperature and pattern change nothing."""
    engine = float_engine
    text = "One two three four"
    how = {
        "greedy": SamplingParams(4, logprobs=3),
        "drawn": SamplingParams(4, temperature=2.0, top_k=40, logprobs=0),
        "bound": SamplingParams(4, regex="[abc ]+", logprobs=1),
        "without": SamplingParams(4),
    }
    requests = [Request(key, text, value, seed=3) for key, value in how.items()]
    found = {c.request_id: c for c in engine.generate(requests)}
    assert found["without"].logprobs is None
    for key, count in (("greedy", 3), ("drawn", 0), ("bound", 1)):
        completion = found[key]
        assert completion.logprobs is not None
        assert len(completion.logprobs) == completion.completion_tokens == 4
        prompt = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces = [place.token for place in completion.logprobs]
        assert "".join(pieces) == completion.text
        ids = list(prompt)
        for piece in pieces:
            ids += engine.tokenizer(piece, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(prompt) + 4
        with torch.no_grad():
            scores = reference(torch.tensor([ids])).logits[0].log_softmax(-1)
        for step, place in enumerate(completion.logprobs):
            row = scores[len(prompt) - 1 + step]
            assert math.isclose(place.logprob, float(row[ids[len(prompt) + step]]), abs_tol=1e-3)
            assert len(place.likeliest) == count
            values = [value for _, value in place.likeliest]
            torch.testing.assert_close(
                torch.tensor(values), row.topk(count).values, atol=1e-3, rtol=0
            )
    assert found["greedy"].logprobs[0].likeliest[0][0] == found["greedy"].logprobs[0].token  # type: ignore[index]


def test_nested_settings_are_read_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text("name: server\nmodel: m\nserver: {url: 'http://h:1', extra_body: {min_p: 0.1}}")
    arguments = ["--config", str(file), "--server.max_attempts", "3", "--vllm.data_parallel", "2"]
    config = parse_config(EngineConfig, arguments, prog="test", description="")
    assert config.server == ServerConfig(
        url="http://h:1", extra_body={"min_p": 0.1}, max_attempts=3
    )
    assert config.vllm.data_parallel == 2
    for wrong in ("--server.max_attempt", "--server.dialect"):
        with pytest.raises(UserError, match=wrong.split(".")[1]):
            parse_config(EngineConfig, [wrong, "x"], prog="test", description="")


def test_a_hub_name_is_found_in_the_hubs_cache(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network: a cache as the hub's client leaves it."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "models--owner--small"
    (place / "snapshots").mkdir(parents=True)
    (place / "snapshots" / commit).symlink_to(smollm2)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    config = EngineConfig(model="owner/small", context_tokens=64)
    identity = identify_engine(config)
    assert (identity.model, identity.revision) == ("owner/small", commit)
    engine = open_engine(config)
    assert (engine.model, engine.revision) == ("owner/small", commit)
    engine.close()
    with pytest.raises(UserError, match="'owner/other': there is no such folder here, and the hub"):
        identify_engine(replace(config, model="owner/other"))
    with pytest.raises(UserError, match="at revision 'v2'"):
        identify_engine(replace(config, revision="v2"))


def test_a_run_keeps_every_engine_full() -> None:
    ray = RayConfig(actors=16, in_flight=1024)
    for config, most in (
        (EngineConfig(), 1024),
        (EngineConfig(name="server", server=ServerConfig(max_concurrency=77)), 77),
        (EngineConfig(name="vllm", vllm=VllmConfig(data_parallel=4, in_flight=500)), 2000),
        (EngineConfig(name="vllm", ray=ray), 16 * 1024),
    ):
        assert max_in_flight(config) == most


@pytest.mark.parametrize("name", ["model.safetensors", "chat_template.jinja", "merges.txt"])
def test_a_revision_is_of_all_that_is_read_as_the_model(tmp_path: Path, name: str) -> None:
    """Of the weights also the middle, which alone a merged adapter changes."""
    for file in ("config.json", "model.safetensors", "chat_template.jinja", "merges.txt"):
        (tmp_path / file).write_bytes(bytes(3 << 20))
    before = folder_revision(tmp_path)
    with open(tmp_path / name, "r+b") as file:
        file.seek(1500 << 10)
        file.write(b"x")
    assert folder_revision(tmp_path) != before and len(before) == 12
