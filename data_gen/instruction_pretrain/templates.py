"""M-shot training texts out of documents and pairs, in varied forms (section 2.2, Tables 16-18).

What a record looks like is drawn once and holds for all its shots, so that later shots follow
earlier ones. Each choice is a draw of its own: the released code draws all of them from one seed,
and there the pattern of the pairs decides the arrangement.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_gen.instruction_pretrain.formats import Pair, Shot
from data_gen.instruction_pretrain.template_file import SLOT, TemplateSet, our_templates
from ipt_jax.core.records import Record
from ipt_jax.core.seeds import generator_of


@dataclass(frozen=True)
class Layout:
    """What one record looks like."""

    arrangement: str
    """`reading`, `dialogue`, `numbered`, `examples` or `next_turn`."""
    pairs_first: bool
    """Pairs come before their text."""
    opened: bool
    """An opening stands between text and pairs, where the arrangement is `reading`."""
    forms: Mapping[str, str]
    """Of each list of templates the entry that holds for this record."""


def render_training_text(
    shots: Sequence[Shot], generator: np.random.Generator, templates: TemplateSet | None = None
) -> list[str]:
    """Parts that join to an M-shot text: each text, then what comes after it, piece by piece.

    Where pairs come first, the text is the last part of its shot. The same shots, templates and
    state of `generator` give the same parts. Every instruction, option, rationale and response is
    written as it is; of a response that is among the options a marker may stand for it.

    Raises:
      ValueError: no shots, or one without pairs.
    """
    if not shots or not all(shot.pairs for shot in shots):
        raise ValueError("a training text needs shots, and each shot pairs")
    fewest_pairs = min(len(shot.pairs) for shot in shots)
    layout = draw_layout(templates or our_templates(), generator, fewest_pairs)
    parts: list[str] = []
    for shot in shots:
        pieces = _render_shot(shot, layout)
        if parts:
            pieces[0] = layout.forms["shot_connections"] + pieces[0]
        parts += pieces
    return parts


def training_record(
    name: str,
    shots: Sequence[Shot],
    source: str,
    seed: int,
    templates: TemplateSet,
    provenance: Mapping[str, Any],
) -> Record:
    """An M-shot text as a record, drawn by its name; loss on all tokens (2.2)."""
    parts = tuple(render_training_text(shots, generator_of(seed, "template", name), templates))
    return Record(name, "".join(parts), source, parts, (1.0,) * len(parts), provenance)


def draw_layout(
    templates: TemplateSet, generator: np.random.Generator, fewest_pairs: int
) -> Layout:
    """Draw what a record looks like whose texts have at least `fewest_pairs` pairs each."""
    key = generator.bytes(16)
    weights = templates.weights["arrangements" if fewest_pairs > 1 else "one_pair_arrangements"]
    return Layout(
        arrangement=_weighted(weights, _draw(key, "arrangement")),
        pairs_first=_draw(key, "share of pairs_first") < templates.shares["pairs_first"],
        opened=_draw(key, "share of opening") < templates.shares["opening"],
        forms={
            name: entries[int(_draw(key, name) * len(entries))]
            for name, entries in templates.lists.items()
        },
    )


def _draw(key: bytes, choice: str) -> float:
    """A number in [0, 1) for one choice of a record, independent of all its others.

    A keyed hash does what a generator for each choice would, in a fortieth of its time.
    """
    digest = hashlib.blake2b(choice.encode(), key=key, digest_size=6).digest()
    return int.from_bytes(digest) / 2**48


def _weighted(weights: Mapping[str, float], at: float) -> str:
    """The name at `at`, from 0 to 1, on a line where each name is as long as its weight."""
    likely = [(name, weight) for name, weight in weights.items() if weight > 0]
    left = at * sum(weight for _, weight in likely)
    for name, weight in likely:
        if left < weight:
            return name
        left -= weight
    return likely[-1][0]  # rounding


def _render_shot(shot: Shot, layout: Layout) -> list[str]:
    forms = layout.forms
    block = _render_pairs(shot.pairs, layout)
    if layout.pairs_first:
        return fill(forms["pairs_first"], {"pairs": block, "text": [shot.text]})
    text = _filled(forms["texts"], text=shot.text) + forms["text_connections"]
    if layout.opened and layout.arrangement == "reading":
        block[0] = forms["openings"] + forms["opening_connections"] + block[0]
    return [text, *block]


def _render_pairs(pairs: Sequence[Pair], layout: Layout) -> list[str]:
    """The pairs of one text in the record's arrangement."""
    forms = layout.forms
    line = forms["line_connections"]
    if layout.arrangement in ("reading", "examples"):
        between = forms["pair_connections"]
        whole = [_filled(forms[_format_of(pair)], **_slots(pair, forms)) for pair in pairs]
        if layout.arrangement == "reading":
            return _joined(whole, between)
        shown = _joined(whole[:-1], between)
        return fill(forms["examples"], {"examples": shown, "last": whole[-1:]})
    questions, answers = zip(*(_question_and_answer(pair, forms) for pair in pairs), strict=True)
    if layout.arrangement == "numbered":
        numbers = [numbered(forms["numbers"], n) for n in range(1, len(pairs) + 1)]
        asked = _joined([n + q for n, q in zip(numbers, questions, strict=True)], line)
        answered = _joined([n + a for n, a in zip(numbers, answers, strict=True)], line)
        return fill(forms["numbered"], {"questions": asked, "answers": answered})
    turns = [
        _filled(forms["dialogue_turns"], question=question, answer=answer)
        for question, answer in zip(questions, answers, strict=True)
    ]
    if layout.arrangement == "dialogue":
        return fill(forms["dialogues"], {"dialogue": _joined(turns, line)})
    said = _joined(turns[:-1], line)
    return fill(forms["next_turns"], {"dialogue": said, "turn": turns[-1:]})


