"""Excerpts: what an answer copies from its document, named by its beginning and end.

A model writes `<excerpt>beginning<...>end</excerpt>`, or a short quotation whole, and the document
gives the rest (FineInstructions, section 3.3): answers stay grounded, and few tokens are generated.
"""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

LEAST_SHARE = 0.80
"""Of an answer's characters, as many are copied at least (section 3.3)."""
_TAG = re.compile(r"</?excerpt>|<\.\.\.>|</?fi>")
_EDGE = re.compile(r"(</?excerpt>)")
_SPACE_WITHIN = re.compile(r"(<excerpt>)(\s+)|(\s+)(</excerpt>)")
# What normalisation may change: white space, and characters outside of ASCII.
_VARIABLE = re.compile(r"\s+|[^\x00-\x7f\s]+")
_PLAIN = str.maketrans("‘’‚‛“”„‟‐‑‒–—−", "''''\"\"\"\"------")


class ExcerptError(ValueError):
    """An answer whose excerpts are not the document's.

    `reason` is a word for counts: unclosed, nested, ellipsis, empty, tag, missing, order, overlap.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Expansion:
    """A text with its excerpts filled in."""

    text: str
    """Without tags."""
    copied: tuple[tuple[int, int], ...]
    """First character and end of each excerpt in `text`."""
    places: tuple[tuple[int, int], ...]
    """The same in the document."""

    @property
    def share(self) -> float:
        """Characters of `text` that are copied, of all; 0 of an empty text."""
        return sum(end - start for start, end in self.copied) / max(1, len(self.text))


class Source:
    """A document that texts quote. Searches are linear in its length."""

    def __init__(self, document: str):
        self.document = document

    def expand(self, text: str) -> Expansion:
        """Fill the excerpts of an instruction or an answer in.

        A beginning and its end are looked for as they stand; if either is not there, once more
        without regard to runs of white space, Unicode's compatibility forms, kinds of quotation
        marks and dashes, and a full stop that the document does not have. Of several places the
        pair of ends that are nearest to each other counts, of equally near ones the first.

        Raises:
          ExcerptError: see there for the reasons.
        """
        parts: list[str] = []
        copied: list[tuple[int, int]] = []
        places: list[tuple[int, int]] = []
        length = 0

        def add(part: str) -> None:
            nonlocal length
            parts.append(part)
            length += len(part)

        for inside, part in _parts(_SPACE_WITHIN.sub(r"\2\1\4\3", text)):
            if not inside:
                add(part)
                continue
            start, end, stop = self.find(part)
            copied.append((length, length + end - start))
            places.append((start, end))
            add(self.document[start:end])
            add(stop)
        for (_, end), (start, _) in pairwise(sorted(places)):
            if start < end:
                raise ExcerptError("overlap", f"two excerpts share {self.document[start:end]!r}")
        whole = "".join(parts)
        if left := _TAG.search(whole):
            raise ExcerptError("tag", f"{left[0]} is left in the text")
        return Expansion(whole, tuple(copied), tuple(places))

    def find(self, quotation: str) -> tuple[int, int, str]:
        """Where a quotation stands: first character, end, and a full stop to be added, or none.

        Raises:
          ExcerptError: ellipsis, empty, missing, order.
        """
        first, *rest = (part.strip() for part in quotation.split("<...>"))
        if len(rest) > 1:
            raise ExcerptError("ellipsis", f"more than one <...> in {quotation!r}")
        if not first or not all(rest):
            raise ExcerptError("empty", f"no beginning or no end in {quotation!r}")
        last = rest[0] if rest else None
        if found := _nearest(self.document, first, last):
            return *found, ""
        flat = self._flat
        first, last = _Flat(first).text, None if last is None else _Flat(last).text
        stop = ""
        final = first if last is None else last
        if final[-1] == "." and final.rstrip(".") and not _stands(flat.text, final):
            final, stop = final.rstrip("."), "."
            first, last = (final, None) if last is None else (first, final)
        if found := _nearest(flat.text, first, last):
            return flat.place(found[0]), flat.place(found[1] - 1) + 1, stop
        for needle in (first, last):
            if needle is not None and not _stands(flat.text, needle):
                raise ExcerptError("missing", f"{needle!r} is not in the document")
        raise ExcerptError("order", f"its end stands nowhere behind its beginning: {quotation!r}")

    @cached_property
    def _flat(self) -> _Flat:
        return _Flat(self.document)


def expand(text: str, document: str) -> str:
    """`text` with its excerpts filled in from `document`; see `Source.expand`."""
    return Source(document).expand(text).text


def excerpt_share(answer: str, document: str) -> float:
    """The share of an answer's characters that its excerpts copy; see `Source.expand`."""
    return Source(document).expand(answer).share


