"""Exact deduplication, by the whole text or by its first two sentences, and near-duplicates.

Near-duplicates: signatures are the library rensa's (its R-MinHash); texts that share a band are
compared exactly, by the Jaccard similarity of their sets of word shingles (64-bit hashes). rensa's
own index takes 3.4 kB a text; sorting the bands takes 256 bytes and two fifths more time.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Literal

import numpy as np

from data_gen.errors.shared import optional
from data_gen.quality.gate import Gate
from data_gen.quality.words import batches, hash_words, windows
from data_gen.stages.units import Records
from ipt_jax.core.bounds import Above, AtMost, Config, NotNegative, Positive
from ipt_jax.core.errors import UserError, require
from ipt_jax.core.records import Record
from ipt_jax.core.rejection import Reason

ExactKey = Literal["text", "first_two_sentences"]
# A sentence ends at its mark and what closes after it, at an empty line, or with the text. A point
# after a title, an initial or a short form of Latin ends none. The set of characters comes first,
# so that the search runs from one to the next.
_SENTENCE_END = re.compile(
    r"[.!?…。！？\n](?:(?<=\n)[ \t]*\n|(?<=[。！？])|(?<=[.!?…])[.!?…]*[\"'”’)\]]*(?=\s|$)"
    r"(?<!\b[A-Za-z]\.)(?<!\b(?:[DMS]r|Ms|St|vs|No)\.)(?<!\b(?:Mrs|etc|Fig)\.)(?<!\bProf\.))"
)
_ODD = np.uint64(0x9E3779B97F4A7C15)
_READ = 1024  # records read at a time


def first_sentences(text: str, count: int = 2) -> str:
    """The first `count` sentences, without white space around them."""
    end = 0
    for _ in range(count):
        found = _SENTENCE_END.search(text, end)
        if found is None:
            return text.strip()
        end = found.end()
    return text[:end].strip()


class ExactDuplicates:
    """Remembers texts by a key and names the first that had the same one.

    `text`: the same characters. `first_two_sentences`: GenQA's rule for questions (section 3.5).
    """

    def __init__(self, key: ExactKey = "text") -> None:
        if key not in ("text", "first_two_sentences"):
            raise UserError(
                f"`key` is {key!r}: it must be 'text' or 'first_two_sentences'.", key="key"
            )
        self._cut: Callable[[str], str] = str if key == "text" else first_sentences
        self._first: dict[bytes, str] = {}

    def add(self, name: str, text: str) -> str | None:
        """The name of the first text with the same key; None where this is the first."""
        data = self._cut(text).encode(errors="surrogatepass")
        digest = hashlib.blake2b(data, digest_size=16).digest()
        first = self._first.get(digest)
        if first is None:
            self._first[digest] = name
        return first


@dataclass(frozen=True)
class MinHashConfig(Config):
    """Which texts count as near-duplicates, and how they are looked for."""

    threshold: Annotated[float, Above(0), AtMost(1)] = 0.7
    """Least Jaccard similarity of two texts' shingles; compared exactly, not estimated."""
    shingle_words: Positive = 5
    """Words of a shingle; a shorter text is one shingle."""
    permutations: Positive = 128
    """Values of a signature."""
    bands: Positive = 32
    """Parts of a signature; texts that share one are compared. A pair of similarity s is found
    with probability 1 - (1 - s^(permutations/bands))^bands: 0.9998 at 0.7 as it stands."""
    seed: NotNegative = 0
    """Of the permutations."""

    def check_together(self) -> None:
        divides = self.permutations % self.bands == 0
        require("bands", self.bands, divides, f"a divisor of permutations={self.permutations}")


@dataclass(frozen=True)
class NearDuplicate:
    """A text that repeats an earlier one that was kept."""

    number: int
    """Of the text."""
    of: int
    """The earliest kept text that is as similar as the threshold asks."""
    similarity: float
    """Jaccard similarity of their shingles."""


def near_duplicates(
    texts: Sequence[str], config: MinHashConfig | None = None
) -> list[NearDuplicate]:
    """The texts that repeat an earlier kept one, in order; all others are to be kept.

    Every one of them is at least `threshold` similar to the text it names: no chain of small
    steps throws away a text that is unlike all that is kept. Texts without a word repeat nothing.
    """
    return find_near_duplicates(
        len(texts), lambda numbers: [texts[n] for n in numbers], config or MinHashConfig()
    )


def find_near_duplicates(
    count: int, read: Callable[[Sequence[int]], list[str]], config: MinHashConfig
) -> list[NearDuplicate]:
    """As `near_duplicates`, for `count` texts that `read` gives by their numbers.

    Reads all texts once in order, then those again that share a band with another.
    """
    candidates = near_duplicate_candidates(count, read, config)
    rows = config.permutations // config.bands
    buckets: list[dict[bytes, list[int]]] = [defaultdict(list) for _ in range(config.bands)]
    kept_sets: list[np.ndarray] = []
    kept_numbers: list[int] = []
    signatures = np.zeros((len(candidates), config.permutations), np.uint32)
    found: list[NearDuplicate] = []
    # Four standard deviations of an estimate from so many permutations.
    spread = math.sqrt(config.threshold * (1 - config.threshold) / config.permutations)
    least = config.threshold - 4 * spread
    for number, shingles, signature in _shingled(candidates, read, config):
        keys = [signature[b * rows : (b + 1) * rows].tobytes() for b in range(config.bands)]
        met = {place for band, key in enumerate(keys) for place in buckets[band].get(key, ())}
        places = np.fromiter(met, np.int64, len(met))
        places.sort()
        # What is far below the threshold by the signatures need not be compared exactly.
        places = places[(signatures[places] == signature).mean(axis=1) >= least]
        for place in places.tolist():
            similarity = _jaccard(kept_sets[place], shingles)
            if similarity >= config.threshold:
                found.append(NearDuplicate(number, kept_numbers[place], similarity))
                break
        else:
            place = len(kept_sets)
            signatures[place] = signature
            kept_sets.append(shingles)
            kept_numbers.append(number)
            for band, key in enumerate(keys):
                buckets[band][key].append(place)
    return found


