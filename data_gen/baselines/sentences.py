"""Sentences of a text with their places, and the title that some texts carry in their first line.

A rule that reads `[^.!?]+` for a sentence cuts at "0.05" and "Dr."; what is mined then begins in
the middle of a sentence. So sentences are found first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

# Followed by a capital letter these are still no end. "Inc.", "etc." and "p.m." are left out: a
# capital letter after them begins a sentence more often than not.
_ABBREVIATIONS = frozenset(
    "mr mrs ms messrs dr drs prof st mt sen rep gov gen col capt lt sgt hon rev jr vs cf ca al fig "
    "figs eq eqs ref refs sec ch vol approx e.g i.e u.s u.k u.n n.z".split()
)
_BEFORE_NUMBERS = frozenset(
    "no nos p pp art jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
_END = re.compile(r"""[.!?]+["”’')\]]*(?=\s)""")
_OPENS = re.compile(r"""\s+["“‘'(\[]*(?=[^\W_])""")
_BLANK = re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*)+")
_LONGEST_WRAPPED = 100  # characters: no line of a text that was wrapped at a column is longer
_LONGEST_TITLE = 250  # characters


class Sentence(NamedTuple):
    """A sentence where it stands."""

    text: str
    """In one line, runs of white space as one space."""
    start: int
    """First character in the text."""
    paragraph: int
    """Sentences of one paragraph follow each other without a break."""


def split_sentences(text: str) -> list[Sentence]:
    """All sentences in order; a line without an end mark (a heading) is one too."""
    found: list[Sentence] = []
    for number, (start, end) in enumerate(_paragraphs(text)):
        for first, last in _sentences(text, start, end):
            line = " ".join(text[first:last].split())
            if line:
                lead = len(text[first:last]) - len(text[first:last].lstrip())
                found.append(Sentence(line, first + lead, number))
    return found


def split_title(text: str) -> tuple[str, str]:
    """The first line as the title and the rest, or "" and the whole where it can be none.

    A title is at most two sentences ("Part of a series. II. The rest"), at most 250 characters and
    half as long as the rest. In a text wrapped at a column it is set off: by an empty line, by
    capitals, or by an indent below it.
    """
    first, _, rest = text.strip().partition("\n")
    title = " ".join(first.split())
    if not rest.strip() or len(title) > _LONGEST_TITLE or 2 * len(title) > len(rest.strip()):
        return "", text
    if (
        title.endswith((",", ";", ":", "-"))
        or title[0] in "\"“‘'"
        or not any(map(str.isalpha, title))
    ):
        return "", text
    if _is_wrapped(text):
        below = rest.partition("\n")[0]
        set_off = not below.strip() or first.isupper() or _indent(below) > _indent(first)
        if not set_off:
            return "", text
    if rest.lstrip()[0].islower() or len(split_sentences(title)) > 2:
        return "", text
    return title, rest.strip("\n")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_wrapped(text: str) -> bool:
    lengths = sorted(len(line.strip()) for line in text.splitlines() if line.strip())
    if len(lengths) < 3 or lengths[-1] > _LONGEST_WRAPPED:
        return False
    return lengths[len(lengths) // 2] > 40  # else a list, a poem, a menu


def _paragraphs(text: str) -> Iterator[tuple[int, int]]:
    breaks = _BLANK if _is_wrapped(text) else re.compile(r"\n")
    start = 0
    for found in breaks.finditer(text):
        yield start, found.start()
        start = found.end()
    yield start, len(text)


def _sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    first = start
    for mark in _END.finditer(text, start, end):
        if _ends(text, mark, first, end):
            yield first, mark.end()
            first = mark.end()
    yield first, end


def _ends(text: str, mark: re.Match[str], first: int, end: int) -> bool:
    opens = _OPENS.match(text, mark.end(), end)
    if opens is None:
        return not text[mark.end() : end].strip()
    following = text[opens.end()]
    if following.islower():
        return False
    if mark.group() != ".":
        return True
    words = text[max(first, mark.start() - 40) : mark.start()].rsplit(None, 2)
    last = words[-1].lstrip("(['\"“‘") if words else ""
    if last.lower() in _ABBREVIATIONS and ("." in last or not last.isupper()):
        return False
    if text[first : mark.start()].strip() == last and set(last) <= set("IVX"):
        return False  # "V. Suppressor cells": the number of a part
    if following.isdigit() and last.lower() in _BEFORE_NUMBERS:
        return False
    # An initial is part of a name; "vitamin D." ends a sentence.
    before = words[-2] if len(words) > 1 else ""
    return not (len(last) == 1 and last.isupper() and (not before or before[0].isupper()))
