"""Templates and pairs by rules, for where there is no model: what a student has to be better than.

FineInstructions, sections 3.1 and 3.3, as `form: rules` of fi_templates and fi_instantiate. What
comes of it passes the gates that hold for a model's replies.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import NamedTuple

from data_gen.baselines.sentences import Sentence, split_sentences
from data_gen.fine_instructions.templates import Template

_CHUNKS = 5  # of the paper's encoder: the k-th is round k/6 of the document (section 3.2)
_MOST_SPANS, _MOST_SENTENCES, _MOST_CHARACTERS = 6, 3, 600
_ENDS_WORDS = 6  # that name the beginning and the end of an excerpt
_TAG = re.compile(r"<fi>(.*?)</fi>", re.DOTALL)
_FUNCTION = frozenset(
    "a about above after again all also am among an and any are as at be because been before being "
    "best between both but by can could did do does doing done during each every few find for from "
    "get give had happens has have having he help her here him his how i if in into is it its just "
    "kind like list long make many may me might more most much must my near need no nor not of off "
    "on only or other our out over own please same she should show so some such tell than that the "
    "their them then there these they this those through to too under until up us use using very "
    "versus want was we were what when where which while who whom whose why will with within "
    "without would write you your".split()
)
_WORD = rf"(?!(?:{'|'.join(sorted(_FUNCTION))})\b)[^\W\d_][\w’'-]*"
_PHRASE = rf"{_WORD}(?: {_WORD}){{0,3}}"
# What follows a preposition is described by it.
_AFTER = {
    **dict.fromkeys(("of", "about", "on", "into"), "subject"),
    **dict.fromkeys(("in", "at"), "place, field or time"),
    **dict.fromkeys(("for", "by"), "person, purpose or thing"),
    **dict.fromkeys(("with", "without", "using"), "thing or condition that comes with it"),
    **dict.fromkeys(("between", "against", "than", "from"), "thing to be compared or told apart"),
}
_MONTH = "(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"


@dataclass(frozen=True)
class _Kind:
    """Spans that belong to one text alone."""

    described: str
    """Within the tag that takes their place; empty: as `_AFTER` says."""
    asked_by: str
    """Words of a tag's description that ask for them."""
    pattern: re.Pattern[str]
    """The group `own` is the span, where it has one."""


_KINDS = (
    _Kind(
        "quoted text or code",
        r"quot|code|text|sentence|passage",
        re.compile(r"```.+?```|\"[^\"\n]{2,}\"|“[^”\n]{2,}”", re.DOTALL),
    ),
    _Kind("web address", r"\burl|link|web", re.compile(r"https?://[^\s<>\"]*\w")),
    _Kind(
        "date or year",
        r"date|year|month|\bday|\btime|period|century|decade",
        re.compile(
            rf"\b{_MONTH} \d{{1,2}}\b(?:,? \d{{4}}\b)?|\b(?:\d{{1,2}} )?{_MONTH} \d{{4}}\b|"
            r"\b(?:1\d|20)\d\d\b",
            re.IGNORECASE,
        ),
    ),
    _Kind(
        "number or amount",
        r"number|amount|quantit|price|\bage\b|size|percent|count|how many|length|distance",
        re.compile(r"[$€£]?\b\d(?:[\d,.]*\d)?\b%?"),
    ),
    _Kind(
        "name of a person, place or thing",
        r"name|person|people|city|town|country|place|location|company|organi[sz]ation|product|"
        r"brand|book|title|film|author|language|entity|team|character",
        # Behind a word of the same sentence: at its start every word is written so.
        re.compile(r"(?<=[\w,] )(?!I\b)[A-Z][\w’'-]*(?: (?:of |the )?[A-Z][\w’'-]*)*"),
    ),
    _Kind(
        "",
        "",
        re.compile(
            rf"\b(?P<before>{'|'.join(_AFTER)}) "
            r"(?:(?:the|a|an|my|your|our|his|her|their|its|this|these) )?"
            rf"(?P<own>{_PHRASE})",
            re.IGNORECASE,
        ),
    ),
)
_SUBJECT = len(_KINDS) - 1


class Span(NamedTuple):
    """A piece of a text that belongs to it alone."""

    start: int
    end: int
    kind: int
    """Its number among the kinds."""
    described: str
    """Within the tag that takes its place."""


