"""Data sets whose texts come from several domains."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from data_gen.corpus.dataset_files import (
    UNREADABLE,
    DataFile,
    Files,
    Located,
    rows,
    unreadable,
)
from data_gen.corpus.nested_records import listed, nested
from data_gen.instruction_pretrain.collection.base import Adapter, Question
from data_gen.instruction_pretrain.collection.questions import (
    choice,
    conversation,
    labelled,
    one_by_one,
)
from data_gen.instruction_pretrain.collection.squad import answered, asked_in, squad_records
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.rejection import Reason

# Marks of sentences in MultiRC's own files.
_SENTENCE = re.compile(r"<b>Sent \d+: </b>|<br>")


def _coqa_questions(record: Any) -> Iterator[Question | Reason]:
    """The turns of a dialogue as pairs of one text, `unknown` a pair too (Table 13)."""
    turns = list(zip(record["questions"], record["answers"], strict=True))

    def question(turn: tuple[Any, Any]) -> Question:
        asked, answer = turn
        if asked["turn_id"] != answer["turn_id"]:
            raise ValueError(f"question {asked['turn_id']} has answer {answer['turn_id']}")
        return Question(record["story"], Pair(asked["input_text"], answer["input_text"]))

    return conversation(one_by_one(turns, question))


def _doqa_questions(record: Any) -> Iterator[Question | Reason]:
    """The turns of a dialogue on a reply, with the answers as the expert worded them."""
    text = record["context"]
    turns = one_by_one(record["qas"], lambda asked: answered(text, asked, "input_text"))
    return conversation(turns)


def _ropes_questions(record: Any) -> Iterator[Question | Reason]:
    """Background and situation are the text."""
    text = f"{record['background'].strip()}\n{record['situation'].strip()}"
    return one_by_one(asked_in(record), lambda asked: answered(text, asked))


def _quartz_questions(record: Any) -> Iterator[Question | Reason]:
    asked = record["question"]
    yield choice(record["para"], asked["stem"], labelled(asked["choices"]), record["answerKey"])


def _multirc_questions(record: Any) -> Iterator[Question | Reason]:
    """Multiple choice where one answer is right; all right answers as one where several are.

    A response to multiple choice is one option (Table 7), and where several answers are right,
    each may be a part of what was asked for.
    """
    passage = record["passage"] if "passage" in record else record["paragraph"]
    text = _SENTENCE.sub("", passage["text"])

    def question(asked: Any) -> Question | Reason:
        if any(answer.get("label") == -1 for answer in asked["answers"]):
            return Reason("unlabelled", asked["question"])
        options = tuple(answer["text"] for answer in asked["answers"])
        right = [
            answer["text"]
            for answer in asked["answers"]
            if (answer["label"] if "label" in answer else answer["isAnswer"])
        ]
        choose = len(right) == 1 and len(options) > 1
        return Question(text, Pair(asked["question"], "; ".join(right), options if choose else ()))

    return one_by_one(passage["questions"], question)


def _quail_records(files: Files) -> Iterator[Located]:
    """Rows; or of the XML files, the same questions again, those whose options are shuffled."""
    chosen = files.chosen()
    tables = [file for file in chosen if not file.name.endswith(".xml")]
    shuffled = [file for file in chosen if "randomized" in file.name]
    for file in tables or shuffled or chosen:
        try:
            yield from _quail_xml(file) if file.name.endswith(".xml") else file.rows()
        except UNREADABLE as error:
            yield unreadable(file, error)


def _quail_xml(file: DataFile) -> Iterator[Located]:
    for text in ElementTree.fromstring(file.text()).findall("text"):
        context = (text.findtext("text_body") or "").strip()
        for asked in text.iterfind("questions/q"):
            answers = asked.findall("a")
            right = [n for n, answer in enumerate(answers) if answer.get("correct") == "True"]
            record = {
                "context": context,
                "question": (asked.text or "").strip(),
                "answers": [(answer.text or "").strip() for answer in answers],
                "correct_answer_id": right[0] if len(right) == 1 else None,
            }
            yield Located(f"{file.name}:{text.get('id')}.{asked.get('id')}", record)


def _quail_questions(record: Any) -> Iterator[Question | Reason]:
    """The option `not enough information` is what answers an unanswerable question."""
    options, label = tuple(record["answers"]), int(record["correct_answer_id"])
    yield Question(record["context"], Pair(record["question"], options[label], options))


def _cosmos_questions(record: Any) -> Iterator[Question | Reason]:
    options, label = tuple(record[f"answer{n}"] for n in range(4)), int(record["label"])
    yield Question(record["context"], Pair(record["question"], options[label], options))


ADAPTERS: dict[str, Adapter] = {
    "coqa": (nested(listed), _coqa_questions),
    "doqa": (squad_records, _doqa_questions),
    "ropes": (squad_records, _ropes_questions),
    "quartz": (rows, _quartz_questions),
    "multirc": (nested(listed), _multirc_questions),
    "quail": (_quail_records, _quail_questions),
    "cosmosqa": (rows, _cosmos_questions),
}
