"""SQuAD, TopiOCQA, QuAC, WikiTableQuestions, QED, HotpotQA: real files, and what is wrong in some.

The fixtures' texts are ours; their layouts are the official ones.
"""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_gen.instruction_pretrain.collection import DATASETS, Gathered, gather
from data_gen.instruction_pretrain.formats import Pair


def pairs(found: Gathered) -> list[Pair]:
    return [pair for example in found.examples for pair in example.pairs]


def write(folder: Path, name: str, value: object) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return folder


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


# SQuAD


def test_squad_of_the_real_file(shared: Path) -> None:
    found = gather(DATASETS["squad"], shared / "data/squad_v1", files=["test-v1.1.json"])
    assert (found.records, found.questions) == (2_430, 11_877)
    assert (len(found.examples), len(pairs(found))) == (2_429, 11_828)  # one paragraph occurs twice
    assert found.reasons == {"repeated_question": 49}
    first = found.examples[0]
    assert first.text.startswith("Architecturally, the school has a Catholic character. Atop the")
    assert len(first.pairs) == 5
    asked = "To whom did the Virgin Mary allegedly appear in 1858 in Lourdes France?"
    assert first.pairs[0] == Pair(asked, "Saint Bernadette Soubirous")


def squad(*articles: object) -> dict[str, object]:
    return {"version": "v2.0", "data": list(articles)}


def question(asked: str, *answers: str, **more: object) -> dict[str, object]:
    said = [{"text": answer, "answer_start": 0} for answer in answers]
    return {"id": asked, "question": asked, "answers": said, **more}


def test_squad_of_both_versions_and_what_is_wrong_in_them(tmp_path: Path) -> None:
    text = "The mill stands by the river."
    good = [question("Where?", "by the river", "the river"), question("What?", "The mill")]
    bad = [question("When?", is_impossible=True), question("Who?"), {"question": "How?"}]
    article = {"title": "Mill", "paragraphs": [{"context": text, "qas": good + bad}]}
    empty = {"title": "Lake", "paragraphs": [{"context": "A lake.", "qas": []}, {"qas": good}]}
    write(tmp_path, "train-v1.1.json", squad(article, {"title": "no paragraphs"}, empty))
    found = gather(DATASETS["squad"], tmp_path)
    assert [example.text for example in found.examples] == [text]
    assert pairs(found) == [Pair("Where?", "by the river"), Pair("What?", "The mill")]
    assert [(u.reason, u.where) for u in found.rejected] == [
        ("unanswerable", "train-v1.1.json:0.0"),
        ("no_answer", "train-v1.1.json:0.0"),
        ("malformed_record", "train-v1.1.json:0.0"),
        ("malformed_record", "train-v1.1.json:1"),
        ("no_question", "train-v1.1.json:2.0"),
        ("malformed_record", "train-v1.1.json:2.1"),
        ("malformed_record", "train-v1.1.json:2.1"),
    ]
    assert "question 4: KeyError: 'answers'" in found.rejected[2].detail


@pytest.mark.parametrize("text", ['{"data": [', '{"version": "v1.1"}', "[1]"])
def test_squad_in_another_layout_is_one_unreadable_file(tmp_path: Path, text: str) -> None:
    write(tmp_path, "train-v1.1.json", text)
    found = gather(DATASETS["squad"], tmp_path)
    assert [(u.reason, u.where) for u in found.rejected] == [("malformed_file", "train-v1.1.json")]
    assert found.examples == []


def test_squad_of_the_hub(tmp_path: Path) -> None:
    columns = [
        {"context": "A mill.", "question": "What?", "answers": {"text": ["A mill", "mill"]}},
        {"context": "A mill.", "question": "Why?", "answers": {"text": []}},
    ]
    (tmp_path / "plain_text").mkdir()
    table = pa.Table.from_pylist(columns)
    pq.write_table(table, tmp_path / "plain_text/train-00000-of-00001.parquet")
    found = gather(DATASETS["squad"], tmp_path)
    assert pairs(found) == [Pair("What?", "A mill")]
    assert [(u.reason, u.where) for u in found.rejected] == [
        ("no_answer", "plain_text/train-00000-of-00001.parquet[1]")
    ]


# QuAC


def test_quac_leaves_out_what_its_teacher_could_not_answer(shared: Path) -> None:
    folder = shared / "data/hf_datasets_fixtures/quac"
    found = gather(DATASETS["quac"], folder)
    assert (found.records, len(found.examples), len(pairs(found))) == (5, 5, 35)
    assert found.reasons == {"unanswerable": 4}
    first = found.examples[0]
    assert first.text.startswith("According to the Indian census of 2001, there were 30,803,747")
    assert first.text.endswith("a data bank of the diaspora.")  # no CANNOTANSWER behind it
    assert [pair.instruction for pair in first.pairs] == [
        "Where is Malayali located?",
        "What other languages are spoken there?",
        "What else is this place known for?",
        "Is this population still growing?",
    ]
    assert found.rejected[0].detail == "Were they ever successful in doing this?"


