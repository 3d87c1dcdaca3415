"""Data sets of examinations and exercises."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from string import ascii_uppercase
from typing import Any

from data_gen.corpus.dataset_files import DataFile, Files, Located, by_file, rows
from data_gen.corpus.nested_records import nested, whole
from data_gen.instruction_pretrain.collection.base import Adapter, Question
from data_gen.instruction_pretrain.collection.flan import flan_records
from data_gen.instruction_pretrain.collection.questions import choice, one_by_one
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.rejection import Reason

_SENTENCE_END = re.compile(r"(?<=[.?!])\s+(?=[A-Z])")
_MARKER = re.compile(r"^\s*\(?[A-Ea-e]\s*\)\s*")
# What many rationales end with names an option by its letter, and ours have none: "the answer is
# B" or "so B is the correct answer".
_SO = r"(?i:[\s.,;:(]*\b(?:so|hence|thus|therefore)?[\s,]*(?:the )?"
_WORD = r"(?:correct )?(?:answer|ans|option|choice)\b"
_LETTER_AT_END = re.compile(
    rf"{_SO}{_WORD}[^\n]{{0,16}}?[-:=\s(]+[A-E][).\s]*)$"
    rf"|{_SO}(?:{_WORD}\s*)?)\(?\b[A-E]\)? is (?:the )?(?:correct|{_WORD})[^\n]{{0,8}}$"
)


def _race_questions(record: Any) -> Iterator[Question | Reason]:
    """The official article with its questions, or a row of a copy, which holds one of them."""
    if "questions" in record:
        asked = (record["questions"], record["options"], record["answers"])
    else:
        asked = ([record["question"]], [record["options"]], [record["answer"]])
    article: str = record["article"]
    return one_by_one(list(zip(*asked, strict=True)), lambda parts: _by_letter(article, *parts))


def _by_letter(
    text: str, asked: str, options: Sequence[str], letter: str, rationale: str | None = None
) -> Question:
    named = dict(zip(ascii_uppercase, options, strict=False))
    label = letter.strip().upper()
    return choice(text, asked, named, label if label in named else letter, rationale)


def _dream_questions(record: Any) -> Iterator[Question | Reason]:
    """The turns are the text; the record is a list, not an object."""
    turns, questions, _ = record
    text = "\n".join(turns)
    return one_by_one(
        questions,
        lambda asked: Question(
            text, Pair(asked["question"], asked["answer"], tuple(asked["choice"]))
        ),
    )


@by_file
def _logiqa_records(files: Files, file: DataFile) -> Iterator[Located]:
    """Blocks of 8 lines: an empty one, letter, text, question, 4 options; or the JSON lines of the
    second edition, which are named .txt too."""
    text = file.text()
    if text.lstrip().startswith("{"):
        yield from file.rows()
        return
    lines = [line.rstrip("\r") for line in text.rstrip("\r\n").split("\n")]
    for start in range(0, len(lines), 8):
        empty, *block = lines[start : start + 8]
        where = f"{file.name}:{start + 1}"
        if empty.strip() or len(block) != 7:
            yield Located(where, error="is not: an empty line, letter, text, question, options")
            continue
        letter, article, question, *options = block
        record = {"answer": letter, "article": article, "question": question}
        yield Located(where, {**record, "options": [*map(_unmarked, ascii_uppercase, options)]})


def _logiqa_questions(record: Any) -> Iterator[Question | Reason]:
    if "article" in record:
        yield from _race_questions(record)
    else:
        yield choice(record["text"], record["question"], record["options"], record["answer"])


def _unmarked(letter: str, option: str) -> str:
    """The option without its letter, which in 1% of them was translated into the sentence."""
    bare = re.sub(rf"^(?:[{letter}{letter.lower()}][.?]|{letter}\s)\s*", "", option)
    return bare if bare != option else option.replace(f"{letter}.", "", 1)


def _reclor_questions(record: Any) -> Iterator[Question | Reason]:
    yield choice(record["context"], record["question"], record["answers"], record["label"])


def _aqua_questions(record: Any) -> Iterator[Question | Reason]:
    """The last sentence asks; what is said before it is the text."""
    *premises, asked = _SENTENCE_END.split(record["question"].strip())
    options = tuple(_MARKER.sub("", option) for option in record["options"])
    letter = record["correct"]
    rationale = record["rationale"].strip()
    # A bare letter is an option's only where it is the right one: "M and N should serve on A".
    bare = re.compile(rf"(\s*\b[Tt]his gives us)?[\s=]+{re.escape(letter)}[.\s]*$")
    for pattern in (_LETTER_AT_END, bare, _LETTER_AT_END):
        rationale = pattern.sub("", rationale)
    if not premises:
        yield Reason("no_context", f"a single sentence: {asked}")
        return
    yield _by_letter(" ".join(premises), asked, options, letter, rationale or None)


def _aqua_flan_questions(record: Any) -> Iterator[Question | Reason]:
    letter, rationale = record["answer"].strip("() "), record["explanation"]
    return _aqua_questions({**record, "correct": letter, "rationale": rationale})


ADAPTERS: dict[str, Adapter] = {
    "race": (nested(whole), _race_questions),
    "race_c": (nested(whole), _race_questions),
    "dream": (rows, _dream_questions),
    "logiqa": (_logiqa_records, _logiqa_questions),
    "logiqa2": (_logiqa_records, _logiqa_questions),
    "reclor": (rows, _reclor_questions),
    "aqua": (rows, _aqua_questions),
    "aqua_flan": (flan_records, _aqua_flan_questions),
}
