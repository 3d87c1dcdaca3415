"""Decontamination by substrings: the rule of the GPT-4 report that IPT uses (appendix D)."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_gen.quality.evaluations import EvaluationExample
from data_gen.quality.words import HashLookup, batches, normalised

_DELETED = bytes(byte for byte in range(128) if not chr(byte).isalnum())
_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")
_ANCHOR = 8  # bytes of a pattern that are looked up; the rest is then compared


def alphanumerics(text: str) -> str:
    """Only the letters and digits of the normalised `text`, case kept."""
    text = normalised(text)
    if text.isascii():
        return text.encode().translate(None, _DELETED).decode()
    return _NOT_ALPHANUMERIC.sub("", text)


def draw_substrings(
    example: EvaluationExample, count: int, characters: int, seed: int
) -> list[str]:
    """`count` substrings of the example's letters and digits, the whole where it is shorter.

    They depend on seed, set, id and text of the example alone, not on the examples around it.
    Drawn with replacement, so that two may be the same.
    """
    text = alphanumerics(example.text)
    if len(text) <= characters:
        return [text] if text else []
    key = "\0".join((str(seed), example.set_name, example.id, text))
    digest = hashlib.sha256(key.encode(errors="surrogatepass")).digest()
    draw = np.random.Generator(np.random.Philox(int.from_bytes(digest[:8], "little")))
    starts = draw.integers(0, len(text) - characters + 1, count).tolist()
    return [text[start : start + characters] for start in starts]


class SubstringIndex:
    """Finds every pattern in every text, exactly."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """`patterns`: of letters and digits, none empty; the same one may come twice."""
        self._patterns = [pattern.encode(errors="surrogatepass") for pattern in patterns]
        # Patterns shorter than an anchor are few, and looked for one by one.
        self._short = [n for n, p in enumerate(self._patterns) if len(p) < _ANCHOR]
        self._long = [n for n, p in enumerate(self._patterns) if len(p) >= _ANCHOR]
        # The rarest eight bytes of each, so that few places of a text have to be compared.
        seen = Counter(piece for n in self._long for piece in {*_pieces(self._patterns[n])})
        self._anchors = [
            min(_starts(p), key=lambda at, p=p: (seen[p[at : at + _ANCHOR]], at))
            for p in (self._patterns[n] for n in self._long)
        ]
        anchors = [
            int.from_bytes(self._patterns[n][at : at + _ANCHOR], "little")
            for n, at in zip(self._long, self._anchors, strict=True)
        ]
        self._lookup = HashLookup(np.array(anchors, np.uint64))

    def find(self, texts: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Number of a text and number of a pattern that it contains, each pair once.

        `texts` are given as they are; only their letters and digits are compared.
        """
        for first, some in batches(texts):
            for text, pattern in self._find(some):
                yield first + text, pattern

    def _find(self, texts: Sequence[str]) -> list[tuple[int, int]]:
        pieces = [alphanumerics(text).encode(errors="surrogatepass") for text in texts]
        found: set[tuple[int, int]] = set()
        for number in self._short:
            pattern = self._patterns[number]
            found.update((place, number) for place, p in enumerate(pieces) if pattern in p)
        # No pattern holds the byte 0, so that none is found across two texts.
        joined = b"\0".join(pieces) + bytes(_ANCHOR)
        ends = np.cumsum([len(piece) + 1 for piece in pieces])
        eights: Any = np.ndarray((len(joined) - _ANCHOR + 1,), "<u8", joined, strides=(1,))
        for place, numbers in self._lookup.find(eights):
            for number in numbers.tolist():
                pattern = self._patterns[self._long[number]]
                start = place - self._anchors[number]
                if start >= 0 and joined.startswith(pattern, start):
                    text = int(np.searchsorted(ends, start, side="right"))
                    found.add((text, self._long[number]))
        return sorted(found)


def _starts(pattern: bytes) -> range:
    """Where an anchor may lie: few places are enough to find a rare one."""
    return range(0, len(pattern) - _ANCHOR + 1, _ANCHOR - 1)


def _pieces(pattern: bytes) -> Iterator[bytes]:
    return (pattern[at : at + _ANCHOR] for at in _starts(pattern))
