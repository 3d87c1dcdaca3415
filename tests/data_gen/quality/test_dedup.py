"""Exact and near duplicates, on real documents."""

from __future__ import annotations

import gzip
import json
import random
import unicodedata
from pathlib import Path

import pytest

from data_gen.quality.dedup import (
    ExactDuplicates,
    MinHashConfig,
    NearDuplicateGate,
    first_sentences,
    near_duplicate_candidates,
    near_duplicates,
)
from data_gen.quality.gate import RecordList
from data_gen.quality.words import words
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record


@pytest.fixture(scope="module")
def documents(shared: Path) -> list[str]:
    with gzip.open(shared / "data" / "raw_mixed.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One. Two! Three?", "One. Two!"),
        ("One. Two", "One. Two"),
        ("  One?\nTwo.  \n Three.", "One?\nTwo."),
        ("What is 3.5 of 7? Say it... Then stop.", "What is 3.5 of 7? Say it..."),
        ("Dr. A. Smith and Mrs. Jones met. They spoke. Then left.", "Dr. A. Smith and Mrs. Jones "
         "met. They spoke."),
        ('He said "Go!" (He did.) She left.', 'He said "Go!" (He did.)'),
        ("A title\n\nA sentence. Another.", "A title\n\nA sentence."),
        ("东京在哪里？在日本。还有呢？", "东京在哪里？在日本。"),
        ("no mark at all", "no mark at all"),
        ("", ""),
    ],
)  # fmt: skip
def test_first_two_sentences(text: str, wanted: str) -> None:
    assert first_sentences(text) == wanted


def test_a_near_duplicate_is_found_however_its_letters_are_written(documents: list[str]) -> None:
    text = f"{documents[0][:400]} Le café de Zoé est fermé après-midi, été comme hiver."
    spaced = "&nbsp;".join(unicodedata.normalize("NFD", text).split(" "))
    assert [(twin.number, twin.similarity) for twin in near_duplicates([text, spaced])] == [(1, 1)]


def test_exact_duplicates_name_the_first() -> None:
    pairs = ["One. Two. Six", "One. Two. Other", "One. Two. Six", "one. Two. Six", ""]
    texts = list(zip("abade", pairs, strict=True))
    whole = ExactDuplicates("text")
    assert [whole.add(*one) for one in texts] == [None, None, "a", None, None]
    start = ExactDuplicates("first_two_sentences")
    assert [start.add(*one) for one in texts] == [None, "a", "a", None, None]
    assert start.add("f", "One. Two.") == "a" and start.add("g", "") == "e"
    with pytest.raises(UserError, match="'first_two_sentences'"):
        ExactDuplicates("title")  # type: ignore[arg-type]


def edited(text: str, share: float, draw: random.Random) -> str:
    parts = text.split()
    for place in draw.sample(range(len(parts)), max(1, int(share * len(parts)))):
        parts[place] = draw.choice(["other", "words", "stand", "here", parts[place].upper()])
    return " ".join(parts)


def shingles(text: str, length: int) -> set[tuple[str, ...]]:
    own = words(text)
    return {tuple(own[at : at + length]) for at in range(max(1, len(own) - length + 1))}


def plainly(texts: list[str], config: MinHashConfig) -> list[tuple[int, int, float]]:
    """The rule itself: every text against every kept one before it."""
    kept: list[tuple[int, set[tuple[str, ...]]]] = []
    found = []
    for number, text in enumerate(texts):
        own = shingles(text, config.shingle_words)
        for other, its in kept:
            similarity = len(own & its) / len(own | its)
            if similarity >= config.threshold:
                found.append((number, other, similarity))
                break
        else:
            kept.append((number, own))
    return found


def test_near_duplicates_are_those_of_all_pairs_compared(documents: list[str]) -> None:
    draw = random.Random(7)
    texts = [text[:1500] for text in documents[:220]]
    # Edits from a single word to far too many, so that pairs lie on both sides of the threshold.
    texts += [edited(draw.choice(texts[:220]), draw.uniform(0.0, 0.12), draw) for _ in range(110)]
    draw.shuffle(texts)
    config = MinHashConfig()
    wanted = plainly(texts, config)
    assert 35 < len(wanted) < 105
    near_the_border = [s for _, _, s in wanted if s < 0.76]
    assert len(near_the_border) > 3
    found = near_duplicates(texts, config)
    assert [(one.number, one.of) for one in found] == [(n, of) for n, of, _ in wanted]
    for one, (_, _, similarity) in zip(found, wanted, strict=True):
        assert one.similarity == pytest.approx(similarity)
    assert near_duplicates(texts, config) == found
    # Other permutations, the same verified answer.
    assert near_duplicates(texts, MinHashConfig(seed=3)) == found


def test_real_documents_are_kept_but_for_three(documents: list[str]) -> None:
    found = near_duplicates(documents)
    assert [(one.number, one.of) for one in found] == [(912, 274), (1854, 717), (2986, 883)]
    for one in found:
        wanted = plainly([documents[one.of], documents[one.number]], MinHashConfig())
        assert one.similarity == pytest.approx(wanted[0][2])


def test_no_chain_of_small_steps_drops_a_text() -> None:
    names = [f"w{number}" for number in range(60)]
    chain = [" ".join(names[at : at + 50]) for at in (0, 4, 8)]
    config = MinHashConfig(threshold=0.8, shingle_words=1, bands=64)
    assert [(one.number, one.of) for one in near_duplicates(chain, config)] == [(1, 0)]


def test_short_and_empty_texts() -> None:
    texts = ["", "!!", "two words", "Two, words!", "two words more", "", "one"]
    found = near_duplicates(texts)
    assert [(one.number, one.of, one.similarity) for one in found] == [(3, 2, 1.0)]
    assert near_duplicates([]) == []
    flagged = near_duplicate_candidates(7, lambda ns: [texts[n] for n in ns], MinHashConfig())
    assert flagged.tolist() == [2, 3]


def test_bands_decide_who_is_compared(documents: list[str]) -> None:
    draw = random.Random(1)
    texts = [text[:1000] for text in documents[:150]]
    texts += [edited(text, 0.02, draw) for text in texts]

    def read(numbers: object) -> list[str]:
        return [texts[n] for n in numbers]  # type: ignore[attr-defined]

    few = near_duplicate_candidates(len(texts), read, MinHashConfig(bands=8))
    many = near_duplicate_candidates(len(texts), read, MinHashConfig(bands=32))
    assert set(few) < set(many) and len(many) > 290
    # Bands of three values, of one, and short signatures: the verified answer stays the same.
    wanted = [(one.number, one.of) for one in near_duplicates(texts)]
    assert len(wanted) > 140
    for permutations, bands in ((96, 32), (64, 64), (32, 16)):
        config = MinHashConfig(permutations=permutations, bands=bands)
        assert [(one.number, one.of) for one in near_duplicates(texts, config)] == wanted


def test_the_gate_names_the_record_that_is_repeated() -> None:
    text = "a text of some ten words that comes here twice over"
    records = [
        Record("first", text, "s"),
        Record("other", "something else stands here", "s"),
        Record("again", text.upper(), "s"),
    ]
    gate = NearDuplicateGate(MinHashConfig())
    gate.prepare(RecordList(records))
    # Batches of any size.
    verdicts = [*gate.check(records[:1]), *gate.check(records[1:])]
    assert verdicts[:2] == [None, None]
    assert verdicts[2] is not None and verdicts[2].reason == "near_duplicate"
    assert verdicts[2].detail == "similarity 1.000 to the record 'first'"
