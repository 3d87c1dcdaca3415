"""Reading comprehension texts by rules: the baseline of Cheng et al. (2023, arXiv 2309.09530).

A text is followed by tasks that its own connectors, words and title give. No model is asked. What
differs from the released code: sentences are found before connectors are looked for, choices are
drawn on their own and not from one seed, and a text that is longer than the tasks leave room for
is cut into several, each with its tasks, so that no part of it is dropped.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data_gen.baselines.domain_words import DomainWords
from data_gen.baselines.instructions import Instructions
from data_gen.baselines.rules import MinedTask, is_whole, mine
from data_gen.baselines.sentences import Sentence, split_sentences, split_title
from ipt_jax.core.seeds import generator_of
from ipt_jax.core.tokenizers import Tokenizer

_LABELS = {
    "entail": {"label": "Yes", "relation": "entailment", "linking": "Therefore"},
    "contradict": {"label": "No", "relation": "contradiction", "linking": "However"},
    "neutral": {"label": "Maybe", "relation": "neutral", "linking": "Moreover"},
}
# Shares of the released code: (asked for the title, cut for completion).
_ARRANGEMENTS = ((True, False), (False, True), (True, True), (False, False))
_WITH_TITLE = (0.4, 0.1, 0.4, 0.1)
_ONE_POSSIBLE = 0.5  # where there is a title or a place to cut, but not both
_GENERATE = 0.2  # of natural language inference: write the second sentence, not the label
_TITLE_FIRST = 0.5  # of titles without completion: the text is to be written for the title


@dataclass(frozen=True)
class Rules:
    """What a text is read with; the same for all texts of a run."""

    domain: str
    """Its name, as the instructions say it: `biomedicine`."""
    words: DomainWords
    """The domain's words."""
    general: Tokenizer
    """Counts tokens."""
    instructions: Instructions
    """Wordings."""
    most_per_sub: int = 2
    """Tasks of one sub-category in a text (section 4)."""
    text_tokens: int = 1800
    """Longest text before its tasks (appendix C)."""
    least_words: int = 3
    """Domain words of a sentence that is used for them (released code)."""
    most_pieces: int = 100
    """Length of such a sentence in pieces of the domain's vocabulary (released code)."""


@dataclass(frozen=True)
class ReadingText:
    """A text with its tasks."""

    text: str
    """"" where there are no tasks."""
    tasks: Counter[str]
    """Tasks by type and sub-category: `nli.entail`."""
    reason: str = ""
    """Why there are no tasks: `nothing_mined`, or `not_drawn` where only a title or a completion
    was possible and the draw left it out."""


def reading_comprehension(
    name: str, text: str, title: str | None, rules: Rules, seed: int
) -> ReadingText:
    """The text of document `name` with its tasks; a pure function of the arguments.

    `title`: None where the first line is to be taken, "" where there is none. Every character of
    the text but white space, and the title, stand in the result once or more.
    """
    body = text
    if title is None:
        title, body = split_title(text)
    title = " ".join(title.split())
    generator = generator_of(seed, "reading_comprehension", name)
    excerpts = _excerpts(body, rules)
    made: list[str] = []
    counts: Counter[str] = Counter()
    possible = False
    for number, (excerpt, sentences) in enumerate(excerpts):
        own = title if number == 0 else ""
        tasks = [*mine(sentences), *_word_tasks(sentences, rules, generator)]
        chosen = _limited(tasks, rules.most_per_sub, generator)
        possible |= bool(chosen or own or len(sentences) > 1)
        written, found = _write(excerpt, sentences, own, chosen, rules, generator)
        made.append(written)
        counts += found
    if not counts:
        return ReadingText("", counts, "not_drawn" if possible else "nothing_mined")
    return ReadingText("\n\n".join(made), counts)


def _excerpts(body: str, rules: Rules) -> list[tuple[str, list[Sentence]]]:
    """The text in pieces of at most `text_tokens` tokens that end with a sentence."""
    sentences = split_sentences(body)
    if len(body) <= rules.text_tokens or len(sentences) < 2:  # no token is less than a character
        return [(body, sentences)]
    borders = [0, *(sentence.start for sentence in sentences[1:]), len(body)]
    slices = [body[start:end] for start, end in pairwise(borders)]
    lengths = [len(ids) for ids in rules.general.encode_arrays(slices)]
    cuts, tokens = [0], 0
    for number, length in enumerate(lengths):
        if tokens and tokens + length > rules.text_tokens:
            cuts.append(number)
            tokens = 0
        tokens += length
    found = []
    for first, last in pairwise([*cuts, len(sentences)]):
        start, end = borders[first], borders[last]
        moved = [s._replace(start=s.start - start) for s in sentences[first:last]]
        found.append((body[start:end], moved))
    return found


