"""Data sets of examinations and exercises."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from data_gen.instruction_pretrain.collection.base import Dataset, Question
from data_gen.instruction_pretrain.collection.files import Files, Located, rows
from data_gen.instruction_pretrain.collection.flan import FLAN, flan_records
from data_gen.instruction_pretrain.collection.nested import each_or_row, whole
from data_gen.instruction_pretrain.collection.squad import one_by_one
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.rejection import Reason

_LETTERS = "ABCDEFGH"
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
    return one_by_one(
        list(zip(*asked, strict=True)), lambda parts: Question(article, _chosen(*parts))
    )


def _chosen(question: str, options: Sequence[str], letter: str) -> Pair:
    """The option with this letter answers; a letter without one is found among none of them."""
    by_letter = dict(zip(_LETTERS, options, strict=False))
    return Pair(question, by_letter.get(letter.strip().upper(), letter), tuple(options))


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


def _logiqa_records(files: Files) -> Iterator[Located]:
    """Blocks of 8 lines: an empty one, letter, text, question, 4 options; or the JSON lines of the
    second edition, which are named .txt too."""
    for file in files.chosen():
        try:
            text = file.text()
        except (OSError, EOFError, ValueError) as error:
            yield Located(file.name, error=f"cannot be read: {error}")
            continue
        if text.lstrip().startswith("{"):
            yield from file.rows()
            continue
        lines = [line.rstrip("\r") for line in text.rstrip("\r\n").split("\n")]
        for start in range(0, len(lines), 8):
            empty, *block = lines[start : start + 8]
            where = f"{file.name}:{start + 1}"
            if empty.strip() or len(block) != 7:
                yield Located(where, error="is not: an empty line, letter, text, question, options")
                continue
            letter, text, question, *options = block
            record = {"answer": letter, "article": text, "question": question}
            yield Located(where, {**record, "options": [*map(_unmarked, _LETTERS, options)]})


def _logiqa_questions(record: Any) -> Iterator[Question | Reason]:
    if "article" in record:
        yield from _race_questions(record)
        return
    options, label = tuple(record["options"]), record["answer"]
    answer = options[label] if 0 <= label < len(options) else str(label)
    yield Question(record["text"], Pair(record["question"], answer, options))


def _unmarked(letter: str, option: str) -> str:
    """The option without its letter, which in 1% of them was translated into the sentence."""
    bare = re.sub(rf"^(?:[{letter}{letter.lower()}][.?]|{letter}\s)\s*", "", option)
    return bare if bare != option else option.replace(f"{letter}.", "", 1)


def _reclor_questions(record: Any) -> Iterator[Question | Reason]:
    options, label = record["answers"], record["label"]
    answer = options[label] if 0 <= label < len(options) else str(label)
    yield Question(record["context"], Pair(record["question"], answer, tuple(options)))


def _aqua_questions(record: Any) -> Iterator[Question | Reason]:
    """The last sentence asks; what is said before it is the text."""
    *premises, asked = _SENTENCE_END.split(record["question"].strip())
    options = tuple(_MARKER.sub("", option) for option in record["options"])
    letter = record["correct"]
    answer = _chosen(asked, options, letter).response
    rationale = record["rationale"].strip()
    # A bare letter is an option's only where it is the right one: "M and N should serve on A".
    bare = re.compile(rf"(\s*\b[Tt]his gives us)?[\s=]+{re.escape(letter)}[.\s]*$")
    for pattern in (_LETTER_AT_END, bare, _LETTER_AT_END):
        rationale = pattern.sub("", rationale)
    if not premises:
        yield Reason("no_context", f"a single sentence: {asked}")
        return
    yield Question(" ".join(premises), Pair(asked, answer, options, rationale or None))


def _aqua_flan_questions(record: Any) -> Iterator[Question | Reason]:
    letter, rationale = record["answer"].strip("() "), record["explanation"]
    return _aqua_questions({**record, "correct": letter, "rationale": rationale})


_RESEARCH_ONLY = "non-commercial research only"
_AQUA = "Ling et al. (2017); "

DATASETS = (
    Dataset(
        name="race",
        domain="academic_tests",
        source="Lai et al. (2017); www.cs.cmu.edu/~glai1/data/race/",
        licence=_RESEARCH_ONLY,
        train=("train/middle/*.txt", "train/high/*.txt", "all/train-*.parquet"),
        held_out=("dev/middle/*.txt", "dev/high/*.txt", "all/validation-*.parquet"),
        records=lambda files: each_or_row(files, whole),
        questions=_race_questions,
        hub="ehovy/race",
    ),
    Dataset(
        name="race_c",
        domain="academic_tests",
        source="Liang et al. (2019); github.com/mrcdata/race-c",
        licence=_RESEARCH_ONLY,
        train=("train/*.txt",),
        held_out=("dev/*.txt",),
        records=lambda files: each_or_row(files, whole),
        questions=_race_questions,
    ),
    Dataset(
        name="dream",
        domain="academic_tests",
        source="Sun et al. (2019); github.com/nlpdata/dream, data/",
        licence=_RESEARCH_ONLY,
        train=("train.json",),
        held_out=("dev.json",),
        records=rows,
        questions=_dream_questions,
    ),
    Dataset(
        name="logiqa",
        domain="academic_tests",
        source="Liu et al. (2021); github.com/lgw863/LogiQA-dataset",
        licence="none stated",
        train=("Train.txt",),
        held_out=("Eval.txt",),
        records=_logiqa_records,
        questions=_logiqa_questions,
    ),
    Dataset(
        name="logiqa2",
        domain="academic_tests",
        source="Liu et al. (2023); github.com/csitfun/LogiQA2.0, logiqa/DATA/LOGIQA/",
        licence="CC BY-NC-SA 4.0",
        train=("train.txt",),
        held_out=("dev.txt",),
        records=_logiqa_records,
        questions=_logiqa_questions,
        label="answer",
        copy_of="logiqa",
    ),
    Dataset(
        name="reclor",
        domain="academic_tests",
        source="Yu et al. (2019); whyu.me/reclor",
        licence=_RESEARCH_ONLY,
        train=("train.json",),
        held_out=("val.json",),
        records=rows,
        questions=_reclor_questions,
        hub="metaeval/reclor",
        label="label",
    ),
    Dataset(
        name="aqua",
        domain="academic_tests",
        source=f"{_AQUA}github.com/google-deepmind/AQuA",
        licence="Apache-2.0",
        train=("train.json", "raw/train-*.parquet"),
        held_out=("dev.json", "raw/validation-*.parquet"),
        records=rows,
        questions=_aqua_questions,
        hub="deepmind/aqua_rat",
    ),
    Dataset(
        name="aqua_flan",
        domain="academic_tests",
        source=f"{_AQUA}{FLAN}",
        licence="Apache-2.0",
        train=("aqua_train.tsv",),
        records=flan_records,
        questions=_aqua_flan_questions,
        copy_of="aqua",
    ),
)
