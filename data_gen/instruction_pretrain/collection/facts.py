"""Data sets of facts and of small worlds, made by experts to be reasoned about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from data_gen.corpus.dataset_files import (
    DataFile,
    Files,
    Located,
    by_file,
    converted,
    rows,
    unquoted_rows,
)
from data_gen.corpus.nested_records import listed, nested
from data_gen.instruction_pretrain.collection.base import Adapter, Question
from data_gen.instruction_pretrain.collection.flan import flan_records
from data_gen.instruction_pretrain.collection.questions import choice, labelled, one_by_one
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.rejection import Reason

_LINE = re.compile(r"(\d+) (.*)")
_MARKED = re.compile(r"(\([A-H]\)) (.*)", re.DOTALL)
_YES_NO = ["Yes", "No", "DK"]


@by_file
def _babi_records(files: Files, file: DataFile) -> Iterator[Located]:
    """Each question with what its story has told so far; line number 1 begins a story."""
    story: list[str] = []

    def record(cells: Any) -> dict[str, str] | None:
        said, *answer = cells
        match = _LINE.fullmatch(said)
        if match is None:
            raise ValueError(f"begins with no line number: {said[:60]!r}")
        if match[1] == "1":
            story.clear()
        if answer:
            return {"text": " ".join(story), "question": match[2].strip(), "answer": answer[0]}
        story.append(match[2].strip())
        return None

    return converted(unquoted_rows(file), record)


def _babi_questions(record: Any) -> Iterator[Question | Reason]:
    yield Question(record["text"], Pair(record["question"], record["answer"].replace(",", ", ")))


def _spartqa_questions(record: Any) -> Iterator[Question | Reason]:
    """The questions of a story, a list of one string."""
    text = " ".join(record["story"])
    return one_by_one(record["questions"], lambda asked: _spartqa_question(text, asked))


def _spartqa_question(text: str, asked: Any) -> Question:
    """Answers are candidates, or their numbers; one candidate is right, or several, or none."""
    options = asked["candidate_answers"] or (_YES_NO if asked["q_type"] == "YN" else [])
    right = [options[said] if isinstance(said, int) else said for said in asked["answer"]]
    answer = ", ".join(map(_spelt, right))
    # Of several right ones none is the answer, so that they are no options.
    return Question(
        text,
        Pair(asked["question"], answer, tuple(map(_spelt, options)) if len(right) == 1 else ()),
    )


def _spelt(answer: str) -> str:
    return "Do not know" if answer == "DK" else answer


def _qasc_questions(record: Any) -> Iterator[Question | Reason]:
    """Two facts are the text; what follows from both is the chain of thought."""
    asked, choices = record["question"], record.get("choices")  # a row of the hub's tables
    if isinstance(asked, dict):
        asked, choices = asked["stem"], asked["choices"]
    options, label = labelled(choices), record["answerKey"]
    text = f"{record['fact1']}\n{record['fact2']}"
    yield choice(text, asked, options, label, record["combinedfact"])


def _ecqa_questions(record: Any) -> Iterator[Question | Reason]:
    """Statements for and against the options are the text; the explanation leads to the answer."""
    text = "\n".join(said for said in (record["taskA_pos"], record["taskA_neg"]) if said.strip())
    options = tuple(record[f"q_op{number}"] for number in range(1, 6))
    yield Question(text, Pair(record["q_text"], record["q_ans"], options, record["taskB"]))


def _flan_questions(record: Any) -> Iterator[Question | Reason]:
    """FLAN left the statements out; the explanation is the text, and so no chain of thought."""
    marked = [_MARKED.fullmatch(option) for option in record["options"]]
    options = {
        match[1] if match else option: match[2] if match else option
        for match, option in zip(marked, record["options"], strict=True)
    }
    yield choice(record["explanation"], record["question"], options, record["answer"])


ADAPTERS: dict[str, Adapter] = {
    "spartqa": (nested(listed), _spartqa_questions),
    "babi": (_babi_records, _babi_questions),
    "qasc": (rows, _qasc_questions),
    "qasc_flan": (flan_records, _flan_questions),
    "ecqa": (rows, _ecqa_questions),
    "ecqa_flan": (flan_records, _flan_questions),
}
