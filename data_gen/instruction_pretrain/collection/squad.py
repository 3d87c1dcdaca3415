"""SQuAD's layout, which several data sets have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_gen.corpus.nested_records import nested
from data_gen.instruction_pretrain.collection.base import Question
from data_gen.instruction_pretrain.collection.questions import one_by_one
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.rejection import Reason

# What the layout's conversational sets answer where the text holds no answer, and append to texts.
CANNOT_ANSWER = "CANNOTANSWER"


def paragraphs(document: Any) -> Iterator[tuple[str, Any]]:
    """The paragraphs of an official document."""
    for number, article in enumerate(document["data"]):
        found = article.get("paragraphs") if isinstance(article, dict) else None
        if isinstance(found, list):
            yield from ((f":{number}.{place}", one) for place, one in enumerate(found))
        else:
            yield f":{number}", article  # which is no paragraph, and is counted as such


squad_records = nested(paragraphs)


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
