"""Data sets of papers and reports that experts wrote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_gen.corpus.nested_records import entries, nested
from data_gen.instruction_pretrain.collection.base import Adapter, Question
from data_gen.instruction_pretrain.collection.questions import conversation, one_by_one
from data_gen.instruction_pretrain.collection.squad import squad_questions, squad_records
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.rejection import Reason


def _qasper_questions(record: Any) -> Iterator[Question | Reason]:
    """The questions of a whole paper."""
    lines = [record["title"], record["abstract"]]
    for section in record["full_text"]:
        lines += [section["section_name"] or "", *section["paragraphs"]]
    text = "\n".join(line.strip() for line in lines if line.strip())
    return one_by_one(record["qas"], lambda asked: _qasper_question(text, asked))


def _qasper_question(text: str, asked: Any) -> Question | Reason:
    """Of several annotators the first who found an answer has it."""
    answers = [annotation["answer"] for annotation in asked["answers"]]
    if answers and all(answer["unanswerable"] for answer in answers):
        return Reason("unanswerable", asked["question"])
    found = [(said, _place(text, answer)) for answer in answers if (said := _qasper_answer(answer))]
    answer, at = found[0] if found else ("", None)
    return Question(text, Pair(asked["question"], answer), at=at)


def _qasper_answer(answer: Any) -> str:
    if answer["unanswerable"]:
        return ""
    if answer["yes_no"] is not None:
        return "Yes" if answer["yes_no"] else "No"
    return answer["free_form_answer"].strip() or ", ".join(answer["extractive_spans"])


def _place(text: str, answer: Any) -> tuple[int, int] | None:
    """Where the first paragraph of an answer's evidence stands that the text holds (tables and
    figures it does not), else the first of its spans. Paragraphs are told by their beginnings:
    further on, formulas are spelt in other ways."""
    for words in map(str.strip, (*answer.get("evidence", ()), *answer["extractive_spans"])):
        start = text.find(words[:60]) if words else -1
        if start >= 0:
            return start, min(start + len(words), len(text))
    return None


def _conversations(document: Any) -> Iterator[tuple[str, Any]]:
    """Of the official list, or of an object that holds such lists."""
    parts = document.items() if isinstance(document, dict) else [("", document)]
    for name, records in parts:
        for place, record in enumerate(records):
            yield f":{name}[{place}]", record


def _convfinqa_questions(record: Any) -> Iterator[Question | Reason]:
    """The turns of a conversation on a page of a report: prose, a table, prose.

    A turn's answer is the result of its program, as the official files hold it; the re-laid-out
    copy also has it as the experts wrote it (`-21.1%` for -0.21053).
    """
    if "doc" in record:
        page, dialogue = record["doc"], record["dialogue"]
        text = _page(page["pre_text"], _rows(page["table"]), page["post_text"])
        turns = zip(dialogue["conv_questions"], dialogue["conv_answers"], strict=True)
    else:
        text = _page(" ".join(record["pre_text"]), record["table"], " ".join(record["post_text"]))
        if "cur_dial" in record:  # the official turn-level files, whose last question is asked
            *before, asked = record["cur_dial"]
            yield Question(text, Pair(asked, _number(record["exe_ans"])), before=tuple(before))
            return
        dialogue = record["annotation"]
        turns = zip(dialogue["dialogue_break"], dialogue["exe_ans_list"], strict=True)
    yield from conversation(Question(text, Pair(said, _number(answer))) for said, answer in turns)


def _page(before: str, table: list[list[str]], after: str) -> str:
    lines = [before, *(" | ".join(row) for row in table), after]
    # Where a page has no prose after its table, the files hold a single full stop.
    return "\n".join(line.strip() for line in lines if line.strip(" ."))


def _rows(columns: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The rows of a table that is given by columns, below a row of their names."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [[name, *(_number(cells.get(name)) for cells in columns.values())] for name in names]
    return [["", *columns], *rows]


def _number(value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _pubmed_questions(record: Any) -> Iterator[Question | Reason]:
    """The abstract without its conclusion, which is the chain of thought to yes, no or maybe."""
    if "context" in record:  # a row of the hub's tables
        contexts, decision = record["context"]["contexts"], record.get("final_decision")
        asked, conclusion = record["question"], record["long_answer"]
    else:
        contexts, decision = record["CONTEXTS"], record.get("final_decision")
        asked, conclusion = record["QUESTION"], record["LONG_ANSWER"]
    yield Question("\n".join(contexts), Pair(asked, decision or "", rationale=conclusion))


ADAPTERS: dict[str, Adapter] = {
    "qasper": (nested(entries), _qasper_questions),
    "covid_qa": (squad_records, squad_questions),
    "convfinqa": (nested(_conversations), _convfinqa_questions),
    "pubmedqa": (nested(entries), _pubmed_questions),
}
