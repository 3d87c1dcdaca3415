"""Data sets of stories."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_gen.instruction_pretrain.collection.base import Dataset, Question, Unusable
from data_gen.instruction_pretrain.collection.files import Files, Located
from data_gen.instruction_pretrain.format import Pair


def _fairytale_records(files: Files) -> Iterator[Located]:
    """Questions with the texts of their sections, which lie in a file of the same book."""
    for file in files.chosen():
        stories = file.name.replace("questions/", "section-stories/")
        stories = stories.removesuffix("-questions.csv") + "-story.csv"
        found = [story for story in files.find(stories) if story.name == stories]
        if not found:
            yield Located(file.name, error=f"has no sections: {stories} is missing")
            continue
        sections: dict[str, str] = {}
        for row in found[0].rows():
            if row.error:
                yield row
            else:
                sections[str(row.value["section"]).strip()] = row.value["text"]
        for row in file.rows():
            where = f"{file.name}:{(row.value or {}).get('question_id')}"
            value = row.value and {**row.value, "sections": sections}
            yield Located(where if value else row.where, value, row.error)


def _fairytale_questions(record: Any) -> Iterator[Question | Unusable]:
    wanted = [part.strip() for part in record["cor_section"].split(",") if part.strip()]
    missing = [part for part in wanted if part not in record["sections"]]
    if missing:
        yield Unusable("no_context", f"there is no section {missing[0]}")
        return
    text = "\n".join(record["sections"][part].strip() for part in wanted)
    yield Question(text, Pair(record["question"], record["answer1"] or ""))


DATASETS = (
    Dataset(
        name="fairytaleqa",
        domain="fiction",
        source="Xu et al. (2022); github.com/uci-soe/FairytaleQAData, data-by-train-split/",
        licence="Apache-2.0",
        train=("questions/train/*.csv",),
        held_out=("questions/val/*.csv",),
        records=_fairytale_records,
        questions=_fairytale_questions,
    ),
)
