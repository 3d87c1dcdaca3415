"""NLQuAD, NewsQA, TriviaQA and TweetQA: real files or official layouts with texts of ours."""

import csv
import json
from pathlib import Path

import pytest

from data_gen.instruction_pretrain.collection import DATASETS, Gathered, gather
from data_gen.instruction_pretrain.collection.short_texts import TRIVIA_WORDS
from data_gen.instruction_pretrain.formats import Pair


def pairs(found: Gathered) -> list[Pair]:
    return [pair for example in found.examples for pair in example.pairs]


def write(folder: Path, name: str, value: object) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def test_nlquad_has_squads_layout_and_long_answers(tmp_path: Path) -> None:
    answer = {"text": "Rain fell for days. The dam held.", "answer_start": 0, "answer_end": 33}
    asked = [{"id": "1", "question": "What happened?", "answers": [answer]}, {"id": "2"}]
    paragraph = {"context": "Rain fell for days. The dam held. No one was hurt.", "qas": asked}
    article = {"title": "Rain", "date": "1 May 2020", "paragraphs": [paragraph]}
    write(tmp_path, "NLQuAD_train.json", {"version": "1.0", "data": [article]})
    found = gather(DATASETS["nlquad"], tmp_path)
    assert pairs(found) == [Pair("What happened?", "Rain fell for days. The dam held.")]
    assert [(u.reason, u.where) for u in found.rejected] == [
        ("malformed_record", "NLQuAD_train.json:0.0")
    ]


# NewsQA

STORY = "(OURS) -- The ferry sank on Monday. Nine people swam ashore.\n\n\n\nIt was old."


def span(answer: str) -> tuple[int, int]:
    start = STORY.index(answer)
    return start, start + len(answer) + 1  # an end may stand behind a space


def news(split: str, *consensus: dict[str, object]) -> dict[str, object]:
    questions = [
        {"q": f"Q{number}?", "consensus": agreed, "isAnswerAbsent": 0, "isQuestionBad": 0}
        for number, agreed in enumerate(consensus)
    ]
    return {"storyId": f"./s/{split}.story", "text": STORY, "type": split, "questions": questions}


def test_newsqa_has_the_answer_that_most_agree_on(tmp_path: Path) -> None:
    start, end = span("Nine people")
    stories = [
        news("train", {"s": start, "e": end}, {"noAnswer": True}, {"badQuestion": True}, {"s": 1}),
        news("dev", {"s": start, "e": end}),
        news("train"),
    ]
    write(tmp_path, "combined-newsqa-data-v1.json", {"data": stories, "version": "1"})
    dataset = DATASETS["newsqa"]
    found = gather(dataset, tmp_path)
    assert [(e.text, e.pairs) for e in found.examples] == [(STORY, (Pair("Q0?", "Nine people"),))]
    first, last = "combined-newsqa-data-v1.json[0]", "combined-newsqa-data-v1.json[2]"
    assert [(u.reason, u.where, u.detail) for u in found.rejected] == [
        ("unanswerable", first, "no answer in it, say most: Q1?"),
        ("unanswerable", first, "a bad question, say most: Q2?"),
        ("malformed_record", first, "question 3: KeyError: 'e'"),
        ("no_question", last, "the record holds none"),
    ]
    assert len(pairs(gather(dataset, tmp_path, files=dataset.held_out))) == 1


def test_newsqa_of_the_table(tmp_path: Path) -> None:
    nine, monday = (":".join(map(str, span(answer))) for answer in ("Nine people", "Monday"))
    rows = [
        ("Who swam?", f"{monday}|{nine}|{nine},{monday}|{nine}", ""),
        ("When?", f"None|{nine}|None", ""),
        ("What day?", f"{nine}|None", json.dumps({"none": 1, monday: 2})),
        ("Which two?", f"{nine},{monday}", ""),
        ("Where?", "1:x", ""),
    ]
    with (tmp_path / "combined-newsqa-data-v1.csv").open("w", newline="", encoding="utf-8") as f:
        table = csv.writer(f)
        table.writerow(
            ["story_id", "question", "answer_char_ranges", "validated_answers", "story_text"]
        )
        table.writerows(["./s/1.story", *row, STORY] for row in rows)
    found = gather(DATASETS["newsqa"], tmp_path, files=["combined-newsqa-data-v1.csv"])
    assert pairs(found) == [
        Pair("Who swam?", "Nine people"),
        Pair("What day?", "Monday."),
        Pair("Which two?", "Nine people, Monday."),
    ]
    assert found.reasons == {"unanswerable": 1, "malformed_record": 1}


@pytest.mark.parametrize("text", ["{", "[]", '{"data": [{"text": "t"}]}'])
def test_newsqa_in_another_layout_is_one_unreadable_file(tmp_path: Path, text: str) -> None:
    write(tmp_path, "combined-newsqa-data-v1.json", text)
    found = gather(DATASETS["newsqa"], tmp_path)
    assert found.reasons == {"malformed_file": 1}
    assert found.rejected[0].where == "combined-newsqa-data-v1.json"