def test_quac_of_the_validation_file_takes_the_teachers_own_answer(shared: Path) -> None:
    dataset = DATASETS["quac"]
    folder = shared / "data/hf_datasets_fixtures/quac"
    found = gather(dataset, folder, files=dataset.held_out)
    assert (len(pairs(found)), found.reasons) == (31, {"unanswerable": 10})
    raw = json.loads((folder / "plain_text/val_v0.2.json").read_text(encoding="utf-8"))
    asked = [q for a in raw["data"] for p in a["paragraphs"] for q in p["qas"]]
    said = [q["orig_answer"]["text"] for q in asked]
    assert [p.response for p in pairs(found)] == [s.strip() for s in said if s != "CANNOTANSWER"]


# TopiOCQA


def turn(conversation: int, number: int, asked: str, answer: str, text: str) -> dict[str, object]:
    """A turn with the official fields that are read, and one that is not."""
    passage = {"id": "wiki:1", "title": "Mill [SEP] History", "text": text}
    return {
        **{"Conversation_no": conversation, "Turn_no": number, "Context": ["earlier", "turns"]},
        **{"Question": asked, "Answer": answer, "Gold_passage": passage},
    }


@pytest.mark.parametrize("name", ["topiocqa_train.json", "topiocqa_train.jsonl"])
def test_topiocqa_has_the_turns_on_a_passage_in_their_order(tmp_path: Path, name: str) -> None:
    turns = [
        turn(1, 1, "who built the mill?", "the monks", "Monks built it in 1301."),
        turn(1, 2, "when?", "1301", "Monks built it in 1301."),
        turn(1, 3, "who owns the weir?", "the town", "The weir is the town's."),
        turn(1, 4, "and the mill?", "UNANSWERABLE", "Monks built it in 1301."),
        {"Question": "where?", "Answer": "here"},
    ]
    write(tmp_path, name, turns if name.endswith(".json") else lines(*turns))
    found = gather(DATASETS["topiocqa"], tmp_path)
    assert [(e.text, e.pairs) for e in found.examples] == [
        (
            "Monks built it in 1301.",
            (Pair("who built the mill?", "the monks"), Pair("when?", "1301")),
        ),
        ("The weir is the town's.", (Pair("who owns the weir?", "the town"),)),
    ]
    assert found.reasons == {"unanswerable": 1, "malformed_record": 1}
    place = "[4]" if name.endswith(".json") else ":5"
    assert found.rejected[-1].where == f"{name}{place}"


# WikiTableQuestions


def test_tables_are_told_as_rows(shared: Path) -> None:
    folder = shared / "data/wikitablequestions"
    found = gather(DATASETS["wikitablequestions"], folder, files=["training.tsv"])
    assert (found.questions, len(pairs(found)), found.reasons) == (14_152, 14_152, {})
    assert len(found.examples) == 1_677
    by_question = {pair.instruction: pair for pair in pairs(found)}
    several = by_question["which players played the same position as ardo kreek?"]
    assert several == Pair(several.instruction, "Siim Ennemuist, Andri Aganits")
    # A quote at the beginning of a question is a part of it, and one in a cell is `\\"`.
    assert '"girl" and "el pro" were performed by which artist?' in by_question
    texts = [example.text for example in found.examples]
    row = '1986 | "Holding Out for a Hero" | Irish Singles Chart (1985) | 1'
    assert [text.split("\n")[:2] for text in texts if row in text] == [
        ["Year | Single | Chart | Position", row]
    ]
    # A single cell has backslashes of its own, written as `\\\\\\"`.
    assert sum("\\" in text for text in texts) == 1
    (clubs,) = [e for e in found.examples if e.text.startswith("Team | County | Wins | Years won")]
    assert clubs.text.split("\n")[1] == "Greystones | Wicklow | 1 | 2011"
    assert Pair("which team won previous to crettyard?", "Wolfe Tones") in clubs.pairs


