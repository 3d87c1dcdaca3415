"""The frame: files and archives of a data set, gathering by text, and the registry."""

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_gen.corpus.dataset_files import Files, rows, unquoted_rows
from data_gen.corpus.nested_records import pieces, whole
from data_gen.instruction_pretrain.collection import DATASETS, DOMAINS, MULTI_DOMAIN, gather
from data_gen.instruction_pretrain.collection.base import (
    Dataset,
    Gathered,
    Question,
    example_id,
)
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.errors import UserError
from ipt_jax.core.rejection import Reason


def questions(record: Any) -> Iterator[Question | Reason]:
    for asked, answer, *options in record["qas"]:
        yield Question(record["text"], Pair(asked, answer, tuple(options)))


TOY = Dataset("toy", "news", "us", "ours", ("train.jsonl",), rows, questions, ("dev.jsonl",))


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def asked(text: str, *numbers: int) -> dict[str, object]:
    return {"text": text, "qas": [[f"Q{number}?", f"A{number}"] for number in numbers]}


def put(folder: Path, text: str, name: str = "train.jsonl") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def held(found: Gathered) -> list[tuple[str, list[str]]]:
    return [(e.text, [pair.instruction for pair in e.pairs]) for e in found.examples]


def test_questions_of_equal_texts_become_one_example_in_their_order(tmp_path: Path) -> None:
    put(tmp_path, lines(asked("one", 1), asked("two", 2), asked(" one\n", 4, 3)))
    found = gather(TOY, tmp_path)
    assert held(found) == [("one", ["Q1?", "Q4?", "Q3?"]), ("two", ["Q2?"])]
    assert (found.records, found.questions, found.surplus_examples) == (3, 4, 0)
    first = found.examples[0]
    assert first.dataset == "toy"
    assert first.id == example_id("toy", "one") == "toy/7692c3ad3540bb80"  # sha256 of `one`


def test_those_with_the_most_pairs_stay_and_the_others_are_counted(tmp_path: Path) -> None:
    put(tmp_path, lines(asked("d", 1), asked("b", 1, 2, 3), asked("c", 1, 2), asked("a", 1, 2)))
    found = gather(TOY, tmp_path, most_examples=3)
    assert [text for text, _ in held(found)] == ["b", "c", "a"]  # the id of d is the least
    assert (found.surplus_examples, found.surplus_pairs) == (1, 1)
    assert found.questions == 8 == 7 + found.surplus_pairs


def test_equal_ones_are_chosen_by_their_ids_whatever_their_order_in_the_file(
    tmp_path: Path,
) -> None:
    texts = ["a", "b", "c", "d", "e", "f"]
    kept = []
    for order in (texts, texts[::-1]):
        put(tmp_path, lines(*(asked(text, 1) for text in order)))
        found = gather(TOY, tmp_path, most_examples=2)
        assert found.surplus_examples == 4
        kept.append({text for text, _ in held(found)})
    assert kept[0] == kept[1] == set(sorted(texts, key=lambda text: example_id("toy", text))[:2])


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ({"text": " ", "qas": [["Q?", "A"]]}, "no_context", "Q?"),
        ({"text": "t", "qas": [["", "A"]]}, "no_question", "A"),
        ({"text": "t", "qas": []}, "no_question", "the record holds none"),
        ({"text": "t", "qas": [["Q?", " "]]}, "no_answer", "Q?"),
        ({"text": "t", "qas": [["Q?", "x", "y", "z"]]}, "answer_not_among_options", "'x' of"),
        ({"text": "a <ANS> b", "qas": [["Q?", "A"]]}, "holds_a_tag", "<ANS>"),
        ({"text": "t", "qas": [["Q?", "see </END>"]]}, "holds_a_tag", "</END>"),
        ({"text": "t", "qas": [["Q?", "A", "A", "</s>"]]}, "holds_a_tag", "</s>"),
        ({"text": "t"}, "malformed_record", "KeyError: 'qas'"),
        ({"text": "t", "qas": [["Q?"]]}, "malformed_record", "ValueError"),
        ([1, 2], "malformed_record", "TypeError"),
        ({"text": "t", "qas": [["Q?", 7]]}, "malformed_record", "7 is no text"),
        ({"text": "t", "qas": [[None, "A"]]}, "malformed_record", "None is no text"),
        ({"text": "t", "qas": [["Q?", "A", "A", 0]]}, "malformed_record", "0 is no text"),
    ],
)
def test_what_cannot_be_used_is_listed_with_its_reason_and_place(
    tmp_path: Path, record: object, reason: str, detail: str
) -> None:
    put(tmp_path, lines(asked("good", 1), record))
    found = gather(TOY, tmp_path)
    assert held(found) == [("good", ["Q1?"])]
    assert found.reasons == {reason: 1}
    assert found.rejected[0].where == "train.jsonl:2"
    assert detail in found.rejected[0].detail