def find_spans(text: str) -> list[Span]:
    """All spans in order, none over another: what more than one kind claims is the first's."""
    found: list[Span] = []
    for number, kind in enumerate(_KINDS):
        for match in kind.pattern.finditer(text):
            start, end = match.span("own" if number == _SUBJECT else 0)
            if all(end <= one.start or one.end <= start for one in found):
                described = kind.described or _AFTER[match["before"].lower()]
                found.append(Span(start, end, number, described))
    return sorted(found)


def template_by_rules(query: str) -> Template:
    """The query with names, numbers, dates, quotations and what follows a preposition left open, or
    where it has none of them its last words; without a tag where that is all of it."""
    query = query.strip()
    spans = find_spans(query)[:_MOST_SPANS]
    last = re.search(rf"(?<=\s){_PHRASE}(?=[\s.?!]*\Z)", query, re.IGNORECASE)
    if not spans and last is not None:
        spans = [Span(*last.span(), _SUBJECT, "subject")]
    parts, place = list[str](), 0
    for one in spans:
        parts += [query[place : one.start], f"<fi>{one.described}</fi>"]
        place = one.end
    parts.append(query[place:])
    kinds = ", ".join(dict.fromkeys(f"a {one.described}" for one in spans))
    words = " ".join(_content(" ".join(parts[::2])))
    documents = f"A text that speaks of {kinds} in such detail that it answers: {words or query}"
    return Template("".join(parts), documents)


def reply_by_rules(document: str, template: str, chunk: int) -> str:
    """What a tuned instantiator would write: the sentences of the document, or of its chunk, that
    share most words with the template, tags filled in with spans near them; null where it shares
    none of several, or nothing is there to fill in."""
    sentences = split_sentences(document)
    kept, described = _TAG.split(template)[::2], _TAG.findall(template)
    wanted = set(_content(" ".join(kept)))
    near = [one for one in sentences if _of_chunk(one, chunk, len(document))] or sentences
    shared = [len(wanted.intersection(_content(one.text))) for one in near]
    if not near or (len(wanted) > 1 and not any(shared)):
        return "null"
    first = shared.index(max(shared))
    answer = _follow(near[first:])
    around = " ".join(one.text for one in near)
    spans = [(text[s.start : s.end], s.kind) for text in (answer, around) for s in find_spans(text)]
    filled: dict[str, str] = {}
    for one in dict.fromkeys(described):
        kinds = [n for n, k in enumerate(_KINDS) if k.asked_by and re.search(k.asked_by, one, re.I)]
        free = [span for span in spans if span[0] not in filled.values()]
        if not free:
            return "null"
        # Of a kind that is asked for, else a subject, else anything; those of the answer first.
        filled[one] = min(free, key=lambda span: (span[1] not in kinds, span[1] != _SUBJECT))[0]
    instruction = _TAG.sub(lambda tag: filled[tag[1]], template)
    words = answer.split()
    if len(words) > 2 * _ENDS_WORDS:
        ends = words[:_ENDS_WORDS], words[-_ENDS_WORDS:]
        answer = "<...>".join(map(" ".join, ends))
    content = {"instruction": instruction, "answer": f"<excerpt>{answer}</excerpt>"}
    return json.dumps(content, ensure_ascii=False)


def _content(text: str) -> list[str]:
    """Words that say what a text is of, once each, in lower case and without a plural's s."""
    words = [one for one in re.findall(r"[^\W_]{3,}", text.lower()) if one not in _FUNCTION]
    return list(dict.fromkeys(re.sub(r"(?<=[^\Wsui])s\Z", "", one) for one in words))


def _of_chunk(sentence: Sentence, chunk: int, characters: int) -> bool:
    place = (sentence.start + len(sentence.text) / 2) / characters
    return not chunk or abs(place - chunk / (_CHUNKS + 1)) <= 0.5 / (_CHUNKS + 1)


def _follow(sentences: list[Sentence]) -> str:
    """The first sentence with those that follow it in its paragraph, as far as an answer goes."""
    text = sentences[0].text
    for one in sentences[1:_MOST_SENTENCES]:
        if one.paragraph != sentences[0].paragraph or len(text) + len(one.text) > _MOST_CHARACTERS:
            break
        text = f"{text} {one.text}"
    return text