def _parts(text: str) -> Iterator[tuple[bool, str]]:
    """The text between tags, and whether it is an excerpt."""
    inside = False
    for number, part in enumerate(_EDGE.split(text)):
        if number % 2:
            if inside == (part == "<excerpt>"):
                reason = "nested" if inside else "unclosed"
                raise ExcerptError(reason, f"{part} {'within' if inside else 'without'} an excerpt")
            inside = not inside
        else:
            yield inside, part
    if inside:
        raise ExcerptError("unclosed", "an <excerpt> without its </excerpt>")


def _nearest(text: str, first: str, last: str | None) -> tuple[int, int] | None:
    """Of the places where `first` stands before `last`, the shortest, then the first."""
    begins = _places(text, first)
    begin = next(begins, None)
    if begin is None or last is None:
        return None if begin is None else (begin, begin + len(first))
    following, best = next(begins, None), None
    for end in _places(text, last):
        while following is not None and following + len(first) <= end:
            begin, following = following, next(begins, None)
        if begin + len(first) <= end and (best is None or end - begin < best[1] - best[0]):
            best = begin, end
    return None if best is None else (best[0], best[1] + len(last))


def _places(text: str, needle: str) -> Iterator[int]:
    """Where `needle` stands and cuts no word, each behind the one before."""
    place = text.find(needle)
    while place >= 0:
        end = place + len(needle)
        if not (_within_word(text, place) or _within_word(text, end)):
            yield place
        place = text.find(needle, end)


def _stands(text: str, needle: str) -> bool:
    return next(_places(text, needle), None) is not None


def _within_word(text: str, place: int) -> bool:
    """Whether a cut here parts a word; scripts past the Armenian may write without spaces."""
    around = text[place - 1 : place + 1] if place else ""
    return len(around) == 2 and around.isalnum() and max(around) < "\u0590"


class _Flat:
    """A text with one space for white space, in compatibility form, quotes and dashes plain.

    And where its characters came from.
    """

    def __init__(self, text: str):
        parts: list[str] = []
        self._flat, self._there = [0], [0]  # where the distance between both changes
        length = done = 0
        for match in _VARIABLE.finditer(text):
            parts.append(text[done : match.start()])
            length += match.start() - done
            done = match.end()
            for start, piece in _pieces(match[0]):
                flat = unicodedata.normalize("NFKD", piece).translate(_PLAIN)
                flat = " " if piece[0].isspace() else flat
                parts.append(flat)
                if len(flat) != len(piece):
                    self._flat += (length, length + len(flat))
                    self._there += (match.start() + start, match.start() + start + len(piece))
                length += len(flat)
        parts.append(text[done:])
        self.text = "".join(parts)
        self._there.append(len(text) + 1)

    def place(self, flat: int) -> int:
        """The character that became this one."""
        near = bisect.bisect_right(self._flat, flat) - 1
        place = self._there[near] + flat - self._flat[near]
        return min(place, self._there[near + 1] - 1)  # of one that became several


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """A run of white space or of characters outside of ASCII, in parts that do not interact."""
    if text[0].isspace() or unicodedata.is_normalized("NFKD", text):
        yield 0, text
        return
    start = 0
    for place in range(1, len(text) + 1):
        # A mark belongs to the character before it: their order is normalised together.
        if place == len(text) or not unicodedata.combining(text[place]):
            yield start, text[start:place]
            start = place
