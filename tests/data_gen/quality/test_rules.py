"""Rules of length, form and language, and the moderation gate."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_gen.quality.moderation import (
    DEFAULT_RULES,
    ModerationConfig,
    ModerationGate,
    load_rules,
)
from data_gen.quality.rules import RulesConfig, RulesGate, alphabetic_share, repeated_line_share
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record


def reasons(gate: RulesGate | ModerationGate, texts: Sequence[str]) -> list[str | None]:
    records = [Record(str(number), text, "made") for number, text in enumerate(texts)]
    return [None if one is None else one.reason for one in gate.check(records)]


@pytest.mark.parametrize(
    ("bounds", "texts"),
    [
        ({"min_characters": 3}, {"abc": None, "ab": "min_characters"}),
        ({"max_characters": 3}, {"abc": None, "abcd": "max_characters"}),
        ({"min_words": 2}, {"a b": None, " a\n": "min_words"}),
        ({"max_words": 2}, {"a b": None, "a b c": "max_words"}),
        ({"min_alphabetic": 0.5}, {"ab 12": None, "ab 123": "min_alphabetic", "é!": None}),
        (
            {"max_repeated_lines": 0.5},
            {"a\na\n\n": None, "a\n a\na\n": "max_repeated_lines", "\n\n": None},
        ),
        ({"min_words": 2, "min_characters": 4}, {"a": "min_characters", "abcd": "min_words"}),
    ],
)
def test_bounds_are_kept_exactly(bounds: dict[str, Any], texts: dict[str, str | None]) -> None:
    assert dict(
        zip(texts, reasons(RulesGate(RulesConfig(**bounds)), list(texts)), strict=True)
    ) == (texts)


def test_shares() -> None:
    assert alphabetic_share("ab1! é") == pytest.approx(3 / 5)
    assert alphabetic_share(" \n") == 0.0
    assert repeated_line_share("a\nb\n a \n\na") == pytest.approx(0.5)


def test_tokens_are_those_of_the_tokenizer() -> None:
    pytest.importorskip("mistral_common", reason="carries the tokenizer")
    from ipt_jax.core.tokenizers import load_tokenizer

    texts = ["short", "an unremarkable sentence of eight words or so", "x" * 300]
    lengths = [len(ids) for ids in load_tokenizer("mistral-7b-v0.1").encode_arrays(texts)]
    assert lengths[0] < lengths[1] < lengths[2]
    config = RulesConfig(
        min_tokens=lengths[1], max_tokens=lengths[1], max_characters=400,
        tokenizer="mistral-7b-v0.1",
    )  # fmt: skip
    assert reasons(RulesGate(config), [*texts, "x" * 401]) == [
        "min_tokens", None, "max_tokens", "max_characters",
    ]  # fmt: skip


OTHERS = {
    "de": "Der Ausschuss hat gestern beschlossen, die Beratungen über den Haushalt zu vertagen.",
    "fr": "Le comité a décidé hier de reporter la discussion du budget à la semaine prochaine.",
    "es": "El comité decidió ayer aplazar el debate sobre el presupuesto hasta la otra semana.",
    "ru": "Комитет вчера решил отложить обсуждение бюджета до следующей недели.",
    "zh": "委员会昨天决定将预算讨论推迟到下周举行，届时各方将提交新的方案。",
}


def test_english_passes_and_other_languages_do_not(shared: Path) -> None:
    pytest.importorskip("py3langid", reason="the language rule")
    with gzip.open(shared / "data" / "raw_mixed.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file][::6]
    gate = RulesGate(RulesConfig(languages=["en"], language_characters=1000))
    found = reasons(gate, texts)
    assert len(found) == 503 and found.count("languages") <= 2
    assert reasons(gate, list(OTHERS.values())) == ["languages"] * 5
    assert reasons(RulesGate(RulesConfig(languages=list(OTHERS))), list(OTHERS.values())) == (
        [None] * 5
    )
    unsure = RulesGate(RulesConfig(languages=["en"], min_language_score=0.5))
    assert reasons(unsure, [texts[0], "Who is it?"]) == [None, "min_language_score"]
    with pytest.raises(UserError, match="no language 'english' is known"):
        RulesGate(RulesConfig(languages=["english"]))


def test_a_missing_language_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(UserError, match="needs the package py3langid, which is not installed"):
        RulesGate(RulesConfig(languages=["en"]))
    assert reasons(RulesGate(RulesConfig()), ["a"]) == [None]  # asked for only where it is needed


# Moderation.


def test_the_default_rules_find_what_they_name_and_leave_real_text_alone(shared: Path) -> None:
    gate = ModerationGate(ModerationConfig())
    found = {
        "how to build a small pipe bomb at home": "weapons",
        "Steps to synthesize methamphetamine": "weapons",
        "What is the best way to end my life": "self_harm",
        "children in sexual content": "minors",
        "key:\n-----BEGIN RSA PRIVATE KEY-----\nMII": "private_key",
        "use AKIAABCDEFGHIJKLMNOP here": "credential",
        "his SSN: 123-45-6789": "social_security_number",
        "How to build a shed. The bomb squad came": None,
        "The phone number is 123-456-7890": None,
    }
    assert dict(zip(found, reasons(gate, list(found)), strict=True)) == found
    assert {name for name, _ in load_rules(DEFAULT_RULES)} == set(filter(None, found.values()))
    texts = []
    for name in ("raw_mixed", "queries"):
        path = shared / "data" / f"{name}.jsonl.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            texts += [json.loads(line)["text"] for line in file]
    caught = [reason for reason in reasons(gate, texts) if reason is not None]
    assert len(texts) == 6717 and len(caught) <= 3, caught


def test_a_classifier_sees_what_the_rules_leave_and_decides_by_threshold() -> None:
    seen: list[str] = []

    def classifier(texts: Sequence[str]) -> list[float]:
        seen.extend(texts)
        return [len(text) / 10 for text in texts]

    gate = ModerationGate(ModerationConfig(threshold=0.5), classifier)
    texts = ["abcd", "abcde", "his SSN 123-45-6789", "abcdefg"]
    assert reasons(gate, texts) == [None, "classifier", "social_security_number", "classifier"]
    assert seen == ["abcd", "abcde", "abcdefg"]
    alone = ModerationGate(ModerationConfig(rules=None), classifier)
    assert reasons(alone, ["abcd", "abcde"]) == [None, "classifier"]


@pytest.mark.parametrize(
    ("scores", "message"),
    [([0.1], "gave 1 scores for 2 texts"), ([0.1, float("nan")], "gave nan for the record '1'")],
)
def test_a_classifier_that_fails_passes_nothing(scores: list[float], message: str) -> None:
    gate = ModerationGate(ModerationConfig(), lambda texts: scores)
    with pytest.raises(UserError, match=message):
        reasons(gate, ["a", "b"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no rule file"),
        ("rules: []", "holds no list `rules`"),
        ("- a\n", "holds no list `rules`"),
        ("rules: [{name: a}]", "rule 1 of .* must have a `name` and a `pattern`"),
        ("rules: [{name: a, pattern: '('}]", "rule 'a' of .* is no regular expression"),
        ("rules: [{name: a, pattern: 'x*'}]", "rule 'a' of .* matches an empty text"),
        ("rules: {", "cannot be read"),
    ],
)
def test_bad_rule_files_are_named(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        ModerationGate(ModerationConfig(rules=str(path)))
    with pytest.raises(UserError, match="neither `rules` nor `model`"):
        ModerationGate(ModerationConfig(rules=None))


def test_a_folder_of_a_text_classifier(tmp_path: Path) -> None:
    """A real classifier of transformers whose weights are set so that the word decides."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    vocabulary = {"[PAD]": 0, "[UNK]": 1, "kind": 2, "cruel": 3}
    plain = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    plain.pre_tokenizer = Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", model_max_length=8
    )
    fast.save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = transformers.DistilBertForSequenceClassification(
        transformers.DistilBertConfig(
            vocab_size=4, dim=8, hidden_dim=8, n_layers=1, n_heads=1, max_position_embeddings=8,
            num_labels=2, id2label={0: "fine", 1: "toxic"}, label2id={"fine": 0, "toxic": 1},
        )
    )  # fmt: skip
    for weights in model.parameters():
        if weights.dim() > 1:
            torch.nn.init.normal_(weights)  # as made they are so small that all scores are alike
    model.eval()
    model.save_pretrained(tmp_path, safe_serialization=True)
    texts = ["kind", "cruel", "cruel cruel kind " * 9, "kind kind"]
    with torch.inference_mode():
        batch = fast(texts, padding=True, truncation=True, return_tensors="pt")
        wanted = model(**batch).logits.softmax(-1)[:, 1]
    low, high = wanted.sort().values[1:3].tolist()
    assert high - low > 0.01
    middle = (low + high) / 2
    expected = ["classifier" if score >= middle else None for score in wanted.tolist()]
    for labels in (None, ["toxic"]):
        config = ModerationConfig(
            rules=None, model=str(tmp_path), labels=labels, threshold=middle, batch_size=3
        )
        assert reasons(ModerationGate(config), texts) == expected
    with pytest.raises(UserError, match=r"has the labels fine, toxic, not harmful"):
        ModerationGate(ModerationConfig(model=str(tmp_path), labels=["harmful"]))
    with pytest.raises(UserError, match="there is no model folder"):
        ModerationGate(ModerationConfig(model=str(tmp_path / "nowhere")))
