"""SQuAD's layout, which several data sets have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from data_gen.instruction_pretrain.collection.base import MALFORMED, Question
from data_gen.instruction_pretrain.collection.files import Files, Located, rows
from data_gen.instruction_pretrain.collection.nested import each
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.rejection import Reason

# What the layout's conversational sets answer where the text holds no answer, and append to texts.
CANNOT_ANSWER = "CANNOTANSWER"


def squad_records(files: Files) -> Iterator[Located]:
    """The paragraphs of the official documents, or the rows of the hub's tables."""
    if any(file.name.endswith(".parquet") for file in files.chosen()):
        yield from rows(files)
    else:
        yield from each(files, _paragraphs)


def _paragraphs(document: Any) -> Iterator[tuple[object, Any]]:
    for number, article in enumerate(document["data"]):
        found = article.get("paragraphs") if isinstance(article, dict) else None
        if isinstance(found, list):
            yield from ((f"{number}.{place}", paragraph) for place, paragraph in enumerate(found))
        else:
            yield number, article  # which is no paragraph, and is counted as such


def squad_questions(record: Any) -> Iterator[Question | Reason]:
    """The questions of a paragraph with the first of their answers, or that of a hub's row."""
    return one_by_one(asked_in(record), lambda asked: answered(record["context"], asked))


def asked_in(record: Any) -> list[Any]:
    """The questions of a paragraph; a row of the hub's tables is a question itself."""
    return [record] if "question" in record else record["qas"]


def answered(text: str, asked: Any, key: str = "text") -> Question | Reason:
    """A question with its answer; `key` is where an answer's words are."""
    answer = asked.get("orig_answer") or _first(asked["answers"], key)
    if asked.get("is_impossible") or CANNOT_ANSWER in answer.values():
        return Reason("unanswerable", asked["question"])
    at = _place(text, answer)
    text = text.rstrip().removesuffix(CANNOT_ANSWER)
    return Question(text, Pair(asked["question"], answer[key]), at=at)


def _first(answers: Any, key: str) -> dict[str, Any]:
    if isinstance(answers, dict):  # columns, as in the hub's tables
        columns = zip(*answers.values(), strict=True)
        answers = [dict(zip(answers, values, strict=True)) for values in columns]
    first = answers[0] if answers else {key: ""}
    return {**first, key: first[key]}


def _place(text: str, answer: Any) -> tuple[int, int] | None:
    """Where an answer stands in the text, by its offset or else where its words come first."""
    start, said = answer.get("answer_start"), answer.get("text")
    if not isinstance(said, str) or not said:
        return None
    if not isinstance(start, int) or text[start : start + len(said)] != said:
        start = text.find(said)
    return (start, start + len(said)) if start >= 0 else None


def conversation(pieces: Iterable[Question | Reason]) -> Iterator[Question | Reason]:
    """The turns of a conversation, each after those before it."""
    before: tuple[str, ...] = ()
    for piece in pieces:
        if isinstance(piece, Question):
            yield replace(piece, before=before)
            before += (piece.pair.instruction,)
        else:
            yield piece


def one_by_one(
    items: Iterable[Any], convert: Callable[[Any], Question | Reason]
) -> Iterator[Question | Reason]:
    """What `convert` makes of each; a malformed one does not take its record's others along."""
    for place, item in enumerate(items):
        try:
            yield convert(item)
        except MALFORMED as error:
            problem = f"question {place}: {type(error).__name__}: {error}"
            yield Reason("malformed_record", problem)
