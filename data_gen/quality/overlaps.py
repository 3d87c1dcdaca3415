"""Overlap in n-grams of words between texts and evaluation examples, exactly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from data_gen.quality.words import HashLookup, batches, hash_words, windows


class OverlapIndex:
    """The n-grams of evaluation examples; every one of a text is found, and compared as words."""

    def __init__(self, examples: Sequence[str], ngram: int) -> None:
        self.ngram = ngram
        self._words = hash_words(examples)
        found = windows(self._words, ngram)
        self._places = found.places
        self._examples = np.repeat(np.arange(len(examples)), np.diff(found.offsets))
        self._lookup = HashLookup(found.hashes)
        self._texts: dict[int, bytes] = {}
        self.tokens = self._words.counts
        """Int64 [examples]: words of each example."""

    def find(self, texts: Sequence[str]) -> Iterator[tuple[int, dict[int, set[int]]]]:
        """Number of each text that shares an n-gram, and the first words of the shared n-grams
        by number of the example."""
        for first, some in batches(texts):
            words = hash_words(some)
            found = windows(words, self.ngram)
            shared: dict[int, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
            for window, numbers in self._lookup.find(found.hashes):
                own = words.text(int(found.places[window]), self.ngram)
                text = int(np.searchsorted(found.offsets, window, side="right")) - 1
                for number in numbers.tolist():
                    if self.text(number) == own:
                        example = int(self._examples[number])
                        place = int(self._places[number] - self._words.offsets[example])
                        shared[text][example].add(place)
            for text in sorted(shared):
                yield first + text, shared[text]

    def text(self, number: int) -> bytes:
        """The words of an n-gram of the examples, by its number in the index."""
        if number not in self._texts:
            self._texts[number] = self._words.text(int(self._places[number]), self.ngram)
        return self._texts[number]

    def words_at(self, example: int, place: int) -> str:
        """The n-gram of an example that begins at its word number `place`."""
        return self._words.text(int(self._words.offsets[example]) + place, self.ngram).decode()

    def covered(self, places: set[int]) -> int:
        """How many words lie in n-grams that begin at these words."""
        total, end = 0, -1
        for place in sorted(places):
            total += place + self.ngram - max(place, end)
            end = place + self.ngram
        return total
