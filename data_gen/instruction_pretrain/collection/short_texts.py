"""Data sets of news, trivia and social media."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from data_gen.corpus.dataset_files import DataFile, Files, Located, by_file, rows
from data_gen.corpus.nested_records import laid_out, pieces
from data_gen.instruction_pretrain.collection.base import Adapter, Question
from data_gen.instruction_pretrain.collection.questions import one_by_one
from data_gen.instruction_pretrain.collection.squad import squad_questions, squad_records
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.json_lines import parse_json
from ipt_jax.core.rejection import Reason

# Evidence is whole pages, longer than a sequence of tuning (4,096 tokens, Table 8) can hold.
TRIVIA_WORDS = 800


@by_file
def _newsqa_records(files: Files, file: DataFile) -> Iterator[Located]:
    """The stories of the JSON file, or the questions of the table, which names no splits."""

    def stories(document: Any) -> Iterator[tuple[str, Any]]:
        for place, story in enumerate(document["data"]):
            if story["type"] == file.part or not file.part:
                yield f"[{place}]", story

    return file.rows() if file.name.endswith(".csv") else laid_out(file, stories)


def _newsqa_questions(record: Any) -> Iterator[Question | Reason]:
    """The answer that most of the annotators agree on."""
    if "story_text" in record:
        yield _newsqa_row(record)
        return
    text = record["text"]

    def question(asked: Any) -> Question | Reason:
        agreed = asked["consensus"]
        if agreed.get("badQuestion") or agreed.get("noAnswer"):
            problem = "no answer in it" if agreed.get("noAnswer") else "a bad question"
            return Reason("unanswerable", f"{problem}, say most: {asked['q']}")
        return Question(text, Pair(asked["q"], text[agreed["s"] : agreed["e"]]))

    yield from one_by_one(record["questions"], question)


def _newsqa_row(row: dict[str, str]) -> Question | Reason:
    """A question of the table, with `196:228|196:202,217:228|None` for three annotators."""
    votes = Counter(row["answer_char_ranges"].lower().split("|"))
    if row.get("validated_answers"):
        votes = Counter(parse_json(row["validated_answers"]))
    ranges = votes.most_common(1)[0][0]
    if ranges in ("none", "bad_question"):
        return Reason("unanswerable", row["question"])
    spans = [span.split(":") for span in ranges.split(",")]
    answer = ", ".join(row["story_text"][int(start) : int(end)].strip() for start, end in spans)
    return Question(row["story_text"], Pair(row["question"], answer))


@by_file
def _trivia_records(files: Files, file: DataFile) -> Iterator[Located]:
    """Questions with the files of their evidence."""
    found = files.find("evidence/web/*.txt", "evidence/wikipedia/*.txt")
    folder = {one.name.rpartition("evidence/")[2]: one for one in found}

    def questions(document: Any) -> Iterator[tuple[str, Any]]:
        for place, record in enumerate(document["Data"]):
            yield f"[{place}]", {"asked": record, "folder": folder}

    return pieces(file, questions)


def _trivia_questions(record: Any) -> Iterator[Question | Reason]:
    """One question for each document whose beginning holds the answer, or another name for it."""
    asked, folder = record["asked"], record["folder"]
    answer = asked["Answer"]
    names = "|".join(re.escape(name) for name in {answer["Value"], *answer["Aliases"]} if name)
    said = re.compile(rf"(?<!\w)(?:{names})(?!\w)", re.IGNORECASE)
    evidence = [f"wikipedia/{page['Filename']}" for page in asked.get("EntityPages", [])]
    evidence += [f"web/{page['Filename']}" for page in asked.get("SearchResults", [])]
    found = False
    for name in dict.fromkeys(evidence):
        text = _beginning(folder[name].text()) if name in folder else ""
        if said.search(text):
            found = True
            yield Question(text, Pair(asked["Question"], answer["Value"]))
    if not found:
        problem = f"none of {len(evidence)} documents begins with the answer"
        yield Reason("no_context", f"{problem}: {asked['Question']}")


def _beginning(text: str) -> str:
    words = list(itertools.islice(re.finditer(r"\S+", text), TRIVIA_WORDS))
    return text[: words[-1].end()] if words else ""


def _tweet_questions(record: Any) -> Iterator[Question | Reason]:
    answers = record["Answer"]
    yield Question(record["Tweet"], Pair(record["Question"], answers[0] if answers else ""))


ADAPTERS: dict[str, Adapter] = {
    "nlquad": (squad_records, squad_questions),
    "newsqa": (_newsqa_records, _newsqa_questions),
    "triviaqa": (_trivia_records, _trivia_questions),
    "tweetqa": (rows, _tweet_questions),
}
