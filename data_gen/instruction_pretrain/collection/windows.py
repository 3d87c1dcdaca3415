"""Windows of long texts: a paper is longer than a sequence of tuning, a question asks of a page."""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Sequence

# Sequences of tuning hold 4,096 tokens (Table 8) and several examples each, so that a synthesizer
# learns from shots; a text of twice a window stays whole.
WINDOW_WORDS = 800
_WHOLE_WORDS = 2 * WINDOW_WORDS
_STEP_WORDS = WINDOW_WORDS // 2  # each window shares a half with the next: answers lie well within
_NEAR_CHARACTERS = 1000  # tables and transcripts have no sentences
_SENTENCE_END = re.compile(r"(?:(?<=[.!?])[\"')\]]*\s+)|\n\s*")


def window(text: str, start: int, end: int) -> str:
    """The part of a long text that holds the characters from `start` to `end`; a short one whole.

    Of all windows of a text the one whose middle is nearest, so that questions whose answers lie
    near each other have the same; it begins and ends where a sentence does, if one is near.
    """
    windows = _windows(text)
    if not windows:
        return text
    middle = (start + end) / 2
    begin, stop = min(windows, key=lambda one: abs((one[0] + one[1]) / 2 - middle))
    if start < begin or end > stop:  # an answer of pages: a window of its own
        cuts = _cuts(text)
        begin, stop = min(begin, _before(cuts, start)), max(stop, _after(cuts, end))
    return text[begin:stop].strip()


@functools.lru_cache(maxsize=2)
def _windows(text: str) -> list[tuple[int, int]]:
    words = [found.start() for found in re.finditer(r"\S+", text)]
    if len(words) <= _WHOLE_WORDS:
        return []
    cuts = _cuts(text)
    found = []
    most = len(words) - WINDOW_WORDS
    for first in (*range(0, most, _STEP_WORDS), most):
        last = first + WINDOW_WORDS
        end = words[last] if last < len(words) else len(text)
        found.append((_before(cuts, words[first]), _after(cuts, end)))
    return found


@functools.lru_cache(maxsize=2)
def _cuts(text: str) -> list[int]:
    return [0, *(found.end() for found in _SENTENCE_END.finditer(text)), len(text)]


def _before(cuts: Sequence[int], place: int) -> int:
    cut = cuts[bisect.bisect_right(cuts, place) - 1]
    return cut if place - cut <= _NEAR_CHARACTERS else place


def _after(cuts: Sequence[int], place: int) -> int:
    cut = cuts[bisect.bisect_left(cuts, place)]
    return cut if cut - place <= _NEAR_CHARACTERS else place
