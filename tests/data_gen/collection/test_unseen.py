"""SocialIQA, TextbookQA, WikiWhy and FEVER: the official layouts with texts of ours."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_gen.instruction_pretrain.collection import DATASETS, Gathered, gather
from data_gen.instruction_pretrain.formats import Pair


def pairs(found: Gathered) -> list[Pair]:
    return [pair for example in found.examples for pair in example.pairs]


def write(folder: Path, name: str, value: object) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def reasons(found: Gathered) -> list[tuple[str, str]]:
    return [(u.reason, u.where) for u in found.rejected]


# SocialIQA


def social(asked: str, context: str = "Kim lent Lee a pen.") -> dict[str, str]:
    answers = {"answerA": "be kind", "answerB": "go home", "answerC": "sleep"}
    return {"context": context, "question": asked, **answers}


def test_socialiqa_with_its_labels_in_a_file_beside(tmp_path: Path) -> None:
    name = "socialiqa-train-dev/train.jsonl"
    records = [social("Why?"), social("What next?"), social("How?"), {"context": "x"}, [], 7]
    write(tmp_path, name, lines(*records[:3]) + "{\n" + lines(*records[3:5]))
    write(tmp_path, "socialiqa-train-dev/train-labels.lst", "1\n3\n4\n1\n1\n1\n")
    found = gather(DATASETS["socialiqa"], tmp_path)
    options = ("be kind", "go home", "sleep")
    assert [example.text for example in found.examples] == ["Kim lent Lee a pen."]
    assert pairs(found) == [Pair("Why?", "be kind", options), Pair("What next?", "sleep", options)]
    assert reasons(found) == [
        *(("malformed_record", f"{name}:3"), ("malformed_file", f"{name}:4")),
        *(("malformed_record", f"{name}:5"), ("malformed_record", f"{name}:6")),
    ]


def test_socialiqa_with_too_few_labels_or_none(tmp_path: Path) -> None:
    name = "socialiqa-train-dev/train.jsonl"
    write(tmp_path, name, lines(social("Why?"), social("How?")))
    found = gather(DATASETS["socialiqa"], tmp_path)
    assert reasons(found) == [("unlabelled", f"{name}:1"), ("unlabelled", f"{name}:2")]
    write(tmp_path, "socialiqa-train-dev/train-labels.lst", "2\n")
    found = gather(DATASETS["socialiqa"], tmp_path)
    assert [pair.response for pair in pairs(found)] == ["go home"]
    assert reasons(found) == [("unlabelled", f"{name}:2")]


def test_socialiqa_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    table = pa.Table.from_pylist([{**social("Why?"), "label": "2"}])
    pq.write_table(table, tmp_path / "data/train-00000-of-00001.parquet")
    assert [p.response for p in pairs(gather(DATASETS["socialiqa"], tmp_path))] == ["go home"]


def test_socialiqa_in_lines_with_their_labels(tmp_path: Path) -> None:
    records = [{**social(asked), "label": label} for asked, label in (("Why?", "3"), ("How?", ""))]
    write(tmp_path, "train.jsonl", lines(*records))
    found = gather(DATASETS["socialiqa"], tmp_path)
    assert [pair.response for pair in pairs(found)] == ["sleep"]
    assert reasons(found) == [("unlabelled", "train.jsonl:2")]


# TextbookQA


def topic(order: str, text: str) -> dict[str, object]:
    return {"globalID": order, "topicName": "x", "orderID": order, "content": {"text": text}}


def asked(words: str, answer: str, **choices: str) -> dict[str, object]:
    return {
        "beingAsked": {"processedText": words, "rawText": f"1. {words}"},
        "correctAnswer": {"processedText": answer, "rawText": answer},
        "answerChoices": {
            letter: {"idStructural": f"{letter}.", "processedText": said, "rawText": said}
            for letter, said in choices.items()
        },
    }


def test_textbooks_have_choices_and_free_answers(tmp_path: Path) -> None:
    questions = {
        "NDQ_1": asked("rocks melt into", "b", b="magma", a="sand"),
        "NDQ_2": asked("rocks are soft.", "a", a="false", b="true"),
        "NDQ_3": asked("define magma", "melted rock"),
        "NDQ_4": asked("which?", "c", a="x", b="y"),
        "NDQ_5": {"beingAsked": {"processedText": "why?"}},
    }
    lesson = {
        "globalID": "L_1",
        "topics": {"T_2": topic("t_02", "Magma is hot."), "T_1": topic("t_01", "Rocks melt.")},
        "questions": {"nonDiagramQuestions": questions, "diagramQuestions": {"DQ_1": {}}},
    }
    empty = {"topics": {}, "questions": {"nonDiagramQuestions": {}}}
    write(tmp_path, "train/tqa_v1_train.json", [lesson, empty, {"globalID": "L_3"}])
    found = gather(DATASETS["textbookqa"], tmp_path)
    assert [example.text for example in found.examples] == ["Rocks melt.\nMagma is hot."]
    assert pairs(found) == [
        Pair("rocks melt into", "magma", ("sand", "magma")),
        Pair("rocks are soft.", "false", ("false", "true")),
        Pair("define magma", "melted rock"),
    ]
    name = "train/tqa_v1_train.json"
    assert reasons(found) == [
        *(("answer_not_among_options", f"{name}[0]"), ("malformed_record", f"{name}[0]")),
        *(("no_question", f"{name}[1]"), ("malformed_record", f"{name}[2]")),
    ]


# WikiWhy


def test_wikiwhy_explains_before_it_answers(tmp_path: Path) -> None:
    columns = {
        "question": {"7": "Why did it burn?", "3": "Why did it fall?", "5": "Why?"},
        "cause": {"7": "lightning", "3": "an earthquake", "5": "rain"},
        "effect": {"7": "it burnt", "3": "it fell", "5": "it is wet"},
        "explanation": {"7": "Lightning sets wood on fire.", "3": "", "5": "It rains."},
    }
    texts = {"7": "The mill burnt.", "3": "The tower fell.", "9": "Nothing is asked."}
    splits = {key: "train" for key in texts}
    folder = "dataset/v1.2"
    write(tmp_path, f"{folder}/context.json", {"ctx": texts, "split": splits})
    for name, column in columns.items():
        write(tmp_path, f"{folder}/{name}.json", {name: column})
        write(tmp_path, f"dataset/v1.0/{name}.json", {name: {"7": "old"}})
    write(tmp_path, "dataset/v1.0/context.json", {"ctx": {"7": "old"}})
    found = gather(DATASETS["wikiwhy"], tmp_path)
    assert [(example.text, example.pairs) for example in found.examples] == [
        (
            "The mill burnt.",
            (Pair("Why did it burn?", "lightning", (), "Lightning sets wood on fire."),),
        ),
        ("The tower fell.", (Pair("Why did it fall?", "an earthquake"),)),
    ]
    assert reasons(found) == [("malformed_record", f"{folder}/context.json:9")]
    (tmp_path / folder / "cause.json").write_text("{", encoding="utf-8")
    assert gather(DATASETS["wikiwhy"], tmp_path).reasons == {"malformed_file": 1}


def test_wikiwhy_of_a_table(tmp_path: Path) -> None:
    table = "ctx,question,cause,effect,explanation\nIt burnt.,Why?,fire,it burnt,Fire burns.\n"
    write(tmp_path, "train.csv", table)
    found = gather(DATASETS["wikiwhy"], tmp_path, files=["train.csv"])
    assert pairs(found) == [Pair("Why?", "fire", (), "Fire burns.")]


# FEVER

OPTIONS = ("Supported", "Refuted", "Not enough information")


def claim(words: str, label: str, *evidence: tuple[str | None, int | None]) -> dict[str, object]:
    sets = [[[1, 2, title, place] for title, place in evidence]]
    return {"id": 1, "verifiable": "x", "label": label, "claim": words, "evidence": sets}


def page(title: str, *sentences: str) -> dict[str, str]:
    rows = [f"{number}\t{said}" for number, said in enumerate(sentences)]
    return {"id": title, "text": " ".join(sentences), "lines": "\n".join(rows)}


@pytest.fixture
def wiki(tmp_path: Path) -> Path:
    mill = page(
        "Mill_-LRB-Ours-RRB-", "The Mill -LRB- ours -RRB- stands .\tMill\tMill", "", "It is old ."
    )
    odd = page("Cafe\u0301", "A café .")  # with the accent as a character of its own
    pages = [mill, page("Owl", "An owl ."), {"id": "", "text": "", "lines": ""}]
    write(tmp_path, "wiki-pages/wiki-001.jsonl", lines(*pages))
    write(tmp_path, "wiki-pages/wiki-002.jsonl", lines(odd, {"text": "no id"}))
    return tmp_path


def test_fever_shows_its_evidence_before_its_verdict(wiki: Path) -> None:
    mill = "Mill_-LRB-Ours-RRB-"
    claims = [
        claim("The mill is old.", "SUPPORTS", (mill, 2)),
        claim("The mill fell.", "REFUTES", (mill, 0)),
        claim("Two pages.", "SUPPORTS", ("Owl", 0), (mill, 2)),
        claim("An accent.", "SUPPORTS", ("Caf\u00e9", 0)),
        claim("Unknown.", "NOT ENOUGH INFO", (None, None)),
        claim("Away.", "REFUTES", ("Fox", 0)),
        claim("No such sentence.", "REFUTES", ("Owl", 9)),
        {"id": 3, "claim": "A claim of the test file."},
        claim("No such label.", "MAYBE", ("Owl", 0)),
    ]
    write(wiki, "train.jsonl", lines(*claims))
    found = gather(DATASETS["fever"], wiki)
    asked = "Does the text support or refute this claim? "
    text = "The Mill ( ours ) stands . It is old ."
    assert [(example.text, example.pairs) for example in found.examples] == [
        (
            text,
            (
                Pair(f"{asked}The mill is old.", "Supported", OPTIONS, "It is old ."),
                Pair(f"{asked}The mill fell.", "Refuted", OPTIONS, "The Mill ( ours ) stands ."),
            ),
        ),
        (
            f"An owl .\n{text}",
            (Pair(f"{asked}Two pages.", "Supported", OPTIONS, "An owl . It is old ."),),
        ),
        ("A café .", (Pair(f"{asked}An accent.", "Supported", OPTIONS, "A café ."),)),
    ]
    assert reasons(found) == [
        ("malformed_file", "wiki-pages/wiki-002.jsonl:2"),
        *(("no_context", "train.jsonl:5"), ("no_context", "train.jsonl:6")),
        *(("malformed_record", f"train.jsonl:{number}") for number in (7, 8, 9)),
    ]
    assert found.rejected[1].detail == "it has no evidence: Unknown."
    assert found.rejected[2].detail == "there is no page Fox: Away."


def test_fever_without_its_pages(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", lines(claim("Old.", "SUPPORTS", ("Owl", 0))) + "{\n")
    found = gather(DATASETS["fever"], tmp_path)
    assert reasons(found) == [("no_context", "train.jsonl:1"), ("malformed_file", "train.jsonl:2")]
