"""What the rules of Cheng et al. (2023, arXiv 2309.09530, tables 2, 3 and 9) find in a text.

Connectors and lengths are those of the paper and the released code. Where their regular expressions
take a piece of a sentence for a whole one, ours look at whole sentences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from data_gen.baselines.sentences import Sentence

_SHORTEST, _LONGEST = 50, 600  # characters of a sentence; the paper has the first
_SHORTEST_HALF = 20  # of a part of one
_SHORTEST_TERM = 10  # of what is defined

_THEREFORE = ("Therefore", "Thus", "Accordingly", "Hence", "For this reason")
_HOWEVER = ("No", "However", "But", "On the contrary", "In contrast", "Whereas")
_MOREOVER = ("Maybe", "Furthermore", "Additionally", "Moreover", "In addition", "Also", "Secondly")
_SIMILARLY = ("Similarly", "Equally", "In other words", "Namely", "That is to say")


@dataclass(frozen=True)
class MinedTask:
    """Something mined."""

    type: str
    """`nli`, `common_reason`, `paraphrase`, `word_to_text`, `summarization`, `completion`."""
    sub: str
    """Sub-category: `entail`, …; at most so many of each are used."""
    slots: Mapping[str, str]
    """What fills its instruction."""


def mine(sentences: Sequence[Sentence]) -> list[MinedTask]:
    """Every task of a text that its connectors show, in order of types."""
    good = [is_whole(sentence.text) for sentence in sentences]
    pairs = [
        (one.text, two.text)
        for (one, one_good), (two, two_good) in pairwise(zip(sentences, good, strict=True))
        if one_good and two_good and one.paragraph == two.paragraph
    ]
    whole = [sentence.text for sentence, fine in zip(sentences, good, strict=True) if fine]
    found: list[MinedTask] = []
    for first, second in pairs:
        found += _of_pair(first, second)
    for sentence in whole:
        for rule in _OF_SENTENCE:
            found += rule(sentence)
    return found


_GLUED = re.compile(r"[a-z][.!?][A-Z]")  # two sentences whose space was lost


def is_whole(sentence: str) -> bool:
    """Whether this is a statement in words: no question, heading, formula or torn quotation."""
    if not _SHORTEST <= len(sentence) <= _LONGEST or not sentence.endswith((".", '."', ".)")):
        return False
    if not (sentence[0].isupper() or sentence[0].isdigit()) or "\\" in sentence or "$" in sentence:
        return False
    if (
        _GLUED.search(sentence)
        or sentence.count("(") != sentence.count(")")
        or sentence.count('"') % 2
    ):
        return False
    return sum(map(str.isalpha, sentence)) + sentence.count(" ") >= 0.8 * len(sentence)


def _opened_by(connectors: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"({'|'.join(connectors)})\s*,\s+(.+)", re.IGNORECASE)


_PAIR_RULES = (
    # type, sub-category, pattern, names of the two sentences, may they hold commas
    ("nli", "entail", _opened_by(("Yes", *_THEREFORE)), ("premise", "hypothesis"), False),
    ("nli", "contradict", _opened_by(_HOWEVER), ("premise", "hypothesis"), False),
    ("nli", "neutral", _opened_by(_MOREOVER), ("premise", "hypothesis"), False),
    ("common_reason", "cause_effect", _opened_by(_THEREFORE), ("cause", "effect"), False),
    ("paraphrase", "similar", _opened_by(_SIMILARLY), ("first", "second"), True),
    ("paraphrase", "different", _opened_by(_HOWEVER), ("first", "second"), True),
)


def _of_pair(first: str, second: str) -> Iterator[MinedTask]:
    for type_, sub, pattern, (name, other), commas in _PAIR_RULES:
        match = pattern.match(second)
        if match is None or len(match[2]) < _SHORTEST:
            continue
        if not commas and ("," in first or "," in match[2]):
            continue
        slots = {name: first, other: _capital(match[2]), "connector": match[1].capitalize()}
        yield MinedTask(type_, sub, slots)


_BECAUSE = re.compile(r"\s(due to|on account of|owing to)\s(the fact that\s)?", re.IGNORECASE)
# "…, which was probably due to": what hangs before the connector belongs to neither side.
_HANGING = re.compile(
    r"(?:,|\s(?:is|are|was|were|been|may|might|could|can|must|will|would|has|have|had|most|perhaps|"
    r"likely|often|in part|at least|also|(?:main|most|large|primari|part|partial|probab|possib|"
    r"chief|sole|simp|entire|general|usual|common|direct|apparent|clear)ly))+$"
)
_COPULA = re.compile(r"\b(?:is|are|was|were|been)\b")
_NOT = re.compile(r"\bnot\b|n't\b|\bunlikely\b")
_REFUSED = re.compile(
    r"(?:^|\s)(?:be|not|and|or|but|nor|than|if|that|which|who|only|rather|as|either|whether|it|this|"
    r"they|payable|payments?|amounts?|debts?|sums?|money)$",
    re.IGNORECASE,
)
# "is due to report": without one of these before the cause it may be an appointment.
_NOUN_AHEAD = re.compile(
    r"(?:an?|the|its|their|his|her|our|this|these|those|some|any|more|less|lower|higher|increas\w+|"
    r"decreas\w+|reduc\w+|poor|lack|changes|differences|\w+(?:ed|al|ic|ous|ive|tion|ity|ness|ment))"
    r"\b",
    re.IGNORECASE,
)
_VERB_AHEAD = re.compile(
    r"(?:arrive|be|become|begin|close|come|complete|end|expire|finish|get|give|go|have|hold|hear|"
    r"leave|make|mature|meet|open|pay|receive|report|retire|return|run|sign|start|take|vote)\b",
    re.IGNORECASE,
)
# "costs due to low rates are likely to fall": what follows is the main clause, not the cause.
_GOES_ON = re.compile(
    r"\b(?:is|are|was|were|has|have|had|will|would|can|could|may|might|must|should|do|does|did|but)\b"
)
_RELATIVE = re.compile(r"\b(?:that|which|who|where|when|while|because|as|since|than|if)\b")
_SAID = re.compile(r" (?:that|said|says|say) ")
_LEADING = re.compile(r"(?:Thus|Hence|Therefore|However|But|And|So|Also|Moreover),?\s+")


def _effect_cause(sentence: str) -> Iterator[MinedTask]:
    """EFFECT due to CAUSE, both in one sentence."""
    matches = list(_BECAUSE.finditer(sentence))
    if len(matches) != 1:
        return
    (match,) = matches
    before, cause = sentence[: match.start()], sentence[match.end() :]
    effect = _LEADING.sub("", _HANGING.sub("", before), count=1)
    own = "" if match[2] else _RELATIVE.split(cause, maxsplit=1)[0]
    if _VERB_AHEAD.match(cause) or _GOES_ON.search(own) or _REFUSED.search(effect):
        return
    if _COPULA.search(before[len(_HANGING.sub("", before)) :]):
        # The effect is a noun phrase: of "he said the rise was due to" only "the rise".
        effect = _SAID.split(effect)[-1]
        if _NOT.search(before) or _GOES_ON.search(effect) or not _NOUN_AHEAD.match(cause):
            return
    if min(len(effect), len(cause)) < _SHORTEST_HALF or re.search(r"[,;:]", effect + cause):
        return
    if effect.count("(") != effect.count(")"):
        return
    slots = {"effect": f"{_capital(effect)}.", "cause": _capital(cause)}
    yield MinedTask("common_reason", "effect_cause", slots)


_DEFINED = re.compile(
    r"(?:(?:The|An?)\s+)?([^.!?,;:\"]+?)(?: is defined as|['’]s definition is) (.+)"
)
_NOT_DEFINED = re.compile(r"(?:it|this|that|which|here|where|these)\b", re.IGNORECASE)


def _definition(sentence: str) -> Iterator[MinedTask]:
    """TERM is defined as DEFINITION, the term at the beginning."""
    match = _DEFINED.match(sentence)
    if match is None or len(match[2]) < _SHORTEST_HALF or _NOT_DEFINED.match(match[1]):
        return
    if len(match[1]) >= _SHORTEST_TERM and len(match[1].split()) <= 5:
        yield MinedTask(
            "word_to_text", "definition", {"term": match[1], "definition": _capital(match[2])}
        )


_ABOUT = re.compile(r"([^.!?,;:]+?)(?: (talks about|is about|was about)|['’]s topic is) (.+)")
# "is about to", "is about 400 years older", "is about the size of", "was about a foot high".
_NO_TOPIC = re.compile(
    r"(?:to|as|half|twice|equal|time|one|two|three|four|five|six|seven|eight|nine|ten|twelve|"
    r"\w+teen|twenty|thirty|forty|fifty|sixty|hundreds?|thousands?|an? (?:\w+ )?(?:foot|mile|yard|"
    r"year|month|week|day|hour|minute|quarter|third|half|hundred|thousand|million|dozen|tenth)|"
    r"the (?:same|size|only|average|best|worst|last|height|length|age)|[\d$£€~].*|"
    r"(?:ninety|eighty|seventy).*)\b",
    re.IGNORECASE,
)

# "he was about …", "held preliminary talks about …".
_NO_SUBJECT = re.compile(
    r"\b(?:I|you|he|she|it|we|they|who|which|this|that|there)(?: \w+ly)?$|"
    r"\b(?:hold|held|had|have|in|of|for|any|the|no|some|further|more|new|preliminary|exploratory|informal|formal|peace|trade|"
    r"merger|takeover|begin|began|start|started|resume|resumed)$",
    re.IGNORECASE,
)


def _topic(sentence: str) -> Iterator[MinedTask]:
    """SUBJECT is about TOPIC."""
    match = _ABOUT.match(sentence)
    if match is None or min(len(match[1]), len(match[3])) < _SHORTEST_HALF:
        return
    if re.search(r"\b(?:but|and did)\b", match[3]) or _NO_SUBJECT.search(match[1]):
        return
    if not _NO_TOPIC.match(match[3]):
        yield MinedTask(
            "summarization", "topic", {"subject": match[1], "topic": _capital(match[3])}
        )


_OF_SENTENCE: tuple[Callable[[str], Iterator[MinedTask]], ...] = (
    _effect_cause,
    _definition,
    _topic,
)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
