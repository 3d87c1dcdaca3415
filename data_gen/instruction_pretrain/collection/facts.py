"""Data sets of facts and of small worlds, made by experts to be reasoned about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from data_gen.instruction_pretrain.collection.base import Dataset, Question
from data_gen.instruction_pretrain.collection.files import Files, Located, rows, unquoted_rows
from data_gen.instruction_pretrain.collection.flan import FLAN, flan_records
from data_gen.instruction_pretrain.collection.nested import each
from data_gen.instruction_pretrain.collection.squad import one_by_one
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.rejection import Reason

_LINE = re.compile(r"(\d+) (.*)")
_MARKED = re.compile(r"(\([A-H]\)) (.*)", re.DOTALL)
_YES_NO = ["Yes", "No", "DK"]


def _babi_records(files: Files) -> Iterator[Located]:
    """Each question with what its story has told so far; line number 1 begins a story."""
    for file in files.chosen():
        story: list[str] = []
        for line in unquoted_rows(file):
            if line.error:
                yield line
                continue
            said, *answer = line.value
            match = _LINE.fullmatch(said)
            if match is None:
                yield Located(line.where, error=f"begins with no line number: {said[:60]!r}")
                continue
            if match[1] == "1":
                story = []
            if not answer:
                story.append(match[2].strip())
                continue
            record = {"text": " ".join(story), "question": match[2].strip(), "answer": answer[0]}
            yield Located(line.where, record)


def _babi_questions(record: Any) -> Iterator[Question | Reason]:
    yield Question(record["text"], Pair(record["question"], record["answer"].replace(",", ", ")))


def _stories(document: Any) -> Iterator[tuple[object, Any]]:
    yield from enumerate(document["data"])


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
    if isinstance(record["question"], dict):
        asked, choices = record["question"]["stem"], record["question"]["choices"]
        options = {choice["label"]: choice["text"] for choice in choices}
    else:  # a row of the hub's tables
        asked, choices = record["question"], record["choices"]
        options = dict(zip(choices["label"], choices["text"], strict=True))
    answer = options.get(record["answerKey"], record["answerKey"])
    text = f"{record['fact1']}\n{record['fact2']}"
    yield Question(text, Pair(asked, answer, tuple(options.values()), record["combinedfact"]))


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
    answer = options.get(record["answer"], record["answer"])
    yield Question(record["explanation"], Pair(record["question"], answer, tuple(options.values())))


_QASC, _ECQA = "Khot et al. (2020); ", "Aggarwal et al. (2021); "

DATASETS = (
    Dataset(
        name="spartqa",
        domain="expert_materials",
        source="Mirzaee et al. (2021); github.com/HLR/SpartQA_generation, SpartQA_Human.zip",
        licence="MIT",
        train=("human_train.json", "train_24k.json", "train.json"),
        held_out=("human_dev.json", "dev.json"),
        records=lambda files: each(files, _stories),
        questions=_spartqa_questions,
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
    Dataset(
        name="qasc",
        domain="expert_materials",
        source=f"{_QASC}allenai.org/data/qasc",
        licence="CC BY 4.0",
        train=("train.jsonl", "train-*.parquet"),
        held_out=("dev.jsonl", "validation-*.parquet"),
        records=rows,
        questions=_qasc_questions,
        hub="allenai/qasc",
        label="answerKey",
    ),
    Dataset(
        name="qasc_flan",
        domain="expert_materials",
        source=f"{_QASC}{FLAN}",
        licence="Apache-2.0",
        train=("qasc_train.tsv",),
        records=flan_records,
        questions=_flan_questions,
        copy_of="qasc",
    ),
    Dataset(
        name="ecqa",
        domain="expert_materials",
        source=f"{_ECQA}github.com/dair-iitd/ECQA-Dataset, files of generate_data.py",
        licence="CDLA-Sharing-1.0",
        train=("cqa_data_train.csv",),
        held_out=("cqa_data_val.csv",),
        records=rows,
        questions=_ecqa_questions,
    ),
    Dataset(
        name="ecqa_flan",
        domain="expert_materials",
        source=f"{_ECQA}{FLAN}",
        licence="Apache-2.0",
        train=("ecqa_train.tsv",),
        records=flan_records,
        questions=_flan_questions,
        copy_of="ecqa",
    ),
)
