"""Texts with their tasks: nothing lost, limits, shares, and draws that do not depend on another."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from data_gen.baselines.domain_words import DomainWords, open_general, train_vocabulary
from data_gen.baselines.instructions import DEFAULT_FILE, load_instructions
from data_gen.baselines.reading_comprehension import Rules, reading_comprehension
from data_gen.baselines.rules import mine
from data_gen.baselines.sentences import split_sentences, split_title
from ipt_jax.core.errors import UserError

ALL = {
    *("nli.entail", "nli.contradict", "nli.neutral"),
    *("common_reason.cause_effect", "common_reason.effect_cause"),
    *("paraphrase.similar", "paraphrase.different"),
    *("word_to_text.words", "word_to_text.definition"),
    *("summarization.title", "summarization.topic", "completion.ending"),
}


def squeezed(text: str) -> str:
    return "".join(text.split())


def with_wordings(rules: Rules, folder: Path, **changed: list[str]) -> Rules:
    """Rules whose instructions are those of the file, some of them replaced."""
    path = folder / "wordings.yaml"
    content = yaml.safe_load(DEFAULT_FILE.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**content, **changed}), encoding="utf-8")
    return replace(rules, instructions=load_instructions(path))


@pytest.fixture(scope="session")
def everything(
    abstracts: list[str], pubmed: list[dict[str, str]], news: list[dict[str, str]], rules: Rules
) -> list[tuple[str, str, str, Counter[str]]]:
    """Name, title and text of each document, its reading text, its tasks."""
    found = []
    texts = [(f"a{n}", None, text) for n, text in enumerate(abstracts)]
    texts += [(row["id"], row["title"], row["text"]) for row in pubmed]
    texts += [(row["id"], None, row["text"]) for row in news]
    for name, title, text in texts:
        made = reading_comprehension(name, text, title, rules, 0)
        head, body = split_title(text) if title is None else (title, text)
        found.append((head, body, made.text, made.tasks))
    return found


def test_every_rule_fires_on_real_texts(
    shared: Path, everything: list[tuple[str, str, str, Counter[str]]]
) -> None:
    total = sum((tasks for *_, tasks in everything), Counter[str]())
    assert total["word_to_text.words"] > 150 and total["paraphrase.different"] > 60
    with gzip.open(shared / "data/raw_mixed.jsonl.gz", "rt", encoding="utf-8") as file:
        (page,) = [row["text"] for row in map(json.loads, file) if row["id"] == "c4_train/515"]
    found = {f"{task.type}.{task.sub}" for task in mine(split_sentences(page))}
    assert "summarization.topic" in found
    assert total.keys() | found == ALL


def test_no_word_of_a_text_is_lost_and_limits_hold(
    everything: list[tuple[str, str, str, Counter[str]]],
) -> None:
    seen = 0
    for title, body, made, tasks in everything:
        assert bool(made) == bool(tasks)
        if not made:
            continue
        seen += 1
        whole = squeezed(made)
        assert squeezed(title) in whole
        place = 0  # sentences come in their order
        for sentence in split_sentences(body):
            place = whole.index(squeezed(sentence.text), place)
        assert max(tasks.values()) <= 2
        assert tasks["summarization.title"] <= 1 and tasks["completion.ending"] <= 1
        assert not re.search(r"\{(text|title|first|rest|domain|keywords|label)\}", made)
    assert seen > 900


def test_one_abstract_whole(abstracts: list[str], rules: Rules, tmp_path: Path) -> None:
    """Hand-checked: every task that text 8 gives, in wordings that can be read back."""
    names = {
        "reading": "READ {text}",
        "title_to_text": "FOR {title} WRITE {text}",
        "completion": "FIRST {first} REST {rest}",
        "opening": "ASK",
        "title": "TITLE {title}",
        "definition": "DEFINE {term} AS {definition}",
        "words": "WORDS {keywords} IN {sentence}",
    }
    plain = with_wordings(rules, tmp_path, **{key: [text] for key, text in names.items()})
    title, body = abstracts[8].split("\n")
    made = [reading_comprehension("x", abstracts[8], None, plain, seed) for seed in range(40)]
    heads = {
        f"READ {title}\n{body}\n\nASK": (0, 0),
        f"READ {body}\n\nASK": (1, 0),
        f"FOR {title} WRITE {body}\n\nASK": (1, 0),
        f"FIRST {title}": (0, 1),
        f"FIRST {body[:40]}": (1, 1),
    }
    met = set()
    for one in made:
        (head,) = [head for head in heads if one.text.startswith(head)]
        asked = one.tasks["summarization.title"], one.tasks["completion.ending"]
        assert asked == heads[head]
        assert (f"TITLE {title}" in one.text) == (asked[0] == 1 and not one.text.startswith("FOR"))
        assert "DEFINE Effective audibility AS Audibility corrected for the effects" in one.text
        assert one.tasks["word_to_text.words"] == one.text.count("WORDS ") == 2
        for keywords, sentence in re.findall(r"WORDS (.+) IN (.+)", one.text):
            assert sentence in body
            assert len(keywords.split(", ")) == 3
            assert all(re.search(rf"\b{word}\b", sentence) for word in keywords.split(", "))
        if asked[1]:
            first, rest = one.text.partition("\n\nASK")[0].removeprefix("FIRST ").split(" REST ")
            assert f"{first} {rest}" in (body, f"{title}\n{body}")
        met.add(head)
    assert met == set(heads)


def test_shares_of_arrangements_and_of_labels(
    abstracts: list[str], rules: Rules, tmp_path: Path
) -> None:
    plain = with_wordings(rules, tmp_path, nli=["LABEL {label} {premise} {hypothesis}"])
    arranged, labelled = Counter[tuple[int, int]](), 0
    for seed in range(1000):
        made = reading_comprehension("x", abstracts[6], None, plain, seed)
        arranged[made.tasks["summarization.title"], made.tasks["completion.ending"]] += 1
        assert made.tasks["nli.entail"] == made.tasks["nli.contradict"] == 1
        labelled += made.text.count("LABEL Yes Ventricular hypertrophy")
        assert "LABEL Maybe" not in made.text and "LABEL Yes This reduction" not in made.text
    expected = {(1, 0): 400, (0, 1): 100, (1, 1): 400, (0, 0): 100}
    for key, count in expected.items():
        assert abs(arranged[key] - count) < 65, arranged  # four standard deviations
    assert abs(labelled - 800) < 52


def test_draws_do_not_depend_on_each_other(
    abstracts: list[str], rules: Rules, tmp_path: Path
) -> None:
    numbered = with_wordings(
        rules,
        tmp_path,
        opening=[f"O{n}" for n in range(4)],
        title=[f"T{n} {{title}}" for n in range(4)],
        different=[f"D{n} {{first}} {{second}}" for n in range(4)],
    )
    met = Counter[tuple[str, ...]]()
    seen: list[str] = []
    for number in range(1200):
        made = reading_comprehension(f"n{number}", abstracts[6], None, numbered, 0)
        seen.append(made.text)
        marks = [re.findall(rf"^{kind}\d", made.text, re.MULTILINE) for kind in "OTD"]
        if all(marks):
            met[tuple(found[0] for found in marks)] += 1
    assert len(met) == 4 * 4 * 4 and max(met.values()) < 3 * met.total() / 64
    again = [
        reading_comprehension(f"n{n}", abstracts[6], None, numbered, 0).text for n in (0, 1199)
    ]
    assert again == [seen[0], seen[1199]]
    other = reading_comprehension("n0", abstracts[6], None, numbered, 1).text
    assert other != seen[0] and len(set(seen)) > 1100


def test_a_long_text_becomes_several_each_with_its_tasks(
    shared: Path, rules: Rules, tmp_path: Path
) -> None:
    book = (shared / "data/corpus_gutenberg/carroll-alice.txt").read_text()[:40_000]
    short = replace(rules, text_tokens=600)
    short = with_wordings(short, tmp_path, completion=["FIRST {first} REST {rest} END"])
    made = reading_comprehension("alice", book, None, short, 0)
    title, body = split_title(book)
    assert title == "[Alice's Adventures in Wonderland by Lewis Carroll 1865]"
    tokens = len(rules.general.encode(body))
    assert tokens / 600 / 4 < made.tasks["completion.ending"] <= tokens / 600 + 2
    ends = re.findall(r"FIRST (.*?) REST (.*?) END", made.text, re.DOTALL)
    assert len(ends) == made.tasks["completion.ending"] > 4 and all(map(all, ends))
    assert all(len(short.general.encode(" ".join(both))) < 620 for both in ends)
    beginnings = {s.text.split()[0] for s in split_sentences(body)}
    assert all(rest.split()[0] in beginnings for _, rest in ends)
    place, whole = 0, squeezed(made.text)
    for sentence in split_sentences(body):
        place = whole.index(squeezed(sentence.text), place)


def test_why_a_text_stays_plain(rules: Rules) -> None:
    made = reading_comprehension("x", "Nothing here.", None, rules, 0)
    assert (made.text, made.reason) == ("", "nothing_mined")
    two = "Nothing is in this. Nor in that."
    reasons = Counter(
        reading_comprehension("x", two, None, rules, seed).reason for seed in range(200)
    )
    assert set(reasons) == {"", "not_drawn"} and abs(reasons["not_drawn"] - 100) < 30


def test_domain_words_are_whole_words_that_the_general_vocabulary_lacks(
    rules: Rules, vocabulary: bytes
) -> None:
    words = rules.words
    assert {"thymidylate", "synthetase"} <= words.words
    assert all(len(word) >= 10 and word.isalpha() for word in words.words)
    general = open_general("mistral-7b-v0.1")
    assert all(len(general.encode(word)) > 1 for word in words.words)
    sentence = "Thymidylate synthetases and thymidylate synthetase-deficient cells met thymidylate."
    assert words.find(sentence, 100) == ["thymidylate", "synthetase"]
    assert words.find(sentence, 5) == []
    assert [word for word in words.words if words.find(f"{word}wards", 100)] == []
    known = DomainWords(vocabulary, rules.general)
    assert known.sha256 == words.sha256 and known.words == words.words


def test_training_gives_the_same_vocabulary_or_says_why_not(abstracts: list[str]) -> None:
    sentences = [s.text for text in abstracts for s in split_sentences(text)]
    assert train_vocabulary(sentences, 1000) == train_vocabulary(sentences, 1000)
    with pytest.raises(UserError, match="`domain_vocabulary`.*`vocabulary_pieces`"):
        train_vocabulary(["   "], 1000)
    with pytest.raises(UserError, match="no sentencepiece|not a sentencepiece"):
        DomainWords(b"nonsense", open_general("mistral-7b-v0.1"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"titel": ["{title}"]}, "unknown key 'titel'.*'title'"),
        ({"title": []}, "'title' must be a list"),
        ({"title": ["no slot"]}, r"'no slot' of 'title' lacks \{title\}"),
        ({"nli": ["{premise} {hypothesis}"]}, r"lacks \{label\}"),
        ({"words": ["{keywords} {sentence} {label}"]}, r"has \{label\}"),
    ],
)
def test_bad_wordings_are_named(
    tmp_path: Path, rules: Rules, changed: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        with_wordings(rules, tmp_path, **changed)


def test_braces_in_a_text_stay(rules: Rules) -> None:
    text = "A {title} in braces stays. So does {domain} here, and {text} too."
    made = [reading_comprehension("x", text, "T {first}", rules, seed).text for seed in range(9)]
    assert all("{title}" in one and "{domain}" in one and "{text}" in one for one in made if one)
    assert sum(map(bool, made)) > 5
