"""Words of many texts at once, as 64-bit hashes: no Python object for each word.

A word is a run of letters, digits and underscores of the normalised text in lower case: `\\w+`.
Text written without spaces between words (Chinese, Japanese, Thai) gives one word a clause.
"""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_WORD = re.compile(r"\w+")
# Soft hyphens, joiners, marks of direction and byte order, variation selectors: nobody sees them.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)
_OUTSIDE_ASCII = re.compile(r"[^\w\x00-\x7f]+")
# Bytes of UTF-8 to bytes of words: ASCII letters in lower case, all else of ASCII to a space.
_TABLE = bytes(
    byte if byte > 127 or chr(byte).isalnum() or byte == ord("_") else 32
    for byte in bytes(range(256)).lower()
)
_KEEP = np.array([(1 << 8 * length) - 1 for length in range(9)], np.uint64)
_LONGEST = 64  # bytes hashed eight at a time; longer words are rare and hashed one by one
_C1, _C2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_BATCH_BYTES = 1 << 19  # arrays of a batch stay in the processor's cache


def words(text: str) -> list[str]:
    """The words of one text, in order."""
    return _WORD.findall(normalised(text).lower())


def normalised(text: str) -> str:
    """The text as every rule of matching compares it: character references (`&nbsp;`) resolved,
    letters composed (NFKC: no accents apart, ligatures or full-width forms), nothing invisible."""
    if "&" in text:
        text = html.unescape(text)
    return text if text.isascii() else _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))


@dataclass(frozen=True)
class WordHashes:
    """Hashes of the words of a batch of texts, one text after another."""

    hashes: np.ndarray
    """Uint64 [words]; the same word has the same hash in every run and on every machine."""
    offsets: np.ndarray
    """Int64 [texts + 1]: words of text i lie at `offsets[i]:offsets[i + 1]`."""
    starts: np.ndarray
    """Int64 [words]: first byte of each word in `data`."""
    ends: np.ndarray
    """Int64 [words]: byte after each word's last."""
    data: bytes
    """The texts in lower case, everything between words turned to spaces."""

    @property
    def counts(self) -> np.ndarray:
        """Int64 [texts]: words of each text."""
        return np.diff(self.offsets)

    def text(self, first: int, count: int) -> bytes:
        """`count` words from word number `first` on, with one space between."""
        return b" ".join(self.data[self.starts[first] : self.ends[first + count - 1]].split())


@dataclass(frozen=True)
class Windows:
    """Hashes of runs of n words that lie within one text."""

    hashes: np.ndarray
    """Uint64 [windows]."""
    places: np.ndarray
    """Int64 [windows]: number of the window's first word in the batch."""
    offsets: np.ndarray
    """Int64 [texts + 1]: windows of text i lie at `offsets[i]:offsets[i + 1]`."""


def batches(texts: Sequence[str], most: int = _BATCH_BYTES) -> Iterator[tuple[int, Sequence[str]]]:
    """Slices of `texts` of about `most` characters, each with the number of its first text."""
    first = characters = 0
    for number, text in enumerate(texts):
        if number > first and characters + len(text) > most:
            yield first, texts[first:number]
            first, characters = number, 0
        characters += len(text)
    if first < len(texts):
        yield first, texts[first:]


def hash_words(texts: Sequence[str]) -> WordHashes:
    """Hash every word of every text."""
    pieces = [
        text.encode()
        if text.isascii()
        else _OUTSIDE_ASCII.sub(" ", text.lower()).encode(errors="replace")
        for text in map(normalised, texts)
    ]
    ends_of_texts = np.cumsum([0, *(len(piece) + 1 for piece in pieces)], dtype=np.int64)
    data = (b" ".join(pieces) + b" " * 9).translate(_TABLE)
    buffer: Any = np.frombuffer(data, np.uint8)
    inside = (buffer != 32).view(np.int8)
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    if inside[0]:
        edges = np.concatenate([[0], edges])
    starts, ends = edges[::2], edges[1::2]
    lengths = ends - starts
    eights = np.lib.stride_tricks.sliding_window_view(buffer, 8)
    piece = _eight(eights, starts, lengths)
    hashes = _mixed((piece + lengths.astype(np.uint64)) * _C1)
    longer, done = np.flatnonzero((lengths > 8) & (lengths <= _LONGEST)), 8
    while len(longer):
        piece = _eight(eights, starts[longer] + done, lengths[longer] - done)
        hashes[longer] = _mixed((hashes[longer] + piece) * _C1)
        done += 8
        longer = longer[lengths[longer] > done]
    for number in np.flatnonzero(lengths > _LONGEST):
        word = data[starts[number] : ends[number]]
        hashes[number] = int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "little")
    return WordHashes(hashes, np.searchsorted(starts, ends_of_texts), starts, ends, data)


def windows(words: WordHashes, length: int, short: bool = False) -> Windows:
    """Hash every run of `length` words; with `short`, a shorter text as a whole is one window."""
    hashes, counts = words.hashes.copy(), words.counts
    begins = words.offsets[:-1]
    shorter: list[tuple[np.ndarray, np.ndarray]] = []
    for more in range(1, length):
        if short:
            places = begins[counts == more]
            shorter.append((places, hashes[places]))
        hashes[:-more] = hashes[:-more] * _C1 + words.hashes[more:]
    for places, found in shorter:
        hashes[places] = found
    number = np.arange(len(hashes))
    valid = number + length <= np.repeat(words.offsets[1:], counts)
    sizes = np.maximum(counts - length + 1, 0)
    if short:
        few = (counts > 0) & (counts < length)
        valid[begins[few]] = True
        sizes[few] = 1
    places = np.flatnonzero(valid)
    return Windows(_mixed(hashes[places]), places, np.cumsum([0, *sizes], dtype=np.int64))


class HashLookup:
    """Finds which of many hashes are among the known ones; nearly all are not, and cost little."""

    def __init__(self, hashes: np.ndarray) -> None:
        self._order = np.argsort(hashes, kind="stable")
        self._keys, begins = np.unique(hashes[self._order], return_index=True)
        self._begins = np.append(begins, len(hashes))
        bits = min(24, max(12, 6 + len(self._keys).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._filter = np.zeros(1 << bits, np.bool_)
        self._filter[self._bucket(self._keys)] = True

    def _bucket(self, hashes: np.ndarray) -> np.ndarray:
        return ((hashes * _C1) >> self._shift).astype(np.int64)

    def find(self, hashes: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Each place in `hashes` that holds a known one, with the numbers it was given under."""
        if not len(self._keys):
            return
        places = np.flatnonzero(self._filter[self._bucket(hashes)])
        found = np.searchsorted(self._keys, hashes[places])
        found = np.minimum(found, len(self._keys) - 1)
        same = self._keys[found] == hashes[places]
        for place, key in zip(places[same].tolist(), found[same].tolist(), strict=True):
            yield place, self._order[self._begins[key] : self._begins[key + 1]]


def _eight(eights: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Up to eight bytes of each word as an integer, the bytes after its end left out."""
    return eights[starts].view("<u8").ravel() & _KEEP[np.minimum(lengths, 8)]


def _mixed(hashes: np.ndarray) -> np.ndarray:
    hashes = hashes ^ (hashes >> np.uint64(32))
    hashes *= _C2
    return hashes ^ (hashes >> np.uint64(29))
