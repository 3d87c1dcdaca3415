"""Data sets of encyclopedia articles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_gen.instruction_pretrain.collection.base import Dataset, Question
from data_gen.instruction_pretrain.collection.files import rows
from data_gen.instruction_pretrain.collection.squad import (
    conversation,
    squad_questions,
    squad_records,
)
from data_gen.instruction_pretrain.collection.tables import table_questions, table_records
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.rejection import Reason


def _topiocqa_questions(record: Any) -> Iterator[Question | Reason]:
    """One turn; a conversation changes its passages, and a passage has its turns in their order."""
    asked, answer = record["Question"], record["Answer"]
    if answer.strip() == "UNANSWERABLE":
        yield Reason("unanswerable", asked)
    else:
        before = tuple(record.get("Context", ())[::2])  # questions, each with its answer
        yield Question(record["Gold_passage"]["text"], Pair(asked, answer), before=before)


def _qed_questions(record: Any) -> Iterator[Question | Reason]:
    """The sentence that the answer follows from is the chain of thought, where there is one.

    Questions that QED's annotators explain by no single sentence have the answer of Natural
    Questions, that of the first annotator.
    """
    explained = record["annotation"]
    if explained["explanation_type"] == "single_sentence":
        spans = [answer["paragraph_reference"] for answer in explained["answer"]]
        rationale = explained["selected_sentence"]["string"]
    else:
        spans, rationale = next(iter(record["original_nq_answers"]), []), None
    answer = ", ".join(span["string"] for span in spans)
    yield Question(record["paragraph_text"], Pair(record["question_text"], answer, (), rationale))


def _hotpot_questions(record: Any) -> Iterator[Question | Reason]:
    """The paragraphs with supporting facts are the text.

    The others distract: on the development set all ten have 5,600 characters, the two 830, and
    only these two have a task.
    """
    context, facts = record["context"], record["supporting_facts"]
    if isinstance(context, dict):  # columns, as in the hub's tables
        paragraphs = list(zip(context["title"], context["sentences"], strict=True))
        wanted = set(facts["title"])
    else:
        paragraphs = [(title, sentences) for title, sentences in context]
        wanted = {title for title, _ in facts}
    missing = wanted - {title for title, _ in paragraphs}
    if missing:
        yield Reason("no_context", f"there is no paragraph {min(missing)!r}")
        return
    text = "\n".join(
        f"{title}: {''.join(said).strip()}" for title, said in paragraphs if title in wanted
    )
    yield Question(text, Pair(record["question"], record["answer"]))


DATASETS = (
    Dataset(
        name="squad",
        domain="encyclopedia",
        source="Rajpurkar et al. (2016); rajpurkar.github.io/SQuAD-explorer",
        licence="CC BY-SA 4.0",
        train=("train-v1.1.json", "plain_text/train*.parquet"),
        held_out=("dev-v1.1.json", "plain_text/validation*.parquet"),
        records=squad_records,
        questions=squad_questions,
        hub="rajpurkar/squad",
    ),
    Dataset(
        name="topiocqa",
        domain="encyclopedia",
        source="Adlakha et al. (2022); mcgill-nlp.github.io/topiocqa",
        licence="CC BY-NC-SA 4.0",
        train=("topiocqa_train.json", "topiocqa_train.jsonl"),
        held_out=("topiocqa_dev.json", "topiocqa_valid.jsonl"),
        records=rows,
        questions=_topiocqa_questions,
        hub="McGill-NLP/TopiOCQA",
    ),
    Dataset(
        name="quac",
        domain="encyclopedia",
        source="Choi et al. (2018); quac.ai",
        licence="CC BY-SA 4.0",
        train=("train_v0.2.json",),
        held_out=("val_v0.2.json",),
        records=squad_records,
        questions=lambda record: conversation(squad_questions(record)),
    ),
    Dataset(
        name="wikitablequestions",
        domain="encyclopedia",
        source="Pasupat and Liang (2015); github.com/ppasupat/WikiTableQuestions, data/, csv/",
        licence="CC BY-SA 4.0",
        train=("random-split-1-train.tsv",),
        held_out=("random-split-1-dev.tsv",),
        records=table_records,
        questions=table_questions,
    ),
    Dataset(
        name="qed",
        domain="encyclopedia",
        source="Lamm et al. (2021); github.com/google-research-datasets/QED",
        licence="CC BY-SA 3.0",
        train=("qed-train.jsonlines",),
        held_out=("qed-dev.jsonlines",),
        records=rows,
        questions=_qed_questions,
    ),
    Dataset(
        name="hotpotqa",
        domain="encyclopedia",
        source="Yang et al. (2018); hotpotqa.github.io",
        licence="CC BY-SA 4.0",
        train=("hotpot_train_v1.1.json", "distractor/train*.parquet"),
        held_out=("hotpot_dev_distractor_v1.json", "distractor/validation*.parquet"),
        records=rows,
        questions=_hotpot_questions,
        hub="hotpotqa/hotpot_qa",
    ),
)
