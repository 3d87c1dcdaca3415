"""Stop strings: cut exactly where the whole text would be cut, for the price of a few tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_gen.engines import Request, SamplingParams
from data_gen.engines import transformers as engines
from data_gen.engines.stopping import cut_at_stop
from ipt_jax.core.tokenizers import load_tokenizer
from tests.data_gen.tiny_model import END_ID, byte_level, write_base

TEXTS = (
    "Bees dance.\n\nQuestion: why?</CON>\n\nAnswer: to tell where flowers are. </END> More.",
    "Größe 7 — “naïve” café\n日本語のテキスト🪿🪿\nEnd of it </s> and on",
    "ababababac  a  b\n\n\n\nx</</END></END>",
    "ꙮꙮꙮꙮ\nab",
)
STOPS = (
    ("</END>",),
    ("\n\n", "</CON>"),
    ("日本",),
    ("🪿\n", "é"),
    (" a", "abac"),
    ("D></END>", "END"),
    (" ",),
    ("\n",),
    ("ꙮ" * 6,),
    ("END>", "</END>"),
    ("nowhere",),
)


def whole_text_cut(decode: Callable[..., str], ids: list[int], stops: Sequence[str]) -> str | None:
    """The rule itself: the whole text is decoded at each token."""
    text = decode(ids)
    cuts = [text.find(stop) for stop in stops if stop in text]
    return text[: min(cuts)] if cuts else None


@pytest.fixture(scope="module", params=["mistral", "byte level"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "byte level":
        return byte_level(TEXTS)
    folder = tmp_path_factory.mktemp("mistral")
    load_tokenizer("mistral-7b-v0.1").save_pretrained(folder)  # byte tokens for rare characters
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def first_cuts(
    tokenizer: Tokenizer, ids: list[int], stops: Sequence[str]
) -> tuple[tuple[int, str] | None, tuple[int, str] | None, int]:
    """Token and text of the first cut, here and by the rule; most tokens decoded while going on."""
    decoded: list[int] = []

    def decode(ids: list[int]) -> str:
        decoded.append(len(ids))
        return tokenizer.decode(ids, skip_special_tokens=False)

    most, ours, theirs = 0, None, None
    for end in range(1, len(ids) + 1):
        decoded.clear()
        cut = cut_at_stop(decode, ids[:end], stops)
        if cut is None:
            most = max(most, sum(decoded))
        elif ours is None:
            ours = (end, cut)
        cut = whole_text_cut(decode, ids[:end], stops)
        if cut is not None:
            theirs = (end, cut)
            break
    return ours, theirs, most


@pytest.mark.parametrize("stops", STOPS)
def test_the_cut_is_that_of_the_whole_text(tokenizer: Tokenizer, stops: tuple[str, ...]) -> None:
    found = 0
    for text in TEXTS:
        for lead in ("", "a b " * 30, "語" * 40, "🪿" * 20, "ꙮ" * 20):
            ids = tokenizer.encode(lead + text, add_special_tokens=False).ids
            ours, theirs, _ = first_cuts(tokenizer, ids, stops)
            assert ours == theirs, (text, lead)
            found += theirs is not None
    assert found == 0 if stops == ("nowhere",) else found >= 2


def test_stops_over_several_tokens_and_at_the_start(tokenizer: Tokenizer) -> None:
    def cut(text: str, *stops: str) -> tuple[int, str] | None:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return first_cuts(tokenizer, ids, stops)[0]

    split = tokenizer.encode("</END>", add_special_tokens=False).ids
    assert len(split) >= 3
    assert cut("a b</END> a", "</END>", "b</EN") in [(n, "a ") for n in range(4, 9)]
    found = cut("</END> a", "</END>")
    assert found is not None and found[1] == ""
    assert cut("a b", "c") is None


def test_any_tokens_are_cut_as_the_whole_text_is(tokenizer: Tokenizer) -> None:
    """Also halves of characters, in any order."""
    draw = np.random.default_rng(3)
    some = tokenizer.encode("日本語🪿é\n\n </END> a b", add_special_tokens=False).ids
    found = 0
    for _ in range(150):
        ids = [some[place] for place in draw.integers(0, len(some), 80)]
        stops = STOPS[draw.integers(len(STOPS))]
        ours, theirs, _ = first_cuts(tokenizer, ids, stops)
        assert ours == theirs, (ids, stops)
        found += theirs is not None
    assert 20 < found < 150


def test_a_token_costs_the_same_however_long_the_text(tokenizer: Tokenizer) -> None:
    costs = []
    for repeats in (20, 200):
        ids = tokenizer.encode("ab 日本語 " * repeats, add_special_tokens=False).ids
        ours, theirs, most = first_cuts(tokenizer, ids, ("</END>", "\n\n"))
        assert ours is None and theirs is None
        costs.append(most)
    assert costs[0] == costs[1] <= 4 * (len("</END>") + 8 + 3)


def test_the_engine_cuts_what_it_writes_and_decodes_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens are written for it, the rest is the engine's."""
    engine = engines.TransformersEngine(write_base(tmp_path / "model"), batch_size=1)
    text = TEXTS[0] + " Again: " + TEXTS[0]
    ids, decoded = engine.tokenizer.encode(text), []
    assert len(ids) > 100

    def answer(*stops: str) -> tuple[str, str, int]:
        script = iter([*ids, END_ID])
        monkeypatch.setattr(engines, "sample_tokens", lambda *_: [next(script)])
        how = SamplingParams(max_tokens=len(ids) + 1, stop=stops)
        (found,) = engine.generate([Request("a", "Salt", how)])
        return found.text, found.finish_reason, found.completion_tokens

    assert answer() == (text, "stop", len(ids) + 1)
    for stop in ("Bees", "\n\nQ", "</CON>", "s are. </END> M"):
        cut, reason, tokens = answer("nowhere", stop)
        assert (cut, reason) == (text[: text.index(stop)], "stop") and tokens < len(ids) / 2
        # It ended with the token that the stop string ends in.
        assert stop in engine.tokenizer.decode(ids[:tokens])
        assert stop not in engine.tokenizer.decode(ids[: tokens - 1])
    decode = engine.tokenizer.decode
    monkeypatch.setattr(
        engine.tokenizer,
        "decode",
        lambda ids, **how: (decoded.append(len(ids)), decode(ids, **how))[1],
    )
    assert answer("nowhere")[:2] == (text, "stop")
    assert decoded[-1] == len(ids) and max(decoded[:-1]) == len("nowhere") + 8