def _word_tasks(
    sentences: Sequence[Sentence], rules: Rules, generator: np.random.Generator
) -> list[MinedTask]:
    """Sentences, in a drawn order, that hold enough words of the domain."""
    found: list[MinedTask] = []
    for place in generator.permutation(len(sentences)).tolist():
        sentence = sentences[place].text
        if len(found) == rules.most_per_sub:
            break
        if not is_whole(sentence):
            continue
        words = rules.words.find(sentence, rules.most_pieces)
        if len(words) < rules.least_words:
            continue
        kept = np.sort(generator.choice(len(words), rules.least_words, replace=False))
        keywords = ", ".join(words[number] for number in kept.tolist())
        found.append(
            MinedTask("word_to_text", "words", {"keywords": keywords, "sentence": sentence})
        )
    return found


def _limited(
    tasks: Sequence[MinedTask], most: int, generator: np.random.Generator
) -> list[MinedTask]:
    """At most `most` of each sub-category, drawn; in their order."""
    by_sub: dict[tuple[str, str], list[MinedTask]] = defaultdict(list)
    for task in tasks:
        by_sub[task.type, task.sub].append(task)
    kept: list[MinedTask] = []
    for group in by_sub.values():
        if len(group) > most:
            places = np.sort(generator.choice(len(group), most, replace=False))
            group = [group[place] for place in places.tolist()]
        kept += group
    return kept


def _write(
    body: str,
    sentences: Sequence[Sentence],
    title: str,
    tasks: Sequence[MinedTask],
    rules: Rules,
    generator: np.random.Generator,
) -> tuple[str, Counter[str]]:
    """One text with its tasks, those of one type together, as few-shot examples are."""
    counts = Counter(f"{task.type}.{task.sub}" for task in tasks)
    groups: dict[str, list[str]] = defaultdict(list)
    for task in tasks:
        groups[task.type].append(_worded(task, rules, generator))
    ask_title, cut = _arrangement(bool(title), len(sentences) > 1, generator)
    slots = {"domain": rules.domain, "title": title, "text": body.strip()}
    if title and not ask_title:
        slots["text"] = f"{title}\n{slots['text']}"
    key = "reading"
    if cut:
        place = sentences[int(generator.integers(1, len(sentences)))].start
        slots["first"], slots["rest"] = body[:place].strip(), body[place:].strip()
        if title and not ask_title:
            slots["first"] = f"{title}\n{slots['first']}"
        key = "completion"
        counts["completion.ending"] += 1
    if ask_title:
        counts["summarization.title"] += 1
        if not cut and generator.random() < _TITLE_FIRST:
            key = "title_to_text"
        else:
            groups["title"].append(rules.instructions.draw("title", slots, generator))
    parts = [rules.instructions.draw(key, slots, generator)]
    if groups:
        opening = rules.instructions.draw("opening", slots, generator)
        parts += [opening] if opening else []
        kinds = list(groups)
        for number in generator.permutation(len(kinds)).tolist():
            parts += groups[kinds[number]]
    return "\n\n".join(parts), counts


def _arrangement(
    has_title: bool, has_end: bool, generator: np.random.Generator
) -> tuple[bool, bool]:
    """Whether the title is asked for, and whether the text is cut for completion."""
    if has_title and has_end:
        return _ARRANGEMENTS[int(generator.choice(len(_ARRANGEMENTS), p=_WITH_TITLE))]
    drawn = bool(generator.random() < _ONE_POSSIBLE)
    return has_title and drawn, has_end and drawn


def _worded(task: MinedTask, rules: Rules, generator: np.random.Generator) -> str:
    slots = {**task.slots, "domain": rules.domain}
    key = task.sub
    if task.type == "nli" and generator.random() >= _GENERATE:
        key = "nli"
        slots |= _LABELS[task.sub]
    return rules.instructions.draw(key, slots, generator)
