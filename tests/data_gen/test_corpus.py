"""Corpus forms and what bad ones get."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_gen.corpus import Document, RejectedDocument, corpus_sha256, find_files, read_corpus
from ipt_jax.errors import UserError
from ipt_jax.records import Record, ShardWriter


def texts(paths: list[Path], limit: int | None = None) -> list[str]:
    found = list(read_corpus([str(path) for path in paths], limit=limit))
    assert all(isinstance(one, Document) for one in found)
    return [one.text for one in found if isinstance(one, Document)]


def test_every_form_gives_the_same_texts(tmp_path: Path) -> None:
    wanted = ["first text", "zweiter Text: ü"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in wanted)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.table({"text": wanted}), tmp_path / "c.parquet")
    with ShardWriter(tmp_path / "shards") as shards:
        for number, text in enumerate(wanted):
            shards.write(Record(str(number), text, "made"))
    (tmp_path / "t").mkdir()
    for number, text in enumerate(wanted):
        (tmp_path / "t" / f"{number}.txt").write_text(text)
    for path in ("a.jsonl", "b.jsonl.gz", "c.parquet", "shards", "t/*.txt"):
        assert texts([tmp_path / path]) == wanted, path
    assert texts([tmp_path / "a.jsonl"], limit=1) == wanted[:1]


def test_ids_are_given_or_file_and_line_and_fields_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "id": 7, "licence": "MIT"}\n\n{"text": "y", "source": "s"}\n')
    first, second = read_corpus([str(path)])
    assert first == Document("7", "x", "a", {"licence": "MIT"})
    assert second == Document("a.jsonl:3", "y", "s", {})


def test_bad_records_in_a_good_file_are_rejected_with_their_reason(tmp_path: Path) -> None:
    lines = [
        b'{"id": "1", "text": "good"}',
        b'{"id": "2", "text": "caf\xe9"}',
        b'{"id": "3", "text": ',
        b'["a list"]',
        b'{"id": "4"}',
        b'{"id": "5", "text": 3}',
        b'{"id": "6", "text": " \\n "}',
        b'{"id": "7", "text": "a\\u0000b"}',
        b'{"id": "1", "text": "again"}',
        b'{"id": "8", "text": "' + b"x" * 200 + b'"}',
        b'{"id": "9", "text": "\\ud800"}',
        b'{"id": {"a": 1}, "text": "odd"}',
        b'{"id": "10", "text": "good too"}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = list(read_corpus([str(path)], max_characters=100))
    assert [one.id for one in found if isinstance(one, Document)] == ["1", "10"]
    rejected = [one for one in found if isinstance(one, RejectedDocument)]
    assert [one.reason for one in rejected] == [
        "undecodable",
        "not_json",
        "not_json",
        "no_text",
        "no_text",
        "empty",
        "nul_character",
        "duplicate_id",
        "too_long",
        "undecodable",
        "bad_id",
    ]
    assert rejected[0].where == "a.jsonl:2"
    assert len(found) == len(lines)


def write_bytes(content: bytes):
    def make(path: Path) -> None:
        path.write_bytes(content)

    return make


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("gone.jsonl", None, "does not exist"),
        ("gone-*.jsonl", None, "matches no file"),
        ("empty.jsonl", write_bytes(b"\n"), "empty"),
        ("a.docx", write_bytes(b"x"), "not a form of corpus"),
        ("folder", lambda path: path.mkdir(), "not a form of corpus"),
        ("latin.txt", write_bytes(b"caf\xe9"), "not UTF-8"),
        ("binary.jsonl", write_bytes(bytes(range(128, 256)) * 4), "none of its"),
        ("a.jsonl.gz", write_bytes(b"no gzip"), "cannot be read"),
        (
            "cut.jsonl.gz",
            write_bytes(gzip.compress(b'{"text": "x"}\n' * 99)[:-9]),
            "cannot be read",
        ),
        ("a.parquet", write_bytes(b"PAR1 no"), "cannot be read"),
    ],
)
def test_a_file_bad_as_a_whole_is_named(tmp_path: Path, name: str, make, says: str) -> None:
    path = tmp_path / name
    if make is not None:
        make(path)
    with pytest.raises(UserError, match=says) as error:
        list(read_corpus([str(path)]))
    assert name in str(error.value)


def test_the_checksum_sees_a_changed_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n')
    before = corpus_sha256(find_files([str(path)]))
    path.write_text('{"text": "y"}\n')
    assert corpus_sha256(find_files([str(path)])) != before
