"""Examinations: RACE, RACE-C, DREAM, LogiQA, ReClor, AQuA."""

from __future__ import annotations

import gzip
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data_gen.instruction_pretrain.collection import DATASETS, gather
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.errors import UserError
from ipt_jax.core.rejection import Rejection


def _written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return folder


def test_the_sets_of_figure_7() -> None:
    sets = [d for d in DATASETS.values() if d.domain == "academic_tests"]
    sets = [d for d in sets if not d.copy_of and not d.unseen]
    # 6 of 27 are the 22.2% of Table 12.
    assert {d.name for d in sets} == {"race", "race_c", "dream", "logiqa", "reclor", "aqua"}
    assert all(d.source and d.licence and d.train and d.held_out for d in sets)
    closed = [d.name for d in sets if d.licence == "non-commercial research only"]
    assert closed == ["race", "race_c", "dream", "reclor"]


# ---- RACE and RACE-C ----------------------------------------------------------------------------


def test_race(shared: Path) -> None:
    folder = shared / "data/hf_datasets_fixtures/race"
    found = gather(DATASETS["race"], folder)
    assert (found.records, len(found.examples), found.rejected) == (5, 5, [])
    assert sum(len(example.pairs) for example in found.examples) == 22
    (drinking,) = [e for e in found.examples if e.text.startswith("Drinking water is good")]
    assert drinking.pairs[2] == Pair(
        "At about 3 pm, drinking water can clean out the  _  in your body.",
        "wastes",
        ("oil", "food", "wastes", "fat"),
    )
    held_out = gather(DATASETS["race"], folder, files=DATASETS["race"].held_out)
    assert sum(len(example.pairs) for example in held_out.examples) == 17


def test_race_1000(shared: Path, tmp_path: Path) -> None:
    found = gather(DATASETS["race"], shared / "data/race_1000", files=("race.jsonl",))
    assert (found.records, len(found.examples), found.rejected) == (800, 794, [])
    assert sum(len(example.pairs) for example in found.examples) == 800
    assert found.examples[0].pairs == (
        Pair(
            "What is the purpose of the writer writing the article?",
            "To give information about an uncommon hotel.",
            (
                "To describe the temperature inside a hotel.",
                "To give information about an uncommon hotel.",
                "To compare different kinds of hotels.",
                "To encourage people to visit hotels.",
            ),
        ),
    )
    # The hub's tables have the same columns.
    with gzip.open(shared / "data/race_1000/race.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    columns = ("example_id", "article", "answer", "question", "options")
    table = pyarrow.Table.from_pylist([{key: row[key] for key in columns} for row in rows])
    (tmp_path / "all").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "all/train-00000-of-00001.parquet")
    assert gather(DATASETS["race"], tmp_path).examples == found.examples


@pytest.mark.parametrize(("name", "place"), [("race", "train/high"), ("race_c", "train")])
def test_race_articles_that_are_damaged(tmp_path: Path, name: str, place: str) -> None:
    """Our own articles in the layout of both, one JSON object a file."""
    article = {
        "answers": ["B", "E", "a", ""],
        "options": [["red", "blue"]] * 4,
        "questions": ["Sky?", "Sea?", "Rose?", "Sun?"],
        "article": "The sky is blue.",
        "id": "1.txt",
    }
    _written(tmp_path, f"{place}/1.txt", json.dumps(article, indent=2))
    _written(tmp_path, f"{place}/2.txt", '{"answers": ["A"], ')
    _written(tmp_path, f"{place}/3.txt", {**article, "answers": ["A"]})
    _written(tmp_path, f"{place}/4.txt", {key: article[key] for key in article if key != "article"})
    _written(tmp_path, f"{place}/5.txt", {**article, "answers": [], "options": [], "questions": []})
    _written(tmp_path, f"test/{place}/6.csv", "not a file of this set")
    found = gather(DATASETS[name], tmp_path)
    (example,) = found.examples
    options = ("red", "blue")
    assert example.pairs == (Pair("Sky?", "blue", options), Pair("Rose?", "red", options))
    assert (found.records, found.questions) == (5, 4)
    assert [(piece.reason, piece.where) for piece in found.rejected] == [
        ("answer_not_among_options", f"{place}/1.txt"),
        ("no_answer", f"{place}/1.txt"),
        ("malformed_file", f"{place}/2.txt"),
        ("malformed_record", f"{place}/3.txt"),
        ("malformed_record", f"{place}/4.txt"),
        ("no_question", f"{place}/5.txt"),
    ]


