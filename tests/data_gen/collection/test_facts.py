"""Facts and small worlds: SpartQA, bAbI, QASC, ECQA and FLAN's copies."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from data_gen.instruction_pretrain.collection import DATASETS, gather
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.rejection import Rejection


def _written(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, "utf-8")
    return folder


# ---- SpartQA ------------------------------------------------------------------------------------


def _asked(kind: str, answer: list[Any], candidates: list[str]) -> dict[str, Any]:
    asked = {"q_id": 0, "q_type": kind, "question": f"{kind} {answer}?", "answer": answer}
    return {**asked, "candidate_answers": candidates}


def test_spartqa(tmp_path: Path) -> None:
    """Our own story in the layout of human_train.json, with the four kinds of questions.

    Answers to FR and CO are numbers of candidates, to FB names of blocks, to YN words.
    """
    relations = ["left", "right", "above", "DK"]
    story = {
        "identifier": "1-1",
        "story": ["Block A is left of block B. A has a cup."],
        "questions": [
            _asked("FR", [1], relations),
            _asked("FR", [0, 2], relations),
            _asked("FR", [3], relations),
            _asked("CO", [0], ["the cup", "the pot", "both of them", "none of them"]),
            _asked("FB", ["A"], ["A", "B"]),
            _asked("FB", [], ["A", "B"]),
            _asked("YN", ["No"], []),
            _asked("YN", ["Maybe"], []),
            _asked("FR", [4], relations),
        ],
    }
    document = {"name": "SPaRTQA", "data": [story, {"story": ["No questions."], "questions": []}]}
    folder = _written(tmp_path, "human_train.json", json.dumps(document))
    found = gather(DATASETS["spartqa"], folder)
    (example,) = found.examples
    spelt = ("left", "right", "above", "Do not know")
    assert example.text == "Block A is left of block B. A has a cup."
    assert example.pairs == (
        Pair("FR [1]?", "right", spelt),
        Pair("FR [0, 2]?", "left, above"),
        Pair("FR [3]?", "Do not know", spelt),
        Pair("CO [0]?", "the cup", ("the cup", "the pot", "both of them", "none of them")),
        Pair("FB ['A']?", "A", ("A", "B")),
        Pair("YN ['No']?", "No", ("Yes", "No", "Do not know")),
    )
    first = "human_train.json:0"
    assert found.rejected == [
        Rejection.at(first, "no_answer", "FB []?"),
        Rejection(
            first, first, "answer_not_among_options", "'Maybe' of ('Yes', 'No', 'Do not know')"
        ),
        Rejection(
            first, first, "malformed_record", "question 8: IndexError: list index out of range"
        ),
        Rejection(
            "human_train.json:1", "human_train.json:1", "no_question", "the record holds none"
        ),
    ]


# ---- bAbI ---------------------------------------------------------------------------------------


def test_babi(shared: Path) -> None:
    found = gather(DATASETS["babi"], shared / "data/babi")
    assert (found.records, found.questions, len(found.examples)) == (20_000, 20_000, 10_000)
    assert found.reasons == {"repeated_question": 1_206}
    assert found.surplus_examples == 7_222
    kept = sum(len(example.pairs) for example in found.examples)
    assert kept + found.surplus_pairs + 1_206 == 20_000
    path = (
        "The office is east of the hallway. The kitchen is north of the office. The garden is west "
        "of the bedroom. The office is west of the garden. The bathroom is north of the garden."
    )
    only = gather(DATASETS["babi"], shared / "data/babi", files=("qa19_*_train.txt",))
    told = {example.text: example.pairs for example in only.examples}
    assert told[path] == (Pair("How do you go from the kitchen to the garden?", "s, e"),)


def test_babi_stories_begin_at_line_1(tmp_path: Path) -> None:
    lines = ["1 A cat sat.", "2 Who sat? \tcat\t1", "3 It slept.", "4 Who slept?\tcat\t3"]
    lines += ["1 A dog ran.", "no number", "2 Who ran?\tdog\t1", ""]
    found = gather(DATASETS["babi"], _written(tmp_path, "qa1_x_train.txt", "\r\n".join(lines)))
    assert [(e.text, e.pairs[0]) for e in found.examples] == [
        ("A cat sat.", Pair("Who sat?", "cat")),
        ("A cat sat. It slept.", Pair("Who slept?", "cat")),
        ("A dog ran.", Pair("Who ran?", "dog")),
    ]
    detail = "begins with no line number: 'no number'"
    assert found.rejected == [Rejection.at("qa1_x_train.txt:6", "malformed_file", detail)]


# ---- QASC ---------------------------------------------------------------------------------------


def test_qasc(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/hf_datasets_fixtures/qasc"
    found = gather(DATASETS["qasc"], folder)
    assert (found.records, len(found.examples), found.rejected) == (2, 2, [])
    first = found.examples[0]
    fact = "beads of water are formed by water vapor condensing"
    assert first.text == f"{fact}\nClouds are made of water vapor."
    options = ("pearls", "streams", "shells", "diamonds", "rain", "beads", "cooled", "liquid")
    assert first.pairs == (
        Pair(
            "What type of water formation is formed by clouds?",
            "beads",
            options,
            "Beads of water can be formed by clouds.",
        ),
    )
    # The test file has no answers.
    test = gather(DATASETS["qasc"], folder, files=("test.jsonl",))
    where = "default/QASC_Dataset/test.jsonl:1"
    assert test.rejected == [Rejection.at(where, "unlabelled", "it has no `answerKey`")]
    row = {
        "question": "What type of water formation is formed by clouds?",
        "choices": {"text": list(options), "label": list("ABCDEFGH")},
        "answerKey": "F",
        "fact1": fact,
        "fact2": "Clouds are made of water vapor.",
        "combinedfact": "Beads of water can be formed by clouds.",
    }
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([row, {**row, "answerKey": "J"}]),
        tmp_path / "train-00000-of-00001.parquet",
    )
    hub = gather(DATASETS["qasc"], tmp_path)
    assert hub.examples == [first]
    (wrong,) = hub.rejected
    assert wrong.reason == "answer_not_among_options"
    assert wrong.where == "train-00000-of-00001.parquet[1]"


# ---- ECQA ---------------------------------------------------------------------------------------


def test_ecqa(tmp_path: Path) -> None:
    """Our own rows in the layout of cqa_data_train.csv, whose first column has no name."""
    names = ["", "q_no", "q_concept", "q_text", *(f"q_op{number}" for number in range(1, 6))]
    names += ["q_ans", "taskA_pos", "taskA_neg", "taskB"]
    options = ["pot", "shoe", "car", "tree", "book"]
    row = ["0", "1afa", "tea", "Where is tea made?", *options, "pot"]
    rows = [
        names,
        [*row, "Tea is made in a pot.\nA pot holds water.", "A shoe holds a foot.", "Pots do."],
        ["1", *row[1:9], "mug", "A mug holds tea.", "", "Mugs do."],
        ["2", *row[1:]],
        ["3", *row[1:], "", "", "It is known."],
    ]
    with (tmp_path / "cqa_data_train.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    found = gather(DATASETS["ecqa"], tmp_path)
    (example,) = found.examples
    assert example.text == "Tea is made in a pot.\nA pot holds water.\nA shoe holds a foot."
    assert example.pairs == (Pair("Where is tea made?", "pot", tuple(options), "Pots do."),)
    assert [(piece.reason, piece.where) for piece in found.rejected] == [
        ("answer_not_among_options", "cqa_data_train.csv:1"),
        ("malformed_record", "cqa_data_train.csv:2"),
        ("no_context", "cqa_data_train.csv:3"),
    ]


# ---- FLAN's copies ------------------------------------------------------------------------------


def test_flan_copies(shared: Path) -> None:
    ecqa = gather(DATASETS["ecqa_flan"], shared / "data/flan_cot")
    assert (ecqa.records, len(ecqa.examples), ecqa.rejected) == (7_112, 7_104, [])
    assert sum(len(example.pairs) for example in ecqa.examples) == 7_112
    assert ecqa.examples[0].text == (
        "Bloody mess is covered or stained with blood. A person might see a bloody mess at the "
        "scene of a brutal killing."
    )
    options = ("bloody mess", "pleasure", "being imprisoned", "feeling of guilt", "cake")
    asked = "What might a person see at the scene of a brutal killing?"
    assert ecqa.examples[0].pairs == (Pair(asked, "bloody mess", options),)

    qasc = gather(DATASETS["qasc_flan"], shared / "data/flan_cot")
    assert (qasc.records, len(qasc.examples), qasc.rejected) == (1_084, 1_063, [])
    options = ("DNA", "photosynthesis", "bird", "sex", "subtraction", "gametes", "eggs", "ovum")
    asked = "What is the process by which living things give rise to offspring?"
    assert qasc.examples[0].pairs == (Pair(asked, "sex", options),)


def test_flan_rows_that_are_none(tmp_path: Path) -> None:
    lines = [
        "Who?\\nOptions:\\n- (A) I\\n- (B) you\t(B)\tYou\\ndid.",
        "Who?\\nOptions:\\n- (A) I\\n- (B) you\t(C)\tOthers did.",
        "Who?\t(A)\tNo options.",
        "Who?\\nOptions:\\n- (A) I\t(A)",
    ]
    found = gather(DATASETS["qasc_flan"], _written(tmp_path, "qasc_train.tsv", "\n".join(lines)))
    assert [(e.text, e.pairs) for e in found.examples] == [
        ("You\ndid.", (Pair("Who?", "you", ("I", "you")),))
    ]
    assert [(piece.reason, piece.where) for piece in found.rejected] == [
        ("answer_not_among_options", "qasc_train.tsv:2"),
        ("malformed_file", "qasc_train.tsv:3"),
        ("malformed_file", "qasc_train.tsv:4"),
    ]