def test_tables_that_are_missing_or_broken(tmp_path: Path) -> None:
    write(tmp_path, "csv/200-csv/0.csv", '"Name","Says"\n"A\nB","\\"x\\", y"\n')
    (tmp_path / "csv/200-csv/1.csv").write_bytes(b"\xff")
    rows = [
        "id\tutterance\tcontext\ttargetValue",
        "nt-0\twhat is said?\\nwhere?\tcsv/200-csv/0.csv\ta\\pb|c",
        "nt-1\twho?\tcsv/200-csv/1.csv\tx",
        "nt-2\twho?\tcsv/200-csv/2.csv\tx",
        "nt-3\twho?\tcsv/200-csv/0.csv",
    ]
    write(tmp_path, "data/random-split-1-train.tsv", "\n".join(rows))
    found = gather(DATASETS["wikitablequestions"], tmp_path)
    assert [example.text for example in found.examples] == ['Name | Says\nA B | "x", y']
    assert pairs(found) == [Pair("what is said?\nwhere?", "a|b, c")]
    name = "data/random-split-1-train.tsv"
    assert [(u.reason, u.where) for u in found.rejected] == [
        ("no_context", f"{name}:3"),
        ("no_context", f"{name}:4"),
        ("malformed_file", f"{name}:5"),
    ]
    assert "csv/200-csv/1.csv cannot be read" in found.rejected[0].detail
    assert "csv/200-csv/2.csv is missing" in found.rejected[1].detail


# QED


def test_qed_reasons_by_the_sentence_that_its_annotators_chose(shared: Path) -> None:
    dataset = DATASETS["qed"]
    found = gather(dataset, shared / "data/qed", files=dataset.held_out)
    assert (found.questions, len(found.examples), found.reasons) == (1_355, 1_343, {})
    assert Counter(pair.rationale is None for pair in pairs(found)) == {False: 1_021, True: 334}
    assert pairs(found)[0] == Pair(
        "who got the first nobel prize in physics",
        "Wilhelm Conrad Röntgen",
        (),
        "The first Nobel Prize in Physics was awarded in 1901 to Wilhelm Conrad Röntgen , of "
        "Germany , who received 150,782 SEK , which is equal to 7,731,004 SEK in December 2007 .",
    )
    asked = "where are the summer olympics held this year"
    assert Pair(asked, "Tokyo for the 2020 Summer Olympics") in pairs(found)


def test_qed_without_an_answer_or_a_key(tmp_path: Path) -> None:
    record = {
        **{"question_text": "who", "paragraph_text": "Text .", "original_nq_answers": []},
        "annotation": {"explanation_type": "none", "answer": []},
    }
    two = [[{"string": "One"}, {"string": "Two"}], [{"string": "Three"}]]
    several = {**record, "question_text": "which", "original_nq_answers": two}
    text = lines(record, {"question_text": "what"}, several) + "{\n"
    write(tmp_path, "qed-train.jsonlines", text)
    found = gather(DATASETS["qed"], tmp_path)
    assert pairs(found) == [Pair("which", "One, Two")]
    assert [(u.reason, u.where) for u in found.rejected] == [
        ("no_answer", "qed-train.jsonlines:1"),
        ("malformed_record", "qed-train.jsonlines:2"),
        ("malformed_file", "qed-train.jsonlines:4"),
    ]


# HotpotQA


def test_hotpotqa_has_the_paragraphs_with_supporting_facts(shared: Path) -> None:
    dataset = DATASETS["hotpotqa"]
    folder = shared / "data/hotpotqa_distractor"
    found = gather(dataset, folder, files=dataset.held_out)
    assert (found.questions, len(found.examples), found.reasons) == (100, 100, {})
    first = found.examples[0]
    assert first.pairs == (
        Pair("Were Scott Derrickson and Ed Wood of the same nationality?", "yes"),
    )
    paragraphs = first.text.split("\n")
    assert len(paragraphs) == 2
    assert paragraphs[1] == (
        "Ed Wood: Edward Davis Wood Jr. (October 10, 1924 – December 10, 1978) was an American "
        "filmmaker, actor, writer, producer, and director."
    )
    bare = gather(dataset, folder, files=["hotpot_dev_v1_simplified.json"])
    assert bare.reasons == {"malformed_record": 7_405} and not bare.examples  # has no contexts


def test_hotpotqa_of_the_official_file(tmp_path: Path) -> None:
    context = [["Mill", ["A mill.", " It turns."]], ["Owl", ["An owl."]], ["Weir", ["A weir."]]]
    record = {"question": "Q?", "answer": "yes", "context": context}
    facts = [["Weir", 0], ["Mill", 1], ["Mill", 0]]
    away = [["Fox", 0]]
    records = [{**record, "supporting_facts": facts}, {**record, "supporting_facts": away}]
    write(tmp_path, "hotpot_train_v1.1.json", records)
    found = gather(DATASETS["hotpotqa"], tmp_path)
    assert [example.text for example in found.examples] == [
        "Mill: A mill. It turns.\nWeir: A weir."
    ]
    assert pairs(found) == [Pair("Q?", "yes")]
    assert [(u.reason, u.where) for u in found.rejected] == [
        ("no_context", "hotpot_train_v1.1.json[1]")
    ]
    assert "'Fox'" in found.rejected[0].detail