def test_a_question_is_repeated_where_text_and_options_are_the_same(tmp_path: Path) -> None:
    qas = [["Which?", "a", "a", "b"], ["WHICH? ", "b", "a", "b"], ["Which?", "a", "a", "c"]]
    put(tmp_path, lines({"text": "one", "qas": qas}, {"text": "two", "qas": qas[:1]}))
    found = gather(TOY, tmp_path)
    assert [(e.text, [p.options for p in e.pairs]) for e in found.examples] == [
        ("one", [("a", "b"), ("a", "c")]),
        ("two", [("a", "b")]),
    ]
    assert found.reasons == {"repeated_question": 1}
    assert found.questions == 4


def test_a_line_that_is_no_json_is_one_record(tmp_path: Path) -> None:
    put(tmp_path, lines(asked("one", 1)) + '{"text": \n\n' + lines(asked("two", 2)))
    found = gather(TOY, tmp_path)
    assert [text for text, _ in held(found)] == ["one", "two"]
    assert found.reasons == {"malformed_file": 1}
    assert found.rejected[0].where == "train.jsonl:2"
    assert "is not JSON" in found.rejected[0].detail
    assert found.records == 3


def test_files_that_are_no_text_are_one_record(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b"\xff\xfe\x00")
    put(tmp_path, "id\tx\n1\ty", "t.tsv")
    (tmp_path / "bad.tsv").write_bytes(b"\xff\t\xfe")
    found = gather(TOY, tmp_path)
    assert found.reasons == {"malformed_file": 1}
    assert found.rejected[0].where == "train.jsonl:1"
    with Files(tmp_path, ["*.jsonl"]) as files:
        assert "cannot be read" in next(pieces(files.chosen()[0], whole)).error
        assert "cannot be read" in next(unquoted_rows(files.find("bad.tsv")[0])).error
        cells = [(line.where, line.value) for line in unquoted_rows(files.find("t.tsv")[0])]
    assert cells == [("t.tsv:1", ["id", "x"]), ("t.tsv:2", ["1", "y"])]


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar", "gz", "zip in tar.gz"])
def test_archives_are_read_as_if_they_were_unpacked(tmp_path: Path, kind: str) -> None:
    data = lines(asked("one", 1)).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("set/train.jsonl", data)
    if kind == "gz":
        (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(data))
    elif kind == "zip":
        (tmp_path / "set.zip").write_bytes(packed.getvalue())
    else:
        inner = kind.startswith("zip")
        name, inside = ("set.zip", packed.getvalue()) if inner else ("train.jsonl", data)
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w") as tar:
            info = tarfile.TarInfo(name)
            info.size = len(inside)
            tar.addfile(info, io.BytesIO(inside))
        data = target.getvalue()
        ending = kind.split()[-1]
        packed_tar = gzip.compress(data) if ending == "tar.gz" else data
        (tmp_path / f"set.{ending}").write_bytes(packed_tar)
    with Files(tmp_path, TOY.train) as files:
        chosen = files.chosen()
        unpacked = chosen[0].path
    assert [file.name.rpartition("/")[2] for file in chosen] == ["train.jsonl"]
    assert unpacked.exists() == (kind == "gz")  # what was unpacked is gone again
    assert held(gather(TOY, tmp_path)) == [("one", ["Q1?"])]


@pytest.mark.parametrize("name", ["set.zip", "set.tar.gz"])
def test_a_damaged_archive_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no archive")
    with pytest.raises(UserError, match=rf"(?s){name} cannot be unpacked .*download it again"):
        gather(TOY, tmp_path)


