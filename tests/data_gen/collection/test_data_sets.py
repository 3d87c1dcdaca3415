"""Every data set's adapter against golden files: what it makes of real files and of made ones.

`tests/golden/collection/NAME.yaml` holds the cases of the set NAME. Those with `shared` read real
files (../shared/data/README.md says whose); few lines of them stand in `holds`, the digest is of
everything. Those with `files` bring their own in the official layouts, with texts of ours: a text
is written as it is, other values as JSON, `lines` as JSON lines, `rows` as parquet.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from data_gen.instruction_pretrain.collection import DATASETS, Gathered, gather, windows
from data_gen.instruction_pretrain.collection.short_texts import TRIVIA_WORDS
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.errors import UserError

GOLDEN = Path(__file__).parents[2] / "golden" / "collection"


def golden_cases() -> Iterator[Any]:
    for path in sorted(GOLDEN.glob("*.yaml")):
        cases = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
        for number, case in enumerate(cases):
            yield pytest.param(path.stem, case, id=f"{path.stem}-{number}-{case['case']}")


def write_file(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict) and [*content] == ["rows"]:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content["rows"]), path)
    else:
        if isinstance(content, dict) and [*content] == ["lines"]:
            lines = (x if isinstance(x, str) else json.dumps(x) for x in content["lines"])
            content = "\n".join(lines) + "\n"
        elif not isinstance(content, str):
            content = json.dumps(content, indent=2)
        path.write_text(content, encoding="utf-8", newline="")


def as_listed(pair: Pair) -> list[Any]:
    """Question and answer, then options where there are any, then the rationale."""
    listed = [pair.instruction, pair.response, [*pair.options], pair.rationale]
    return listed if pair.rationale is not None else listed[: 3 if pair.options else 2]


def digest(found: Gathered) -> str:
    """Of all examples, and of the reason and place of what is none."""
    whole: list[Any] = [
        [e.text, [[p.instruction, p.response, p.options, p.rationale] for p in e.pairs]]
        for e in found.examples
    ]
    whole.append([[u.reason, u.where] for u in found.rejected])
    return hashlib.sha256(json.dumps(whole, ensure_ascii=False).encode()).hexdigest()[:16]


def counted(found: Gathered, names: Any) -> dict[str, int]:
    own = {"examples": len(found.examples), "pairs": sum(len(e.pairs) for e in found.examples)}
    return {name: own[name] if name in own else getattr(found, name) for name in names}


@pytest.mark.parametrize(("name", "case"), golden_cases())
def test_what_an_adapter_makes_of_a_folder(
    name: str, case: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path
    if "shared" in case:
        folder = request.getfixturevalue("shared") / "data" / case["shared"]
    for path, content in case.get("files", {}).items():
        write_file(tmp_path / path, content)
    patterns = case.get("patterns")  # in place of those of its training files
    if patterns == "held_out":
        patterns = DATASETS[name].held_out
    found = gather(DATASETS[name], folder, files=patterns)
    assert counted(found, case["counts"]) == case["counts"]
    for one in case.get("holds", ()):
        examples = [example for example in found.examples if one.get("text", "") in example.text]
        pairs = [as_listed(pair) for example in examples for pair in example.pairs]
        assert pairs and all(pair in pairs for pair in one.get("pairs", ()))
        options = {o for example in examples for pair in example.pairs for o in pair.options}
        assert {*one.get("options", ())} <= options
    if "digest" in case:
        assert found.reasons == case.get("reasons", {})
        assert digest(found) == case["digest"]
        return
    assert [
        {"text": example.text, "pairs": [as_listed(pair) for pair in example.pairs]}
        for example in found.examples
    ] == case.get("examples", [])
    unusable = case.get("unusable", [])
    assert [[u.reason, u.where] for u in found.rejected] == [one[:2] for one in unusable]
    for one, (*_, detail) in zip(found.rejected, unusable, strict=True):
        assert one.detail.startswith(detail)


def test_every_data_set_has_cases() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == {*DATASETS}


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
    packed = ".gz" if name == "babi" else ""
    write_file(tmp_path / f"{file}{packed}", b"1 caf\xe9\n")  # neither UTF-8 nor packed
    found = gather(DATASETS[name], tmp_path)
    (piece,) = found.rejected
    where = piece.where.removesuffix(":1")
    assert (piece.reason, where, found.examples) == ("malformed_file", file, [])
    assert piece.detail.startswith("cannot be read: ")


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


def test_a_question_of_a_long_paper_has_the_window_of_its_answer(tmp_path: Path) -> None:
    """3,000 words of which one sentence in fifty has an answer, the same words in each."""
    said = [f"Sentence {n} tells of cell {n} and of little else." for n in range(333)]
    said[::50] = [f"Drug {n} works in {n} days." for n in range(7)]
    text = " \n" + " ".join(said)
    asked = [
        {
            "question": f"How long of {n}?",
            "answers": [{"text": "days", "answer_start": text.index(f"{n} days") + 2}],
        }
        for n in range(7)
    ]
    far = {"text": text[50:9000], "answer_start": 50}
    more = [
        {"question": "Nowhere?", "answers": [{"text": "hours", "answer_start": 3}]},
        {"question": "Off by some?", "answers": [{"text": "Drug 3 works", "answer_start": 7}]},
        {"question": "All?", "answers": [far]},
    ]
    short = {"context": " ".join(said[:100]), "qas": asked[:1]}
    document = {"data": [{"paragraphs": [{"context": text, "qas": asked + more}, short]}]}
    write_file(tmp_path / "COVID-QA.json", document)
    found = gather(DATASETS["covid_qa"], tmp_path)
    assert (found.rejected, found.in_windows, found.questions) == ([], 9, 11)
    by_text = {one.text: [pair.instruction for pair in one.pairs] for one in found.examples}
    assert by_text.pop(text.strip()) == ["Nowhere?"]  # as long as it was, and counted in tuning
    assert by_text.pop(" ".join(said[:100])) == ["How long of 0?"]
    for window, questions in by_text.items():
        assert window.startswith(("Sentence", "Drug")) and window.endswith(".")
        for question in questions:
            number = question.removeprefix("How long of ").removesuffix("?")
            assert not number.isdigit() or f"Drug {number} works in {number} days." in window
            assert "Off" not in question or "Drug 3 works" in window
            assert "All" not in question or far["text"] in window
        assert 800 <= len(window.split()) < 830 or "All?" in questions
    assert len(by_text) < 9  # near answers share a window
    unbroken = "word " * 3000
    assert windows.window(unbroken, 7000, 7004) == ("word " * 800).strip()


def test_trivia_needs_the_answer_in_the_beginning_of_a_document(tmp_path: Path) -> None:
    long = " ".join(["word"] * (TRIVIA_WORDS - 1))
    write_file(tmp_path / "evidence/wikipedia/C#.txt", f"{long} here beyond")
    write_file(tmp_path / "evidence/wikipedia/B.txt", "The Bard wrote it.\n\nHe lived long ago.")
    data = [
        {
            "Question": asked,
            "Answer": {"Value": value, "Aliases": [value, *aliases], "Type": "FreeForm"},
            "EntityPages": [{"Filename": file, "Title": file} for file in files],
        }
        for asked, value, files, aliases in (
            ("Who?", "Shakespeare", ("B.txt", "C#.txt"), ("the bard", "")),
            ("Here?", "here", ("C#.txt", "C#.txt"), ()),
            ("There?", "beyond", ("C#.txt",), ()),
            ("Part of a word?", "live", ("B.txt",), ()),
            ("No file?", "x", ("D.txt",), ()),
        )
    ]
    name = "qa/wikipedia-train.json"
    write_file(tmp_path / name, {"Data": [*data, {"Question": "No answer?"}]})
    found = gather(DATASETS["triviaqa"], tmp_path)
    assert [(e.text.split()[-1], e.pairs) for e in found.examples] == [
        ("ago.", (Pair("Who?", "Shakespeare"),)),
        ("here", (Pair("Here?", "here"),)),
    ]
    assert len(found.examples[1].text.split()) == TRIVIA_WORDS
    reasons = ["no_context"] * 3 + ["malformed_record"]
    assert [(u.reason, u.where) for u in found.rejected] == [
        (reason, f"{name}[{place}]") for place, reason in enumerate(reasons, 2)
    ]
    write_file(tmp_path / name, {"data": []})
    assert gather(DATASETS["triviaqa"], tmp_path).reasons == {"malformed_file": 1}
