"""Hashes of words: the words of the plain definition, the same hash everywhere."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from data_gen.quality.words import HashLookup, batches, hash_words, windows, words

# Dedup and decontamination of one run must be those of another; a change of hashes shows here.
GOLDEN = ["0xb60dd2935700e5ee", "0xb8a85e5b54ebc3e0", "0x7e5602a1a457c4cb", "0x36c9c5df1f7285c0"]
# Letters whose lower case is longer, marks, digits of other scripts, spaces of all kinds, NUL.
ODD = "aZ09_ .\n\t\0-'İßéÉжΣς字仮　 ́١²ªK“”—"
TEXTS = st.lists(st.text(st.sampled_from(ODD) | st.characters(), max_size=80), max_size=6)


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_words_are_those_of_the_plain_definition(texts: list[str]) -> None:
    found = hash_words(texts)
    wanted = [words(text) for text in texts]
    spans = zip(found.starts, found.ends, strict=True)
    assert [found.data[a:b].decode() for a, b in spans] == [w for own in wanted for w in own]
    assert found.counts.tolist() == [len(own) for own in wanted]
    # Equal words and only they have equal hashes, in whatever batch they stand.
    flat = [word for own in wanted for word in own]
    assert len(set(zip(flat, found.hashes.tolist(), strict=True))) == len(set(flat))
    assert len(set(found.hashes.tolist())) == len(set(flat))
    alone = [hash_words([text]).hashes.tolist() for text in texts]
    assert found.hashes.tolist() == [value for own in alone for value in own]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab \n", max_size=30), max_size=6), st.integers(1, 6), st.booleans())
def test_windows_are_runs_within_one_text(texts: list[str], length: int, short: bool) -> None:
    batch = hash_words(texts)
    found = windows(batch, length, short)
    wanted: list[list[tuple[str, ...]]] = []
    for text in texts:
        own = words(text)
        runs = [tuple(own[at : at + length]) for at in range(len(own) - length + 1)]
        wanted.append(runs or ([tuple(own)] if own and short else []))
    flat = [run for runs in wanted for run in runs]
    assert np.diff(found.offsets).tolist() == [len(runs) for runs in wanted]
    assert len(set(zip(flat, found.hashes.tolist(), strict=True))) == len(set(flat))
    assert len(set(found.hashes.tolist())) == len(set(flat))
    for place, run in zip(found.places.tolist(), flat, strict=True):
        assert batch.text(place, len(run)).decode().split() == list(run)


def test_hashes_are_the_same_in_every_run() -> None:
    long = "x" * 65
    found = hash_words(["Word, ninebytes seventeen_letters " + long])
    assert [hex(value) for value in found.hashes.tolist()] == GOLDEN
    assert hash_words(["é" * 40, "é" * 41]).hashes.tolist() != [0, 0]
    assert hash_words(["y" + long]).hashes.tolist() != hash_words(["z" + long]).hashes.tolist()


def test_lookup_finds_all_numbers_of_a_hash_and_nothing_else() -> None:
    draw = np.random.default_rng(0)
    known = draw.integers(0, 2**64, 5000, np.uint64)
    known[4000:] = known[:1000]
    asked = np.concatenate([draw.integers(0, 2**64, 50_000, np.uint64), known[:3]])
    found = {place: numbers.tolist() for place, numbers in HashLookup(known).find(asked)}
    assert found == {50_000: [0, 4000], 50_001: [1, 4001], 50_002: [2, 4002]}
    assert list(HashLookup(np.zeros(0, np.uint64)).find(asked)) == []


@pytest.mark.parametrize("most", [1, 7, 100])
def test_batches_are_all_texts_in_order(most: int) -> None:
    texts = ["", "abc", "x" * 50, "", "de", ""]
    found = list(batches(texts, most))
    assert [text for _, some in found for text in some] == texts
    assert [first for first, _ in found] == [
        sum(len(some) for _, some in found[:number]) for number in range(len(found))
    ]
    assert all(len(some) == 1 or sum(map(len, some)) <= most for _, some in found)
