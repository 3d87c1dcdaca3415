"""Data sets of stories."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_gen.instruction_pretrain.collection.base import Dataset, Question
from data_gen.instruction_pretrain.collection.files import Files, Located, unquoted_rows
from data_gen.instruction_pretrain.collection.squad import one_by_one
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.rejection import Reason


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


def _fairytale_questions(record: Any) -> Iterator[Question | Reason]:
    wanted = [part.strip() for part in record["cor_section"].split(",") if part.strip()]
    missing = [part for part in wanted if part not in record["sections"]]
    if missing:
        yield Reason("no_context", f"there is no section {missing[0]}")
        return
    text = "\n".join(record["sections"][part].strip() for part in wanted)
    yield Question(text, Pair(record["question"], record["answer1"] or ""))


def _narrative_records(files: Files) -> Iterator[Located]:
    """Questions with the summaries of their books and films, which lie in a file beside."""
    for file in files.chosen():
        beside = file.name.removesuffix("qaps.csv") + "third_party/wikipedia/summaries.csv"
        found = [summaries for summaries in files.find(beside) if summaries.name == beside]
        if not found:
            yield Located(file.name, error=f"has no summaries: {beside} is missing")
            continue
        texts: dict[str | None, str | None] = {}
        for row in found[0].rows():
            if row.error:
                yield row
            else:
                texts[row.value.get("document_id")] = row.value.get("summary")
        for number, row in enumerate(file.rows()):
            if row.error:
                yield row
            elif not file.part or row.value.get("set") == file.part:
                yield Located(f"{file.name}[{number}]", {**row.value, "summaries": texts})


def _narrative_questions(record: Any) -> Iterator[Question | Reason]:
    text = record["summaries"].get(record["document_id"]) or ""
    yield Question(text, Pair(record["question"], record["answer1"]))


def _mctest_records(files: Files) -> Iterator[Located]:
    """Stories with the letters of the right answers, which are the lines of a file beside."""
    for file in files.chosen():
        beside = file.name.removesuffix(".tsv") + ".ans"
        found = [answers for answers in files.find(beside) if answers.name == beside]
        if not found:
            yield Located(file.name, error=f"has no answers: {beside} is missing")
            continue
        letters = [line.value or [] for line in unquoted_rows(found[0])]
        for number, story in enumerate(unquoted_rows(file)):
            if story.error:
                yield story
                continue
            of_story = letters[number] if number < len(letters) else []
            yield Located(story.where, {"cells": story.value, "letters": of_story})


def _mctest_questions(record: Any) -> Iterator[Question | Reason]:
    """Four questions of five cells each stand behind id, properties and story."""
    cells, letters = record["cells"], record["letters"]
    text = cells[2].replace("\\newline", "\n").replace("\\tab", "\t")
    asked = list(zip(range(3, 23, 5), letters, strict=True))

    def question(place_and_letter: tuple[int, str]) -> Question:
        place, letter = place_and_letter
        options = tuple(cells[place + 1 : place + 5])
        # `one:` or `multiple:` says how many sentences of the story the answer takes.
        words = cells[place].partition(": ")[2]
        return Question(text, Pair(words, options["ABCD".index(letter)], options))

    return one_by_one(asked, question)


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
    Dataset(
        name="narrativeqa",
        domain="fiction",
        source="Kočiský et al. (2018); github.com/google-deepmind/narrativeqa",
        licence="Apache-2.0",
        train=("qaps.csv#train",),
        held_out=("qaps.csv#valid",),
        records=_narrative_records,
        questions=_narrative_questions,
    ),
    Dataset(
        name="mctest",
        domain="fiction",
        source="Richardson et al. (2013); github.com/mcobzarenco/mctest, data/MCTest/",
        licence="Microsoft Research licence, non-commercial",
        train=("mc160.train.tsv", "mc500.train.tsv"),
        held_out=("mc160.dev.tsv", "mc500.dev.tsv"),
        records=_mctest_records,
        questions=_mctest_questions,
    ),
)
