"""Data sets of examinations and exercises."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from data_gen.instruction_pretrain.collection.base import Dataset, Question, Unusable
from data_gen.instruction_pretrain.collection.files import Files, Located, rows
from data_gen.instruction_pretrain.format import Pair

_SENTENCE_END = re.compile(r"(?<=[.?!])\s+(?=[A-Z])")
_MARKER = re.compile(r"^\s*\(?[A-Ea-e]\s*\)\s*")
# What many rationales end with names an option by its letter, and ours have none.
_LETTER_AT_END = re.compile(
    r"[\s.,;:(]*\b(so|hence|thus|therefore)?[\s,]*(the )?(correct )?(answer|ans|option|choice)\b"
    r"[^\n]{0,16}?[-:=\s(]+[A-E][).\s]*$",
    re.IGNORECASE,
)


def _aqua_questions(record: Any) -> Iterator[Question | Unusable]:
    """The last sentence asks; what is said before it is the text."""
    *premises, asked = _SENTENCE_END.split(record["question"].strip())
    options = tuple(_MARKER.sub("", option) for option in record["options"])
    answer = options["ABCDE".index(record["correct"])]
    rationale = _LETTER_AT_END.sub("", record["rationale"].strip())
    if not premises:
        yield Unusable("no_context", f"a single sentence: {asked}")
        return
    yield Question(" ".join(premises), Pair(asked, answer, options, rationale or None))


def _flan_records(files: Files) -> Iterator[Located]:
    """The rows of FLAN's chain-of-thought tables as records of the official layout."""
    for file in files.chosen():
        for number, line in enumerate(file.text().splitlines(), start=1):
            where = f"{file.name}:{number}"
            try:
                asked, answer, rationale = line.replace("\\n", "\n").split("\t")
                question, options = asked.split("\nOptions:\n")
            except ValueError:
                yield Located(where, error="is not: question with options, answer, rationale")
                continue
            record = {
                "question": question,
                "options": options.split("\n"),
                "correct": answer.strip("() "),
                "rationale": rationale,
            }
            yield Located(where, record)


_AQUA = "Ling et al. (2017); "

DATASETS = (
    Dataset(
        name="aqua",
        domain="academic_tests",
        source=f"{_AQUA}github.com/google-deepmind/AQuA",
        licence="Apache-2.0",
        train=("train.json", "train.tok.json"),
        held_out=("dev.json",),
        records=rows,
        questions=_aqua_questions,
        hub="deepmind/aqua_rat",
    ),
    Dataset(
        name="aqua_flan",
        domain="academic_tests",
        source=f"{_AQUA}github.com/google-research/FLAN, flan/v2/cot_data/",
        licence="Apache-2.0",
        train=("aqua_train.tsv",),
        records=_flan_records,
        questions=_aqua_questions,
    ),
)
