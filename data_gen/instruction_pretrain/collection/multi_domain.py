"""Data sets whose texts come from several domains."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from data_gen.instruction_pretrain.collection.base import MULTI_DOMAIN, Dataset, Question
from data_gen.instruction_pretrain.collection.files import DataFile, Files, Located, rows
from data_gen.instruction_pretrain.collection.nested import each
from data_gen.instruction_pretrain.collection.squad import (
    answered,
    asked_in,
    conversation,
    one_by_one,
    squad_records,
)
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.rejection import Reason

# Marks of sentences in MultiRC's own files.
_SENTENCE = re.compile(r"<b>Sent \d+: </b>|<br>")


def _dialogues(document: Any) -> Iterator[tuple[object, Any]]:
    """Of the official document, or of a bare list of them."""
    yield from enumerate(document["data"] if isinstance(document, dict) else document)


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
    options = {choice["label"]: choice["text"] for choice in record["question"]["choices"]}
    answer = options.get(record["answerKey"], record["answerKey"])
    yield Question(
        record["para"], Pair(record["question"]["stem"], answer, tuple(options.values()))
    )


def _multirc_records(files: Files) -> Iterator[Located]:
    """Passages of SuperGLUE's lines, or of the official document."""
    if any(file.name.endswith(".jsonl") for file in files.chosen()):
        yield from rows(files)
    else:
        yield from each(files, lambda document: enumerate(document["data"]))


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
        yield from _quail_xml(file) if file.name.endswith(".xml") else file.rows()


def _quail_xml(file: DataFile) -> Iterator[Located]:
    try:
        texts = ElementTree.fromstring(file.text()).findall("text")
    except (OSError, EOFError, ValueError, ElementTree.ParseError) as error:
        yield Located(file.name, error=f"cannot be read: {error}")
        return
    for text in texts:
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
    options = tuple(record["answers"])
    label = int(record["correct_answer_id"])
    yield Question(record["context"], Pair(record["question"], options[label], options))


def _cosmos_questions(record: Any) -> Iterator[Question | Reason]:
    options = tuple(record[f"answer{number}"] for number in range(4))
    label = int(record["label"])
    yield Question(record["context"], Pair(record["question"], options[label], options))


DATASETS = (
    Dataset(
        name="coqa",
        domain=MULTI_DOMAIN,
        source="Reddy et al. (2019); stanfordnlp.github.io/coqa",
        licence="by source of the text; of RACE's texts research only, of MCTest's the MSR licence",
        train=("coqa-train-v1.0.json",),
        held_out=("coqa-dev-v1.0.json",),
        records=lambda files: each(files, _dialogues),
        questions=_coqa_questions,
    ),
    Dataset(
        name="doqa",
        domain=MULTI_DOMAIN,
        source="Campos et al. (2020); ixa.eus/node/12931, doqa-v2.1/doqa_dataset/",
        licence="none stated",
        train=("doqa-*-train-v2.1.json",),
        held_out=("doqa-*-dev-v2.1.json",),
        records=squad_records,
        questions=_doqa_questions,
    ),
    Dataset(
        name="ropes",
        domain=MULTI_DOMAIN,
        source="Lin et al. (2019); allenai.org/data/ropes",
        licence="CC BY 4.0",
        train=("train-v1.0.json", "plain_text/train*.parquet"),
        held_out=("dev-v1.0.json", "plain_text/validation*.parquet"),
        records=squad_records,
        questions=_ropes_questions,
        hub="allenai/ropes",
    ),
    Dataset(
        name="quartz",
        domain=MULTI_DOMAIN,
        source="Tafjord et al. (2019); allenai.org/data/quartz, quartz-dataset-v1-aug2019/",
        licence="CC BY 4.0",
        train=("train.jsonl",),
        held_out=("dev.jsonl",),
        records=rows,
        questions=_quartz_questions,
        label="answerKey",
    ),
    Dataset(
        name="multirc",
        domain=MULTI_DOMAIN,
        source="Khashabi et al. (2018); cogcomp.seas.upenn.edu/multirc, or its copy in SuperGLUE",
        licence="none stated",
        train=("train_456-fixedIds.json", "MultiRC/train.jsonl"),
        held_out=("dev_83-fixedIds.json", "MultiRC/val.jsonl"),
        records=_multirc_records,
        questions=_multirc_questions,
    ),
    Dataset(
        name="quail",
        domain=MULTI_DOMAIN,
        source="Rogers et al. (2020); github.com/text-machine-lab/quail, quail_v1.3/json/",
        licence="CC BY-NC-SA 4.0",
        train=("quail_v1.3/json/train.jsonl", "quail/train-*.parquet", "quail_1.?_train*.xml"),
        held_out=("quail/validation-*.parquet", "quail_1.?_dev*.xml"),
        records=_quail_records,
        questions=_quail_questions,
        hub="textmachinelab/quail",
        label="correct_answer_id",
    ),
    Dataset(
        name="cosmosqa",
        domain=MULTI_DOMAIN,
        source="Huang et al. (2019); github.com/wilburOne/cosmosqa, data/",
        licence="CC BY 4.0",
        train=("train.csv",),
        held_out=("valid.csv",),
        records=rows,
        questions=_cosmos_questions,
        hub="allenai/cosmos_qa",
        label="label",
    ),
)
