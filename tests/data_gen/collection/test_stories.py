"""FairytaleQA, NarrativeQA and MCTest: real files, and what is wrong in some."""

from pathlib import Path

import pytest

from data_gen.instruction_pretrain.collection import DATASETS, Gathered, gather
from data_gen.instruction_pretrain.formats import Pair


def pairs(found: Gathered) -> list[Pair]:
    return [pair for example in found.examples for pair in example.pairs]


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")


# FairytaleQA


def test_fairytales_of_the_real_archive(shared: Path) -> None:
    dataset = DATASETS["fairytaleqa"]
    found = gather(dataset, shared / "data/fairytaleqa", files=dataset.held_out)
    assert (found.records, len(found.examples), len(pairs(found))) == (1_025, 410, 1_025)
    assert found.reasons == {}
    assert found.examples[0].text.startswith("In far bygone days, in the North, there lived a")
    asked = "Who had seven sons and one daughter?"
    assert found.examples[0].pairs[0] == Pair(asked, "a well-to-do farmer")


# NarrativeQA


def test_narrativeqa_keeps_the_split_that_is_asked_for(shared: Path) -> None:
    dataset = DATASETS["narrativeqa"]
    folder = shared / "data/hf_datasets_fixtures/narrativeqa"
    found = gather(dataset, folder)
    assert [(example.text[:19], example.pairs) for example in found.examples] == [
        (
            "At Madeline Hall, a",
            (
                Pair(
                    "Who is Miss Delmer?",
                    "the elderly spinster aunt of the Earl de Verseley and Captain Delmar",
                ),
            ),
        )
    ]
    assert (found.records, found.reasons) == (1, {})
    (held_out,) = pairs(gather(dataset, folder, files=dataset.held_out))
    assert held_out.instruction == "Why did Micky feel he lost the fight in Atlantic City?"
    assert len(pairs(gather(dataset, folder, files=["qaps.csv"]))) == 3  # one is of the test set


def test_narrativeqa_without_summaries_or_answers(tmp_path: Path) -> None:
    write(tmp_path, "a/qaps.csv", "document_id,set,question,answer1\n1,train,Who?,We\n")
    found = gather(DATASETS["narrativeqa"], tmp_path)
    assert [(u.reason, u.where) for u in found.rejected] == [("malformed_file", "a/qaps.csv")]
    assert "a/third_party/wikipedia/summaries.csv is missing" in found.rejected[0].detail
    summaries = 'document_id,set,summary\n1,train,"We went, and\ncame back."\n'
    write(tmp_path, "a/third_party/wikipedia/summaries.csv", summaries)
    rows = "1,train,Who?,We\n1,train,Where?,\n2,train,Why?,Because\n1,test,How?,So\n1,train\n"
    write(tmp_path, "a/qaps.csv", f"document_id,set,question,answer1\n{rows}")
    found = gather(DATASETS["narrativeqa"], tmp_path)
    assert [(e.text, e.pairs) for e in found.examples] == [
        ("We went, and\ncame back.", (Pair("Who?", "We"),))
    ]
    assert [(u.reason, u.where) for u in found.rejected] == [
        ("no_answer", "a/qaps.csv[1]"),
        ("no_context", "a/qaps.csv[2]"),
        ("malformed_record", "a/qaps.csv[4]"),
    ]


# MCTest


def test_mctest_of_the_real_files(shared: Path) -> None:
    dataset = DATASETS["mctest"]
    found = gather(dataset, shared / "data/mctest")
    assert (found.records, len(found.examples), len(pairs(found))) == (370, 370, 1_480)
    assert found.reasons == {}
    assert all(len(pair.options) == 4 for pair in pairs(found))
    held_out = gather(dataset, shared / "data/mctest", files=dataset.held_out)
    assert (len(held_out.examples), len(pairs(held_out))) == (80, 320)
    bears = held_out.examples[0]
    assert bears.text.startswith(
        "It was Jessie Bear's birthday. She was having a party.  She asked"
    )
    assert "balloons.\n\nSoon her friend Lion came over." in bears.text
    assert bears.pairs[1] == Pair(
        "Who didn't come to the party?", "Snake", ("Lion", "Tiger", "Snake", "Jessie Bear")
    )
    assert [pair.response for pair in bears.pairs] == [
        *("Jessie Bear", "Snake", "made cake and hung balloons.", "two")
    ]


def story(number: int, *, cells: int = 23) -> str:
    asked = [f"{kind}: Q{n}?\ta{n}\tb{n}\tc{n}\td{n}" for n, kind in enumerate(["one"] * 4)]
    row = "\t".join([f"mc.{number}", "Author: us", f'Tale {number}\\tab"', *asked]).split("\t")
    return "\t".join(row[:cells]) + "\r\n"


def test_mctest_with_wrong_letters_and_too_few(tmp_path: Path) -> None:
    name = "mc160.train.tsv"
    write(tmp_path, name, story(0) + story(1) + story(2) + story(3, cells=10))
    write(tmp_path, "mc160.train.ans", "A\tE\tC\tD\r\nA\tB\r\n")
    found = gather(DATASETS["mctest"], tmp_path)
    options = tuple(f"{letter}0" for letter in "abcd")
    assert found.examples[0].text == 'Tale 0\t"'
    assert pairs(found)[0] == Pair("Q0?", "a0", options)
    assert [pair.response for pair in pairs(found)] == ["a0", "c2", "d3"]
    assert [(u.reason, u.where) for u in found.rejected] == [
        ("malformed_record", f"{name}:1"),  # there is no option E
        ("malformed_record", f"{name}:2"),
        ("malformed_record", f"{name}:3"),
        ("malformed_record", f"{name}:4"),
    ]
    assert "question 1: ValueError" in found.rejected[0].detail


@pytest.mark.parametrize("letters", ["A\tB\tC\tD\r\n"])
def test_mctest_whose_last_questions_are_cut_off(tmp_path: Path, letters: str) -> None:
    write(tmp_path, "mc500.train.tsv", story(0, cells=15))
    write(tmp_path, "mc500.train.ans", letters)
    found = gather(DATASETS["mctest"], tmp_path)
    assert [pair.response for pair in pairs(found)] == ["a0", "b1"]
    assert found.reasons == {"malformed_record": 2}


def test_mctest_without_its_answers(tmp_path: Path) -> None:
    write(tmp_path, "mc160.train.tsv", story(0))
    found = gather(DATASETS["mctest"], tmp_path)
    assert [(u.reason, u.where) for u in found.rejected] == [("malformed_file", "mc160.train.tsv")]
    assert "mc160.train.ans is missing" in found.rejected[0].detail
