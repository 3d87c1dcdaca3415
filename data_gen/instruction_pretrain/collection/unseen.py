"""The four sets of section 5.1, which the synthesizer is never tuned on.

The paper says that each is an instruction format of its own, and not which. Here SocialIQA is
multiple choice, WikiWhy free-form with a chain of thought, FEVER multiple choice with one, and
TextbookQA has free-form questions beside multiple choice: together the four of Table 7.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from data_gen.corpus.dataset_files import (
    DataFile,
    Files,
    Located,
    by_file,
    rows,
    unquoted_rows,
)
from data_gen.corpus.nested_records import laid_out
from data_gen.instruction_pretrain.collection.base import Adapter, Question
from data_gen.instruction_pretrain.collection.questions import choice, one_by_one
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.rejection import Reason

_VERDICTS = {
    "SUPPORTS": "Supported",
    "REFUTES": "Refuted",
    "NOT ENOUGH INFO": "Not enough information",
}
_BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-COLON-": ":"}


@by_file
def _social_records(files: Files, file: DataFile) -> Iterator[Located]:
    """The lines with the numbers of their right answers, which are the lines of a file beside;
    or lines, and rows of the hub's tables, that hold them."""
    first = next((row.value for row in file.rows() if not row.error), None)
    if isinstance(first, dict) and "label" in first:
        yield from file.rows()
        return
    answers = files.at(file.name.removesuffix(".jsonl") + "-labels.lst")
    lines = unquoted_rows(answers) if answers else ()
    labels = [line.value[0].strip() for line in lines if not line.error]
    for row, label in zip_longest(file.rows(), labels):
        if row is not None:
            value = {"line": row.value, "label": label or ""}
            yield Located(row.where, None if row.error else value, row.error)


def _social_questions(record: Any) -> Iterator[Question | Reason]:
    if "line" in record:
        record = {**record["line"], "label": record["label"]}
    options = tuple(record[f"answer{letter}"] for letter in "ABC")
    answer = options["123".index(record["label"])] if record["label"] else ""
    yield Question(record["context"], Pair(record["question"], answer, options))


def _textbook_questions(record: Any) -> Iterator[Question | Reason]:
    """A lesson's topics are the text; questions on diagrams are not of text, and are left out."""
    topics = sorted(record["topics"].values(), key=lambda topic: topic.get("orderID") or "")
    text = "\n".join(topic["content"]["text"].strip() for topic in topics)

    def question(asked: Any) -> Question:
        words, answer = asked["beingAsked"]["processedText"], asked["correctAnswer"]
        choices = sorted(asked.get("answerChoices", {}).items())
        options = {letter: choice["processedText"] for letter, choice in choices}
        return choice(text, words, options, answer["processedText"])

    return one_by_one(record["questions"]["nonDiagramQuestions"].values(), question)


@by_file
def _why_records(files: Files, file: DataFile) -> Iterator[Located]:
    """The official columns, which are files beside each other, or tables with all of them."""
    if not file.name.endswith("context.json"):
        return file.rows()
    folder = file.name.removesuffix("context.json")

    def records(document: Any) -> Iterator[tuple[str, Any]]:
        columns = {"ctx": document["ctx"]}
        for name in ("question", "cause", "explanation"):
            if (beside := files.at(f"{folder}{name}.json")) is not None:
                columns[name] = beside.json()[name]
        for key in columns["ctx"]:
            yield f":{key}", {name: of[key] for name, of in columns.items() if key in of}

    return laid_out(file, records)


def _why_questions(record: Any) -> Iterator[Question | Reason]:
    """Why there is an effect; the explanation leads to the cause."""
    pair = Pair(record["question"], record["cause"], rationale=record["explanation"] or None)
    yield Question(record["ctx"], pair)


def _fever_records(files: Files) -> Iterator[Located]:
    """Claims with the pages of their first evidence, found in one pass over the encyclopedia."""
    claims: list[Located] = []
    for claim in rows(files):
        try:
            named = {_title(title) for _, _, title, _ in claim.value["evidence"][0] if title}
        except (KeyError, TypeError, IndexError, ValueError):
            named = set()  # which the converter reports with its reason
        claims.append(claim if claim.error else Located(claim.where, (claim.value, named)))
    wanted = {title for claim in claims if not claim.error for title in claim.value[1]}
    pages: dict[str, Any] = {}
    for file in files.find("wiki-pages/wiki-*.jsonl"):
        for page in file.rows():
            if page.error or not isinstance(page.value, dict) or "id" not in page.value:
                yield Located(page.where, error=page.error or "is no page with an id")
            elif (title := _title(str(page.value["id"]))) in wanted:
                pages[title] = page.value
    for claim in claims:
        if claim.error:
            yield claim
        else:
            value, named = claim.value
            found = {title: pages[title] for title in named if title in pages}
            yield Located(claim.where, {"claim": value, "pages": found})


def _fever_questions(record: Any) -> Iterator[Question | Reason]:
    """Beginnings of pages are the text; the sentences of the evidence lead to the verdict."""
    claim, pages = record["claim"], record["pages"]
    verdict = _VERDICTS[claim["label"]]
    evidence = [(_title(title), place) for _, _, title, place in claim["evidence"][0] if title]
    missing = [title for title, _ in evidence if title not in pages]
    if missing or not evidence:
        problem = f"there is no page {missing[0]}" if missing else "it has no evidence"
        yield Reason("no_context", f"{problem}: {claim['claim']}")
        return
    said = {title: _sentences(pages[title]["lines"]) for title, _ in evidence}
    text = "\n".join(" ".join(filter(None, page.values())) for page in said.values())
    rationale = " ".join(said[title][place] for title, place in evidence)
    asked = f"Does the text support or refute this claim? {claim['claim']}"
    yield Question(text, Pair(asked, verdict, tuple(_VERDICTS.values()), rationale))


def _sentences(lines: str) -> dict[int, str]:
    """Sentences by their numbers; behind a sentence stand the links in it."""
    cells = [line.split("\t") for line in lines.split("\n")]
    return {int(row[0]): _spelt(row[1]) for row in cells if len(row) > 1 and row[0].isdigit()}


def _spelt(sentence: str) -> str:
    for written, meant in _BRACKETS.items():
        sentence = sentence.replace(written, meant)
    return sentence.strip()


def _title(written: str) -> str:
    """Claims and pages spell accents in different ways."""
    return unicodedata.normalize("NFC", written)


ADAPTERS: dict[str, Adapter] = {
    "socialiqa": (_social_records, _social_questions),
    "textbookqa": (rows, _textbook_questions),
    "wikiwhy": (_why_records, _why_questions),
    "fever": (_fever_records, _fever_questions),
}
