"""Data sets of encyclopedia articles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_gen.corpus.dataset_files import rows
from data_gen.instruction_pretrain.collection.base import Adapter, Question
from data_gen.instruction_pretrain.collection.questions import conversation
from data_gen.instruction_pretrain.collection.squad import squad_questions, squad_records
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


ADAPTERS: dict[str, Adapter] = {
    "squad": (squad_records, squad_questions),
    "topiocqa": (rows, _topiocqa_questions),
    "quac": (squad_records, lambda record: conversation(squad_questions(record))),
    "wikitablequestions": (table_records, table_questions),
    "qed": (rows, _qed_questions),
    "hotpotqa": (rows, _hotpot_questions),
}
