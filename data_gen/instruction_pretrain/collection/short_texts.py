"""Data sets of news, trivia and social media."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from data_gen.instruction_pretrain.collection.base import Dataset, Question
from data_gen.instruction_pretrain.collection.files import Files, Located, documents, rows
from data_gen.instruction_pretrain.collection.squad import (
    one_by_one,
    squad_questions,
    squad_records,
)
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.json_lines import parse_json
from ipt_jax.core.rejection import Reason

# Evidence is whole pages, longer than a sequence of tuning (4,096 tokens, Table 8) can hold.
TRIVIA_WORDS = 800


def _newsqa_records(files: Files) -> Iterator[Located]:
    """The stories of the JSON file, or the questions of the table, which names no splits."""
    for file in files.chosen():
        if file.name.endswith(".csv"):
            yield from file.rows()
            continue
        try:
            stories = file.json()["data"]
            splits = [story["type"] for story in stories]
        except (OSError, EOFError, ValueError, TypeError, KeyError) as error:
            yield Located(file.name, error=f"is not laid out as this set: {error!r}")
            continue
        for place, (story, split) in enumerate(zip(stories, splits, strict=True)):
            if not file.part or split == file.part:
                yield Located(f"{file.name}[{place}]", story)


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


def _trivia_records(files: Files) -> Iterator[Located]:
    """Questions with the files of their evidence."""
    folder = {
        file.name.rpartition("evidence/")[2]: file
        for file in files.find("evidence/web/*.txt", "evidence/wikipedia/*.txt")
    }
    for document in documents(files):
        if document.error:
            yield document
            continue
        try:
            asked = list(enumerate(document.value["Data"]))
        except (TypeError, KeyError) as error:
            yield Located(document.where, error=f"is not laid out as this set: {error!r}")
            continue
        for place, record in asked:
            yield Located(f"{document.where}[{place}]", {"asked": record, "folder": folder})


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


DATASETS = (
    Dataset(
        name="nlquad",
        domain="news",
        source="Soleimani et al. (2021); github.com/ASoleimaniB/NLQuAD",
        licence="CC BY-NC 3.0",
        train=("NLQuAD_train.json",),
        held_out=("NLQuAD_valid.json",),
        records=squad_records,
        questions=squad_questions,
    ),
    Dataset(
        name="newsqa",
        domain="news",
        source="Trischler et al. (2017); github.com/Maluuba/newsqa, built with CNN's stories",
        licence="the authors' own terms, the stories CNN's",
        train=("combined-newsqa-data-v1.json#train",),
        held_out=("combined-newsqa-data-v1.json#dev",),
        records=_newsqa_records,
        questions=_newsqa_questions,
    ),
    Dataset(
        name="triviaqa",
        domain="trivia",
        source="Joshi et al. (2017); nlp.cs.washington.edu/triviaqa, triviaqa-rc.tar.gz",
        licence="none stated",
        train=("qa/web-train.json", "qa/wikipedia-train.json"),
        held_out=("qa/web-dev.json", "qa/wikipedia-dev.json"),
        records=_trivia_records,
        questions=_trivia_questions,
    ),
    Dataset(
        name="tweetqa",
        domain="social_media",
        source="Xiong et al. (2019); tweetqa.github.io, TweetQA_data/",
        licence="CC BY-SA 4.0",
        train=("TweetQA_data/train.json", "data/train-*.parquet"),
        held_out=("TweetQA_data/dev.json", "data/validation-*.parquet"),
        records=rows,
        questions=_tweet_questions,
        hub="ucinlp/tweet_qa",
    ),
)