# ---- DREAM --------------------------------------------------------------------------------------


def test_dream(shared: Path) -> None:
    found = gather(DATASETS["dream"], shared / "data/dream")
    assert (found.records, len(found.examples), found.rejected) == (3_869, 3_862, [])
    assert sum(len(example.pairs) for example in found.examples) == 6_116
    assert found.examples[0].text == (
        "M: I am considering dropping my dancing class. I am not making any progress.\n"
        "W: If I were you, I stick with it. It's definitely worth time and effort."
    )
    assert found.examples[0].pairs == (
        Pair(
            "What does the man suggest the woman do?",
            "Continue her dancing class.",
            (
                "Consult her dancing teacher.",
                "Take a more interesting class.",
                "Continue her dancing class.",
            ),
        ),
    )
    held_out = gather(DATASETS["dream"], shared / "data/dream", files=DATASETS["dream"].held_out)
    assert (held_out.records, len(held_out.examples)) == (1_288, 1_286)
    assert sum(len(example.pairs) for example in held_out.examples) == 2_040


def test_dream_records_that_are_damaged(tmp_path: Path) -> None:
    good = {"question": "Who?", "choice": ["I", "you", "they"], "answer": "you"}
    records = [
        [["M: Was it you?", "W: It was."], [good, {**good, "answer": "we"}, {"question": "Why?"}]],
        [["M: Hello."], []],
        {"dialogue": ["M: Hello."]},
    ]
    records = [[*r, "1-1"] if isinstance(r, list) else r for r in records]
    found = gather(DATASETS["dream"], _written(tmp_path, "train.json", records))
    assert [e.pairs for e in found.examples] == [(Pair("Who?", "you", ("I", "you", "they")),)]
    assert [(piece.reason, piece.where) for piece in found.rejected] == [
        ("answer_not_among_options", "train.json[0]"),
        ("malformed_record", "train.json[0]"),
        ("no_question", "train.json[1]"),
        ("malformed_record", "train.json[2]"),
    ]


# ---- LogiQA -------------------------------------------------------------------------------------


def test_logiqa(shared: Path) -> None:
    found = gather(DATASETS["logiqa"], shared / "data/logiqa", files=("Eval.txt", "Test.txt"))
    assert (found.records, found.questions, found.rejected) == (1_302, 1_302, [])
    assert len(found.examples) == 1_176
    assert sum(len(example.pairs) for example in found.examples) == 1_302
    first = found.examples[0]
    assert first.text.startswith("Black Americans are twice as likely to suffer")
    assert first.pairs[0].response == (
        "The blood pressure of the descendants of Senegalese and Gambians is usually not high, and "
        "the history of Senegal and Gambia has not been short of salt."
    )
    options = [pair.options for example in found.examples for pair in example.pairs]
    assert ("first", "Third", "Fourth", "fifth") in options  # "A first", "B Third"
    assert ("Warehouse No.1", "Storehouse 3", "Warehouse No.5", "Warehouse No.6") in options
    listed = {option for of_pair in options for option in of_pair}
    chess = "In the NEC fast chess game, every Chinese Go player does not smoke during the game."
    assert chess in listed  # "In the C.NEC fast chess game"
    small = "A small amount of cultivated land in A area is available farmland."
    assert small in listed  # the third option: "A small amount of cultivated land in C.A area"
    assert "Ding is a female doctor." in listed  # "D? Ding"
    assert "A is a male doctor;" in listed  # "A.A is a male doctor;"
    fertility = "The fertility rate is not directly proportional to the number of women of"
    assert f"{fertility} childbearing age." in listed  # "d.The"