def test_a_folder_without_the_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no file train\.jsonl"):
        gather(TOY, tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        gather(TOY, tmp_path / "absent")


def test_files_are_chosen_by_the_ends_of_their_paths(tmp_path: Path) -> None:
    put(tmp_path, lines(asked("train", 1)))
    put(tmp_path, lines(asked("dev", 1)), "dev.jsonl")
    put(tmp_path, lines(asked("other", 1)), "mytrain.jsonl")
    (tmp_path / "v2").mkdir()
    put(tmp_path / "v2", lines(asked("deeper", 1)))
    texts = [text for text, _ in held(gather(TOY, tmp_path))]
    assert texts == ["train", "deeper"]
    assert held(gather(TOY, tmp_path, files=TOY.held_out)) == [("dev", ["Q1?"])]
    assert held(gather(TOY, tmp_path, files=["v2/*.jsonl"])) == [("deeper", ["Q1?"])]


def test_a_pattern_names_the_split_of_a_file_that_holds_several(tmp_path: Path) -> None:
    put(tmp_path, "", "qaps.csv")
    with Files(tmp_path, ["qaps.csv#valid"]) as files:
        assert [(file.name, file.part) for file in files.chosen()] == [("qaps.csv", "valid")]
        both = files.find("qaps.csv#dev", "*.csv#valid", "qaps.csv#dev", "*.csv")
        assert [file.part for file in both] == ["dev", "valid", ""]


FIGURE_7 = {
    "encyclopedia": "squad topiocqa quac wikitablequestions qed hotpotqa",
    "fiction": "fairytaleqa narrativeqa mctest",
    "academic_tests": "race race_c dream logiqa reclor aqua",
    "trivia": "triviaqa",
    "news": "nlquad newsqa",
    "expert_materials": "qasper covid_qa convfinqa spartqa babi qasc ecqa pubmedqa",
    "social_media": "tweetqa",
    "code": "",
    MULTI_DOMAIN: "coqa doqa ropes quartz multirc quail cosmosqa",
}


def test_the_sets_of_figure_7_give_the_shares_of_table_12() -> None:
    """Texts of several domains are in none of its columns."""
    own = [d for d in DATASETS.values() if not d.unseen and not d.copy_of]
    for domain in (*DOMAINS, MULTI_DOMAIN):
        assert {d.name for d in own if d.domain == domain} == {*FIGURE_7[domain].split()}
    counts = [len(FIGURE_7[domain].split()) for domain in DOMAINS]
    shares = [round(100 * count / sum(counts), 1) for count in counts]
    assert shares == [22.2, 11.1, 22.2, 3.7, 7.4, 29.6, 3.7, 0.0]
    closed = [d.name for d in own if d.licence == "non-commercial research only"]
    assert closed == ["race", "race_c", "dream", "reclor"]


def test_every_set_says_where_it_is_from() -> None:
    assert {name for name, d in DATASETS.items() if d.unseen} == {
        *("socialiqa", "textbookqa", "wikiwhy", "fever")
    }
    for name, dataset in DATASETS.items():
        assert name == dataset.name
        assert dataset.domain in (*DOMAINS, MULTI_DOMAIN), name
        assert dataset.train and dataset.licence, name
        assert ";" in dataset.source and "http" not in dataset.source, name
        assert not set(dataset.train) & set(dataset.held_out), name
        assert not dataset.copy_of or dataset.copy_of in DATASETS, name


def test_a_reader_that_cannot_go_on_names_the_set_and_its_folder(tmp_path: Path) -> None:
    questions = tmp_path / "questions" / "train"
    stories = tmp_path / "section-stories" / "train"
    for folder in (questions, stories):
        folder.mkdir(parents=True)
    (questions / "a-questions.csv").write_text("question_id,cor_section\n1,1\n")
    (stories / "a-story.csv").write_text("number,text\n1,Once.\n")
    with pytest.raises(UserError, match=r"fairytaleqa in .* layout promises \(KeyError: 'section'"):
        gather(DATASETS["fairytaleqa"], tmp_path)
