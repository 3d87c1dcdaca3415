"""F1 of the words that two texts share, as SQuAD's official evaluation counts it.

Rajpurkar et al. (2016), section 5: bags of words, without case, punctuation and articles. The
paper says "F1 similarity" and no more (section 5.1); there is one gold answer to each question.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words_of(text: str) -> list[str]:
    """Lower case, then without ASCII punctuation, then without articles, split at white space."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def token_f1(predicted: str, gold: str) -> float:
    """Between 0 and 1. Where one side holds no word, 1 if the other holds none either."""
    found, wanted = Counter(words_of(predicted)), Counter(words_of(gold))
    if not found or not wanted:
        return float(found == wanted)
    common = (found & wanted).total()
    # 2PR / (P + R) with P = common / found and R = common / wanted.
    return 2 * common / (found.total() + wanted.total())


def mean(values: Iterable[float]) -> float | None:
    """None of nothing: what was not measured is no zero."""
    kept = list(values)
    return sum(kept) / len(kept) if kept else None