def test_logiqa_of_the_second_edition_in_json_lines(tmp_path: Path) -> None:
    options = ["It rains.", "It snows."]
    record = {"id": 1, "answer": 1, "text": "It is cold.", "question": "So?", "options": options}
    asked = [record, {**record, "answer": 2}, {k: v for k, v in record.items() if k != "answer"}]
    lines = "\n".join(map(json.dumps, asked)) + "\n{\n"
    folder = _written(tmp_path, "LOGIQA/train.txt", lines)
    found = gather(DATASETS["logiqa2"], folder)
    (example,) = found.examples
    assert (example.text, example.pairs) == (
        "It is cold.",
        (Pair("So?", "It snows.", ("It rains.", "It snows.")),),
    )
    assert [(piece.reason, piece.where) for piece in found.rejected] == [
        ("answer_not_among_options", "LOGIQA/train.txt:2"),
        ("unlabelled", "LOGIQA/train.txt:3"),
        ("malformed_file", "LOGIQA/train.txt:4"),
    ]
    under_its_first_name = gather(DATASETS["logiqa"], folder, files=["train.txt"])
    assert [one.pairs for one in under_its_first_name.examples] == [example.pairs]


def test_logiqa_blocks_that_are_damaged(tmp_path: Path) -> None:
    block = ["", "b", "It rains.", "What is true?", "A.It is dry.", "B.It is wet."]
    block += ["C.It is hot.", "D.It is cold."]
    other = ["", "e", "It snows.", *block[3:]]
    lines = [*block, *other, "no empty line", *block[1:], *block[:5]]
    found = gather(DATASETS["logiqa"], _written(tmp_path, "Train.txt", "\r\n".join(lines)))
    (example,) = found.examples
    options = ("It is dry.", "It is wet.", "It is hot.", "It is cold.")
    assert (example.text, example.pairs) == (
        "It rains.",
        (Pair("What is true?", "It is wet.", options),),
    )
    assert found.records == 4
    assert [(piece.reason, piece.where) for piece in found.rejected] == [
        ("answer_not_among_options", "Train.txt:9"),
        ("malformed_file", "Train.txt:17"),
        ("malformed_file", "Train.txt:25"),
    ]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("logiqa", "Train.txt"),
        ("babi", "qa1_x_train.txt"),
        ("race", "train/high/1.txt"),
        ("qasc_flan", "qasc_train.tsv"),
        ("dream", "train.json"),
        ("ecqa", "cqa_data_train.csv"),
        ("qasper", "qasper-train-v0.3.json"),
        ("qasc", "train-0.parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_counted(tmp_path: Path, name: str, file: str) -> None:
    path = tmp_path / f"{file}.gz" if name == "babi" else tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"1 caf\xe9\n")  # neither UTF-8 nor packed
    found = gather(DATASETS[name], tmp_path)
    (piece,) = found.rejected
    where = piece.where.removesuffix(":1")
    assert (piece.reason, where, found.examples) == ("malformed_file", file, [])
    assert piece.detail.startswith("cannot be read: ")


# ---- ReClor -------------------------------------------------------------------------------------


def test_reclor(tmp_path: Path) -> None:
    """Our own records in the layout of train.json; those of test.json have no label."""
    record = {
        "context": "All cups are here.",
        "question": "What follows?",
        "answers": ["No cup is there.", "A pot is here.", "It is late.", "Cups are blue."],
        "label": 0,
        "id_string": "train_0",
    }
    unlabelled = {key: record[key] for key in record if key != "label"}
    records = [record, {**record, "label": 4}, {**record, "label": -1}, unlabelled]
    found = gather(DATASETS["reclor"], _written(tmp_path, "train.json", records))
    (example,) = found.examples
    options = ("No cup is there.", "A pot is here.", "It is late.", "Cups are blue.")
    assert (example.text, example.pairs) == (
        "All cups are here.",
        (Pair("What follows?", "No cup is there.", options),),
    )
    assert [(piece.reason, piece.where) for piece in found.rejected] == [
        ("answer_not_among_options", "train.json[1]"),
        ("unlabelled", "train.json[2]"),
        ("unlabelled", "train.json[3]"),
    ]