def _format_of(pair: Pair) -> str:
    """The format of Table 7, as the lists of templates call it."""
    name = "multiple_choice" if pair.options else "free_form"
    return name if pair.rationale is None else f"{name}_chain_of_thought"


def _slots(pair: Pair, forms: Mapping[str, str]) -> dict[str, str]:
    """What stands in the slots of a pair's pattern."""
    marks = [numbered(forms["markers"], n) for n in range(1, len(pair.options) + 1)]
    options = [mark + option for mark, option in zip(marks, pair.options, strict=True)]
    marker = marked = pair.response
    # A dash does not say which option is meant.
    if pair.response in pair.options and SLOT.search(forms["markers"]):
        chosen = pair.options.index(pair.response)
        marker, marked = marks[chosen].strip().rstrip(" :-/"), options[chosen]
    return {
        "question": pair.instruction,
        "options": forms["option_connections"].join(options),
        "rationale": pair.rationale or "",
        "answer": pair.response,
        "marker": marker,
        "marked_answer": marked,
    }


def _question_and_answer(pair: Pair, forms: Mapping[str, str]) -> tuple[str, str]:
    """The two halves of a pair, for arrangements that take them apart."""
    slots = _slots(pair, forms)
    question, answer = slots["question"], slots["answer"]
    if pair.options:
        question = _filled(forms["option_questions"], **slots)
        answer = _filled(forms["option_answers"], **slots)
    if pair.rationale is not None:
        answer = _filled(forms["reasoned_answers"], rationale=pair.rationale, answer=answer)
    return question, answer


def fill(form: str, values: Mapping[str, Sequence[str]]) -> list[str]:
    """`form` with pieces in its slots, as pieces again; braces within them stay as they are.

    What the form says before a slot goes with the slot's first piece, its end with the last one.
    """
    *pairs, end = SLOT.split(form)
    pieces: list[str] = []
    for literal, name in zip(pairs[::2], pairs[1::2], strict=True):
        first, *others = values[name]
        pieces += [literal + first, *others]
    return [*pieces[:-1], pieces[-1] + end]


def _filled(form: str, **values: str) -> str:
    return "".join(fill(form, {name: [value] for name, value in values.items()}))


def _joined(pieces: Sequence[str], connection: str) -> list[str]:
    """The pieces, with the connection in front of all but the first."""
    return [connection * (place > 0) + piece for place, piece in enumerate(pieces)]


def numbered(form: str, number: int) -> str:
    """A marker such as `({a}) ` for the option or question of this number, from 1."""
    return SLOT.sub(lambda slot: _count(slot[1], number), form)


def _count(counter: str, number: int) -> str:
    if counter == "1":
        return str(number)
    word = _letters(number) if counter in "aA" else _roman(number)
    return word if counter in "ai" else word.upper()


def _letters(number: int) -> str:
    """a to z, then aa, ab and so on."""
    letters = ""
    while number:
        number, place = divmod(number - 1, 26)
        letters = chr(ord("a") + place) + letters
    return letters


def _roman(number: int) -> str:
    numerals = ((50, "l"), (40, "xl"), (10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i"))
    word = ""
    for value, numeral in numerals:
        count, number = divmod(number, value)
        word += numeral * count
    return word
