"""Data sets of stories."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from data_gen.corpus.dataset_files import (
    DataFile,
    Files,
    Located,
    by_file,
    unquoted_rows,
)
from data_gen.instruction_pretrain.collection.base import Adapter, Question
from data_gen.instruction_pretrain.collection.questions import one_by_one
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.rejection import Reason


@by_file
def _fairytale_records(files: Files, file: DataFile) -> Iterator[Located]:
    """Questions with the texts of their sections, which lie in a file of the same book."""
    beside = file.name.replace("questions/", "section-stories/")
    beside = beside.removesuffix("-questions.csv") + "-story.csv"
    if (stories := files.at(beside)) is None:
        yield Located(file.name, error=f"has no sections: {beside} is missing")
        return
    sections: dict[str, str] = {}
    yield from _told(stories, sections, "section", "text")
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


@by_file
def _narrative_records(files: Files, file: DataFile) -> Iterator[Located]:
    """Questions with the summaries of their books and films, which lie in a file beside."""
    beside = file.name.removesuffix("qaps.csv") + "third_party/wikipedia/summaries.csv"
    if (summaries := files.at(beside)) is None:
        yield Located(file.name, error=f"has no summaries: {beside} is missing")
        return
    texts: dict[str, str] = {}
    yield from _told(summaries, texts, "document_id", "summary")
    for number, row in enumerate(file.rows()):
        if row.error:
            yield row
        elif not file.part or row.value.get("set") == file.part:
            yield Located(f"{file.name}[{number}]", {**row.value, "summaries": texts})


def _told(file: DataFile, texts: dict[str, str], key: str, text: str) -> Iterator[Located]:
    """Enter the texts of a table by their keys; the lines that could not be read are given."""
    for row in file.rows():
        if row.error:
            yield row
        else:
            texts[str(row.value[key]).strip()] = row.value[text]


def _narrative_questions(record: Any) -> Iterator[Question | Reason]:
    text = record["summaries"].get(record["document_id"]) or ""
    yield Question(text, Pair(record["question"], record["answer1"]))


@by_file
def _mctest_records(files: Files, file: DataFile) -> Iterator[Located]:
    """Stories with the letters of the right answers, which are the lines of a file beside."""
    beside = file.name.removesuffix(".tsv") + ".ans"
    if (answers := files.at(beside)) is None:
        yield Located(file.name, error=f"has no answers: {beside} is missing")
        return
    letters = [line.value or [] for line in unquoted_rows(answers)]
    for story, of_story in zip_longest(unquoted_rows(file), letters):
        if story is not None:
            value = {"cells": story.value, "letters": of_story or []}
            yield Located(story.where, None if story.error else value, story.error)


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


ADAPTERS: dict[str, Adapter] = {
    "fairytaleqa": (_fairytale_records, _fairytale_questions),
    "narrativeqa": (_narrative_records, _narrative_questions),
    "mctest": (_mctest_records, _mctest_questions),
}