def near_duplicate_candidates(
    count: int, read: Callable[[Sequence[int]], list[str]], config: MinHashConfig
) -> np.ndarray:
    """Int64 numbers of the texts that share a band of their signatures with another text.

    Keeps 8 bytes a band for each text: 256 of them as the config stands.
    """
    numbers, keys = [np.zeros(0, np.int64)], [np.zeros((0, config.bands), np.uint64)]
    for first in range(0, count, _READ):
        some = range(first, min(first + _READ, count))
        for start, texts in batches(read(some)):
            found = windows(hash_words(texts), config.shingle_words, short=True)
            filled = np.flatnonzero(np.diff(found.offsets))
            rows = _signatures(found.hashes, found.offsets[np.append(filled, len(texts))], config)
            keys.append(_band_keys(rows, config.bands))
            numbers.append(first + start + filled)
    all_keys = np.concatenate(keys)
    shared = np.zeros(len(all_keys), np.bool_)
    for band in range(config.bands):
        own = np.ascontiguousarray(all_keys[:, band])
        ordered = np.sort(own)
        shared |= np.isin(own, ordered[1:][ordered[1:] == ordered[:-1]])
    return np.concatenate(numbers)[shared]


def _band_keys(rows: np.ndarray, bands: int) -> np.ndarray:
    """Uint64 [texts, bands]: a hash of each band's part of a signature."""
    parts = rows.reshape(len(rows), bands, -1)
    if parts.shape[2] % 2 == 0:
        parts = parts.view(np.uint64)  # two values at a time
    keys = parts[:, :, 0].astype(np.uint64)
    for number in range(1, parts.shape[2]):
        keys = (keys ^ (keys >> np.uint64(29))) * _ODD + parts[:, :, number]
    return keys


def _shingled(
    numbers: np.ndarray, read: Callable[[Sequence[int]], list[str]], config: MinHashConfig
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Number, shingles (sorted, each once) and signature of each text."""
    for first in range(0, len(numbers), _READ):
        some = numbers[first : first + _READ].tolist()
        for start, texts in batches(read(some)):
            found = windows(hash_words(texts), config.shingle_words, short=True)
            rows = _signatures(found.hashes, found.offsets, config)
            for place in range(len(texts)):
                own = found.hashes[found.offsets[place] : found.offsets[place + 1]]
                yield some[start + place], np.unique(own), rows[place]


def _signatures(hashes: np.ndarray, offsets: np.ndarray, config: MinHashConfig) -> np.ndarray:
    """Uint32 [texts, permutations], by rensa."""
    said = "near_duplicates needs the package rensa, which is not installed: install the extra "
    said += "`synthesis`, or take near_duplicates out of `gates`."
    sketch = optional("rensa", UserError(said, key="gates"))
    matrix = sketch.RMinHash.digest_matrix_from_flat_token_hashes(
        hashes, offsets.astype(np.uint64), config.permutations, config.seed
    )
    values = chain.from_iterable(matrix.to_rows())
    count = (len(offsets) - 1) * config.permutations
    return np.fromiter(values, np.uint32, count).reshape(-1, config.permutations)


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


class ExactGate(Gate):
    """Lets the first record of each key pass."""

    def __init__(self, key: ExactKey) -> None:
        self.name = "exact_text" if key == "text" else "first_sentences"
        self._seen = ExactDuplicates(key)

    def check(self, records: Sequence[Record]) -> list[Reason | None]:
        verdicts: list[Reason | None] = []
        for record in records:
            first = self._seen.add(record.id, record.text)
            verdicts.append(
                None if first is None else Reason("duplicate", f"repeats the record {first!r}")
            )
        return verdicts


class NearDuplicateGate(Gate):
    """Lets the first record of each group of near-duplicates pass."""

    name = "near_duplicates"
    needs_corpus = True

    def __init__(self, config: MinHashConfig) -> None:
        self._config = config
        self._found: dict[int, Reason] = {}
        self._checked = 0

    def prepare(self, corpus: Records) -> None:
        def read(numbers: Sequence[int]) -> list[str]:
            return [record.text for record in corpus.read(numbers)]

        twins = sorted(find_near_duplicates(len(corpus), read, self._config), key=lambda t: t.of)
        for start in range(0, len(twins), _READ):
            some = twins[start : start + _READ]
            for twin, first in zip(some, corpus.read([twin.of for twin in some]), strict=True):
                detail = f"similarity {twin.similarity:.3f} to the record {first.id!r}"
                self._found[twin.number] = Reason("near_duplicate", detail)

    def check(self, records: Sequence[Record]) -> list[Reason | None]:
        numbers = range(self._checked, self._checked + len(records))
        self._checked += len(records)
        return [self._found.get(number) for number in numbers]