def test_an_archive_with_a_password_is_named(tmp_path: Path) -> None:
    path = tmp_path / "reclor_data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train.json", "[]")
    data = bytearray(path.read_bytes())
    for start in (6, data.index(b"PK\x01\x02") + 8):
        data[start] |= 1  # the bit that says it is encrypted, in both of its headers
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"reclor_data\.zip cannot be unpacked .*unpack it your"):
        gather(DATASETS["reclor"], tmp_path)


# ---- AQuA ---------------------------------------------------------------------------------------


def test_aqua(shared: Path) -> None:
    found = gather(DATASETS["aqua"], shared / "data/aqua", files=DATASETS["aqua"].held_out)
    assert (found.records, len(found.examples)) == (254, 217)
    assert found.reasons == {"no_context": 37}  # a single sentence is the question itself
    assert found.rejected[0].where == "dev.json:4"
    # No rationale ends by naming an option by its letter, which ours do not have.
    letter = re.compile(r"[\s=]\(?[A-E]\)?[.\s]*$|\b[A-E] is (the )?(correct|answer)[^\n]*$")
    ends = [pair.rationale or "" for example in found.examples for pair in example.pairs]
    assert [end[-40:] for end in ends if letter.search(end)] == []
    first = found.examples[0]
    assert first.text == "Three birds are flying at a fast rate of 900 kilometers per hour."
    assert first.pairs == (
        Pair(
            "What is their speed in miles per minute? [1km = 0.6 miles]",
            "32400",
            ("32400", "6000", "600", "60000", "10"),
            "To calculate the equivalent of miles in a kilometer\n0.6 kilometers = 1 mile\n"
            "900 kilometers = (0.6)*900 = 540 miles\nIn 1 hour there are 60 minutes\n"
            "Speed in miles/minutes = 60 * 540 = 32400",
        ),
    )


def test_aqua_of_flan(shared: Path) -> None:
    found = gather(DATASETS["aqua_flan"], shared / "data/flan_cot")
    assert (found.records, len(found.examples)) == (2_728, 1_223)
    assert sum(len(example.pairs) for example in found.examples) == 1_662
    assert found.reasons == {"no_context": 1_066}
    assert found.examples[0].text == "Rs. 5600 is divided into three parts A, B and C."
    pair = found.examples[0].pairs[0]
    assert (pair.response, pair.options) == ("1120", ("300", "992", "1120", "552", "312"))
    assert pair.rationale == "1/7:1/7:1/14 = 2:2:1\n1/5*5600 = 1120\n2240-1120 = 1120"


def test_aqua_lines_that_are_damaged(tmp_path: Path) -> None:
    record = {"question": "A cup costs 2. What do 3 cost?", "options": ["A)6", "B)5"]}
    record |= {"rationale": "3 times 2.", "correct": "A"}
    lines = [json.dumps(record), "{broken", json.dumps({**record, "correct": "C"})]
    lines += [json.dumps({"question": "A cup costs 2. What do 3 cost?"})]
    found = gather(DATASETS["aqua"], _written(tmp_path, "train.json", "\n".join(lines)))
    (example,) = found.examples
    assert example.pairs == (Pair("What do 3 cost?", "6", ("6", "5"), "3 times 2."),)
    assert [(piece.reason, piece.where) for piece in found.rejected] == [
        ("malformed_file", "train.json:2"),
        ("answer_not_among_options", "train.json:3"),
        ("malformed_record", "train.json:4"),
    ]
    tokenised = _written(tmp_path, "train.tok.json", json.dumps(record))
    assert gather(DATASETS["aqua"], tokenised).records == 4  # the same questions once more


def test_options_without_questions_name_their_place(tmp_path: Path) -> None:
    folder = _written(tmp_path, "race.jsonl", json.dumps({"article": "A.", "question": "Q?"}))
    found = gather(DATASETS["race"], folder, files=("race.jsonl",))
    assert found.rejected == [
        Rejection.at("race.jsonl:1", "malformed_record", "KeyError: 'options'")
    ]