# TriviaQA


def test_trivia_of_the_official_files(shared: Path) -> None:
    found = gather(DATASETS["triviaqa"], shared / "data/hf_datasets_fixtures/trivia_qa")
    assert found.records == 4  # three questions of the web, one of the encyclopedia
    nobel = Pair("Which American-born Sinclair won the Nobel Prize for Literature in 1930?", "")
    assert [(e.text.split("\n")[0], e.pairs[0].instruction) for e in found.examples] == [
        ("The Nobel Prize in Literature 1930", nobel.instruction),
        ("Why Don’t More Americans Win the Nobel Prize? - The New Yorker", nobel.instruction),
        ("Judi Dench - IMDb", "Where in England was Dame Judi Dench born?"),
        ("Dame Judi Dench a star from York England", "Where in England was Dame Judi Dench born?"),
    ]
    assert [pair.response for pair in pairs(found)] == [
        *("Sinclair Lewis", "Sinclair Lewis", "York", "York")
    ]
    places = [(u.reason, u.where.rpartition("qa/")[2]) for u in found.rejected]
    assert places == [
        ("no_context", "web-train.json[2]"),
        ("no_context", "wikipedia-train.json[0]"),
    ]


def trivia(asked: str, value: str, *files: str, aliases: tuple[str, ...] = ()) -> dict[str, object]:
    pages = [{"Filename": file, "Title": file} for file in files]
    answer = {"Value": value, "Aliases": [value, *aliases], "Type": "FreeForm"}
    return {"Question": asked, "Answer": answer, "EntityPages": pages}


def test_trivia_needs_the_answer_in_the_beginning_of_a_document(tmp_path: Path) -> None:
    long = " ".join(["word"] * (TRIVIA_WORDS - 1))
    write(tmp_path, "evidence/wikipedia/C#.txt", f"{long} here beyond")
    write(tmp_path, "evidence/wikipedia/B.txt", "The Bard wrote it.\n\nHe lived long ago.")
    data = [
        trivia("Who?", "Shakespeare", "B.txt", "C#.txt", aliases=("the bard", "")),
        trivia("Here?", "here", "C#.txt", "C#.txt"),
        trivia("There?", "beyond", "C#.txt"),
        trivia("Part of a word?", "live", "B.txt"),
        trivia("No file?", "x", "D.txt"),
        {"Question": "No answer?"},
    ]
    write(tmp_path, "qa/wikipedia-train.json", {"Data": data, "Domain": "Wikipedia"})
    found = gather(DATASETS["triviaqa"], tmp_path)
    assert [(e.text.split()[-1], e.pairs) for e in found.examples] == [
        ("ago.", (Pair("Who?", "Shakespeare"),)),
        ("here", (Pair("Here?", "here"),)),
    ]
    assert len(found.examples[1].text.split()) == TRIVIA_WORDS
    name = "qa/wikipedia-train.json"
    assert [(u.reason, u.where) for u in found.rejected] == [
        ("no_context", f"{name}[2]"),
        ("no_context", f"{name}[3]"),
        ("no_context", f"{name}[4]"),
        ("malformed_record", f"{name}[5]"),
    ]
    write(tmp_path, "qa/wikipedia-train.json", {"data": []})
    assert gather(DATASETS["triviaqa"], tmp_path).reasons == {"malformed_file": 1}


# TweetQA


def test_tweets_of_the_official_files(shared: Path) -> None:
    dataset = DATASETS["tweetqa"]
    folder = shared / "data/hf_datasets_fixtures/tweet_qa"
    found = gather(dataset, folder)
    assert (len(found.examples), len(pairs(found)), found.reasons) == (5, 5, {})
    asked = "at which school were first responders on the scene for?"
    assert pairs(found)[0] == Pair(asked, "independence high school")
    held_out = gather(dataset, folder, files=dataset.held_out)
    assert [len(example.pairs) for example in held_out.examples] == [2, 2, 1]
    assert held_out.examples[0].pairs[0] == Pair("who has the most to lose", "w nj")
    without = gather(dataset, folder, files=["TweetQA_data/test.json"])
    assert without.reasons == {"malformed_record": 5}  # the test file has no answers
    assert without.rejected[0].where == "default/tweetqa.zip/TweetQA_data/test.json[0]"
    assert "'Answer'" in without.rejected[0].detail


def test_tweets_without_an_answer(tmp_path: Path) -> None:
    records = [{"Question": "who?", "Answer": [], "Tweet": "We did."}]
    write(tmp_path, "TweetQA_data/train.json", records)
    assert gather(DATASETS["tweetqa"], tmp_path).reasons == {"no_answer": 1}
