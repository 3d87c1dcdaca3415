"""Data sets of papers, reports, facts and worlds that experts wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from data_gen.instruction_pretrain.collection.base import Dataset, Question, Unusable
from data_gen.instruction_pretrain.collection.files import Files, Located, documents
from data_gen.instruction_pretrain.format import Pair

_LINE = re.compile(r"(\d+) (.*)")


def _pubmed_records(files: Files) -> Iterator[Located]:
    for document in documents(files):
        if document.error:
            yield document
            continue
        for key, record in document.value.items():
            yield Located(f"{document.where}:{key}", record)


def _pubmed_questions(record: Any) -> Iterator[Question | Unusable]:
    text = "\n".join(record["CONTEXTS"])
    pair = Pair(
        record["QUESTION"], record.get("final_decision") or "", rationale=record["LONG_ANSWER"]
    )
    yield Question(text, pair)


def _babi_records(files: Files) -> Iterator[Located]:
    """Each question with what its story has told so far; line number 1 begins a story."""
    for file in files.chosen():
        story: list[str] = []
        for number, line in enumerate(file.text().splitlines(), start=1):
            where = f"{file.name}:{number}"
            match = _LINE.fullmatch(line)
            if match is None:
                if line.strip():
                    yield Located(where, error=f"begins with no line number: {line[:60]!r}")
                continue
            if match[1] == "1":
                story = []
            if "\t" not in match[2]:
                story.append(match[2].strip())
                continue
            asked, answer, *_ = match[2].split("\t")
            yield Located(
                where, {"text": " ".join(story), "question": asked.strip(), "answer": answer}
            )


def _babi_questions(record: Any) -> Iterator[Question | Unusable]:
    yield Question(record["text"], Pair(record["question"], record["answer"].replace(",", ", ")))


DATASETS = (
    Dataset(
        name="pubmedqa",
        domain="expert_materials",
        source="Jin et al. (2019); github.com/pubmedqa/pubmedqa, data/",
        licence="MIT",
        train=("ori_pqal.json",),
        records=_pubmed_records,
        questions=_pubmed_questions,
    ),
    Dataset(
        name="babi",
        domain="expert_materials",
        source="Weston et al. (2015); tasks_1-20_v1-2/en",
        licence="CC BY 3.0",
        train=("qa*_train.txt",),
        held_out=("qa*_test.txt",),
        records=_babi_records,
        questions=_babi_questions,
    ),
)
