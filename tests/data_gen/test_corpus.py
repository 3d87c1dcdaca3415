"""Corpus forms and what bad ones get."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from data_gen.corpus import Document, corpus_sha256, find_files, read_corpus
from data_gen.corpus import seen_ids as seen_ids_module
from data_gen.corpus.seen_ids import SeenIds
from data_gen.stages.ingest import _jsonable
from ipt_jax.core import json_lines
from ipt_jax.core.errors import UserError
from ipt_jax.core.example_proto import example_class
from ipt_jax.core.records import Record, ShardWriter, serialize
from ipt_jax.core.rejection import Rejection

WANTED = ["first text", "zweiter Text: ü"]


def documents(*paths: object, **settings: Any) -> list[Document]:
    found = list(read_corpus([str(path) for path in paths], **settings))
    assert all(isinstance(one, Document) for one in found), found
    return [one for one in found if isinstance(one, Document)]


def texts(*paths: object, **settings: Any) -> list[str]:
    return [one.text for one in documents(*paths, **settings)]


def rejected(*paths: object, **settings: Any) -> list[Rejection]:
    found = list(read_corpus([str(path) for path in paths], **settings))
    return [one for one in found if isinstance(one, Rejection)]


def packed(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def example(features: dict[str, Any]) -> bytes:
    made: Any = example_class()()
    for key, value in features.items():
        feature = made.features.feature[key]
        if isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            values = value if isinstance(value, list) else [value]
            feature.bytes_list.value.extend(
                one.encode() if isinstance(one, str) else one for one in values
            )
    return made.SerializeToString()


def write_examples(path: Path, items: list[bytes]) -> Path:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for item in items:
        writer.write(item)
    writer.close()
    return path


def write_forms(folder: Path) -> dict[str, str]:
    """The wanted texts in every form that needs no extra; form -> path or pattern in `folder`."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in WANTED).encode()
    for number, text in enumerate(WANTED):
        for name in ("t", "tgz", "tzst"):
            (folder / name).mkdir(exist_ok=True)
        (folder / "t" / f"{number}.txt").write_text(text)
        (folder / "tgz" / f"{number}.txt.gz").write_bytes(gzip.compress(text.encode()))
        (folder / "tzst" / f"{number}.txt.zst").write_bytes(packed(text.encode()))
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines[:7]) + gzip.compress(lines[7:]))
    (folder / "c.jsonl.zst").write_bytes(packed(lines[:7]) + packed(lines[7:]))
    (folder / "d.json.gz").write_bytes(gzip.compress(lines))
    pq.write_table(pa.table({"text": WANTED}), folder / "e.parquet")
    write_examples(
        folder / "f.array_record-00000-of-00001", [example({"text": text}) for text in WANTED]
    )
    with ShardWriter(folder / "shards", records_per_shard=1) as shards:
        for number, text in enumerate(WANTED):
            shards.write(Record(str(number), text, "made"))
    names = ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.json.gz", "e.parquet", "shards")
    patterns = ("t/*.txt", "tgz/*.txt.gz", "tzst/*.txt.zst", "f.array_record*")
    return {name: name for name in (*names, *patterns)}


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's filesystem in memory, empty."""
    fsspec = pytest.importorskip("fsspec", reason="opens URLs; comes with 'ipt-jax[sources]'")
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.rm("/corpus", recursive=True)


def test_every_form_gives_the_same_texts_here_and_elsewhere(tmp_path: Path, memory: Any) -> None:
    forms = write_forms(tmp_path)
    memory.put(f"{tmp_path}/", "/corpus", recursive=True)
    for form, name in forms.items():
        here = documents(tmp_path / name)
        assert [one.text for one in here] == WANTED, form
        assert documents(f"memory:///corpus/{name}") == here, form
        assert documents(f"file://{tmp_path}/{name}") == here, form
    assert texts(tmp_path / "a.jsonl", limit=1) == WANTED[:1]


def test_ids_are_given_or_file_and_line_and_fields_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "id": 7, "licence": "MIT"}\n\n{"text": "y", "source": "s"}\n')
    first, second = read_corpus([str(path)])
    assert first == Document("7", "x", "a", {"licence": "MIT"})
    assert second == Document("a.jsonl:3", "y", "s", {})


def test_files_of_one_name_make_different_ids(tmp_path: Path, memory: Any) -> None:
    for folder in ("x/1", "x/2", "y/1"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "part.jsonl").write_text('{"text": "same"}\n')
    memory.pipe("/corpus/1/part.jsonl", b'{"text": "same"}\n')
    found = documents(f"{tmp_path}/*/*/part.jsonl", "memory://corpus/1/part.jsonl")
    ids = [one.id for one in found]
    assert ids == [
        *("x/1/part.jsonl:1", "2/part.jsonl:1", "y/1/part.jsonl:1", "corpus/1/part.jsonl:1"),
    ]
    assert {one.source for one in found} == {"part"}
    same = [tmp_path / "x/1/part.jsonl", tmp_path / "x/2/../1/part.jsonl"]
    assert len(documents(*same)) == 1


def test_bad_records_in_a_good_file_are_rejected_with_their_reason(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"id": "1", "text": "good"}',
        b'{"id": "2", "text": "caf\xe9"}',
        b'{"id": "3", "text": ',
        b'["a list"]',
        b'{"id": "4"}',
        b'{"id": "5", "text": 3}',
        b'{"id": "6", "text": " \\n "}',
        b'{"id": "7", "text": "a\\u0000b"}',
        b'{"id": "1", "text": "again"}',
        b'{"id": "8", "text": "' + b"x" * 5_000_000 + b'"}',
        b'{"id": "9", "text": "\\ud800"}',
        b'{"id": "11", "text": "fine", "more": {"deep": "\\udc00"}}',
        b'{"id": {"a": 1}, "text": "odd"}',
        b'{"id": "12", "text": ' + b"[" * 100_000,
        b'{"id": "13", "text": "x", "more": ' + b"[" * 1490 + b"]" * 1490 + b"}",
        b'{"id": "10", "text": "good too \\ud83d\\ude00"}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = list(read_corpus([str(path)]))
    good = [one for one in found if isinstance(one, Document)]
    assert [(one.id, one.text) for one in good] == [("1", "good"), ("10", "good too 😀")]
    bad = [one for one in found if isinstance(one, Rejection)]
    assert [(one.where, one.reason) for one in bad] == [
        (f"a.jsonl:{line}", reason)
        for line, reason in enumerate(
            [
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
                "undecodable",
                "bad_id",
                "not_json",
                "not_json",
            ],
            2,
        )
    ]
    assert bad[7].id == "1" and "5,000,000" in bad[8].detail


def write_bytes(content: bytes):
    def make(path: Path) -> None:
        path.write_bytes(content)

    return make


LINES = b"".join(json.dumps({"text": f"text {number}"}).encode() + b"\n" for number in range(9999))


def cut_parquet(path: Path) -> None:
    pq.write_table(pa.table({"text": [f"text {number}" for number in range(9999)]}), path)
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("gone.jsonl", None, "does not exist"),
        ("gone-*.jsonl", None, "matches no file"),
        ("empty.jsonl", write_bytes(b"\n"), "empty"),
        ("a.docx", write_bytes(b"x"), "not a form of corpus"),
        ("a.warc.wat.gz", write_bytes(b"x"), "not a form of corpus"),
        ("folder", lambda path: path.mkdir(), "not a form of corpus"),
        ("latin.txt", write_bytes(b"caf\xe9"), "not UTF-8"),
        ("binary.jsonl", write_bytes(bytes(range(128, 256)) * 4), "none of its"),
        ("a.jsonl.gz", write_bytes(b"no gzip"), "cannot be read"),
        ("cut.jsonl.gz", write_bytes(gzip.compress(LINES)[:-9]), "cannot be read"),
        ("a.jsonl.zst", write_bytes(b"no zstd"), "cannot be read"),
        ("cut.jsonl.zst", write_bytes(packed(LINES)[:-9]), "cannot be read"),
        ("a.parquet", write_bytes(b"PAR1 no"), "cannot be read"),
        ("cut.parquet", cut_parquet, "cannot be read"),
        ("a.array_record", write_bytes(b"no ArrayRecord" * 9999), "no ArrayRecord"),
    ],
)
def test_a_file_bad_as_a_whole_is_named(
    tmp_path: Path, memory: Any, name: str, make, says: str
) -> None:
    path = tmp_path / name
    if make is not None:
        make(path)
    with pytest.raises(UserError, match=says) as error:
        list(read_corpus([str(path)]))
    assert name in str(error.value)
    memory.mkdir("/corpus")
    if path.exists():
        memory.put(str(path), f"/corpus/{name}", recursive=path.is_dir())
    with pytest.raises(UserError, match=says) as error:
        list(read_corpus([f"memory:///corpus/{name}"]))
    assert name in str(error.value)


def test_a_text_file_that_cannot_be_read_is_rejected_among_others(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_bytes(b"caf\xe9")
    (tmp_path / "2.txt.gz").write_bytes(gzip.compress(b"text" * 99)[:-9])
    (tmp_path / "3.txt.zst").write_bytes(packed(b"text " * 9999)[:-5])
    (tmp_path / "4.txt").write_text("good", encoding="utf-8-sig")
    (tmp_path / "5.txt").write_bytes(b"")
    found = list(read_corpus([f"{tmp_path}/*"], text_field="content"))
    assert [getattr(one, "reason", one.id) for one in found] == [
        *("undecodable", "damaged", "damaged", "4.txt", "empty"),
    ]
    assert found[3] == Document("4.txt", "good", tmp_path.name)


def test_a_row_that_is_not_utf8_is_rejected_alone(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"caf\xe9", b"too"], pa.binary())
    told_as_text = pa.table({"text": raw.cast(pa.string(), safe=False), "id": ["a", "b", "c"]})
    pq.write_table(told_as_text, tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": raw}), tmp_path / "b.parquet")
    for name in ("a.parquet", "b.parquet"):
        found = list(read_corpus([str(tmp_path / name)]))
        assert [getattr(one, "text", None) for one in found] == ["good", None, "too"]
        assert [(one.reason, one.where) for one in rejected(tmp_path / name)] == [
            ("undecodable", f"{name}:2")
        ]


def test_values_that_python_cannot_hold(tmp_path: Path) -> None:
    """Text where nobody asks for them; a rejected row where the id is one."""
    table = pa.table(
        {
            "text": ["a", "b", "c"],
            "day": pa.array([1, 5_000_000, None], pa.date32()),
            "at": pa.array([None, None, 1], pa.timestamp("s", "Mars/City")),
        }
    )
    pq.write_table(table, path := tmp_path / "a.parquet")
    first, second, third = documents(path)
    assert str(first.metadata["day"]) == "1970-01-02"
    assert second.metadata == {"day": "15659-07-15", "at": None}
    assert third.metadata == {"day": None, "at": "1970-01-01 00:00:01.000Z"}
    assert [(one.where, one.reason) for one in rejected(path, id_field="at")] == [
        ("a.parquet:3", "undecodable")
    ]


def test_a_line_of_any_length_is_never_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 100)
    row = b'{"text": "%b"}'
    lines = [row % b"a", row % (b"x" * 1000), row % (b"x" * 89), row % (b"x" * 88), row % b"b"]
    for name, data in (
        ("a.jsonl", b"\n".join(lines)),
        ("a.jsonl.gz", gzip.compress(b"\n".join(lines))),
        ("a.jsonl.zst", packed(b"\n".join(lines))),
        ("1.txt.gz", gzip.compress(b"x" * 101)),
    ):
        (tmp_path / name).write_bytes(data)
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst"):
        found = list(read_corpus([str(tmp_path / name)]))
        assert [getattr(one, "reason", "") for one in found] == ["", *["too_long"] * 2, "", ""]
    assert [one.reason for one in rejected(tmp_path / "1.txt.gz")] == ["too_long"]


def test_a_table_without_the_text_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    pq.write_table(pa.table({"txt": ["a"], "number": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column `text`.*nearest is 'txt'"):
        list(read_corpus([str(tmp_path / "a.parquet")]))
    assert texts(tmp_path / "a.parquet", text_field="txt") == ["a"]


def test_examples_of_others_are_read_by_their_features(tmp_path: Path) -> None:
    items = [
        example({"body": "one", "key": 5, "tags": ["a", "b"]}),
        example({"body": b"caf\xe9", "key": 6}),
        b"\xff no example",
        example({"key": 7}),
        example({"body": ["two", "texts"], "key": 8}),
        example({"body": "last", "key": 5}),
    ]
    path = write_examples(tmp_path / "c4-train.array_record-00000-of-00001", items)
    found = list(read_corpus([str(path)], text_field="body", id_field="key"))
    assert found[0] == Document("5", "one", "c4-train", {"tags": ["a", "b"]})
    assert [(one.id, one.reason) for one in rejected(path, text_field="body", id_field="key")] == [
        ("6", "undecodable"),
        (f"{path.name}:2", "damaged"),
        ("7", "no_text"),
        ("8", "no_text"),
        ("5", "duplicate_id"),
    ]


def test_a_damaged_chunk_of_examples_costs_its_records_alone(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    items = [example({"text": random.bytes(30_000).hex()}) for _ in range(40)]
    path = write_examples(tmp_path / "a.arrayrecord", items)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    path.write_bytes(data)
    found = list(read_corpus([str(path)]))
    bad = [one for one in found if isinstance(one, Rejection)]
    assert len(found) == len(items)
    assert {one.reason for one in bad} == {"damaged"} and 1 <= len(bad) <= 2
    assert isinstance(found[0], Document) and isinstance(found[-1], Document)


def test_a_damaged_shard_is_refused_by_name(tmp_path: Path, memory: Any) -> None:
    write_forms(tmp_path)
    shard = tmp_path / "shards" / "part-00001.arrayrecord"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    memory.put(f"{tmp_path}/", "/corpus", recursive=True)
    for place in (f"{tmp_path}/shards", "memory:///corpus/shards"):
        with pytest.raises(UserError, match=r"part-00001\.arrayrecord") as error:
            list(read_corpus([place]))
        assert place.partition(":")[0] in str(error.value)


def test_real_corpora_are_read_as_they_lie(shared: Path) -> None:
    fixtures = shared / "data" / "hf_datasets_fixtures"
    c4 = documents(fixtures / "c4" / "en" / "c4-validation.00000-of-00008.json.gz")
    assert c4 and all(one.source == "c4-validation" and "url" in one.metadata for one in c4)
    pile = documents(f"{fixtures}/the_pile/**/*.jsonl.zst")
    assert pile and len({one.id for one in pile}) == len(pile)
    assert all("meta" in one.metadata for one in pile)
    [wiki] = documents(
        shared / "data" / "corpus_wiki_demo" / "wiki_demo.txt.gz", max_characters=2_000_000
    )
    assert wiki.id == "wiki_demo.txt.gz" and wiki.source == "corpus_wiki_demo"


def test_the_checksum_sees_a_changed_byte_in_every_form(tmp_path: Path, memory: Any) -> None:
    forms = write_forms(tmp_path)
    memory.put(f"{tmp_path}/", "/corpus", recursive=True)
    here = {name: corpus_sha256(find_files([f"{tmp_path}/{name}"])) for name in forms}
    there = {name: corpus_sha256(find_files([f"memory:///corpus/{name}"])) for name in forms}
    assert len({*here.values()}) == len(forms)
    before = WANTED[1]
    try:
        WANTED[1] = before.replace("ü", "ö")  # of the same length
        write_forms(tmp_path)
    finally:
        WANTED[1] = before
    assert {
        name: corpus_sha256(find_files([f"memory:///corpus/{name}"])) for name in forms
    } == there
    memory.rm("/corpus", recursive=True)
    memory.put(f"{tmp_path}/", "/corpus", recursive=True)
    for name in forms:
        assert corpus_sha256(find_files([f"{tmp_path}/{name}"])) != here[name], name
        assert corpus_sha256(find_files([f"memory:///corpus/{name}"])) != there[name], name


def test_a_filesystem_that_tells_a_version_is_not_read_for_the_checksum(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/corpus/a.jsonl", LINES)
    [file] = find_files(["memory:///corpus/a.jsonl"])
    told = {"size": len(LINES), "ETag": '"1"', "LastModified": "today"}
    monkeypatch.setattr(type(memory), "info", lambda self, path, **_: told)
    monkeypatch.setattr(type(memory), "open", lambda *_, **__: pytest.fail("it was read"))
    first = corpus_sha256([file])
    told["LastModified"] = "tomorrow"  # a copy of the same content
    assert corpus_sha256([file]) == first
    told["ETag"] = '"2"'
    second = corpus_sha256([file])
    assert second != first
    del told["ETag"]
    assert corpus_sha256([file]) not in (first, second)


def test_what_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="'nowhere://x/a.jsonl' in `input` cannot be reached"):
        find_files(["nowhere://x/a.jsonl"])
    with pytest.raises(UserError, match="does not exist"):
        find_files(["memory:///corpus-gone/a.jsonl"])
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"memory:///a.jsonl is read with fsspec.*\[sources\]"):
        find_files(["memory:///a.jsonl"])


def test_numbers_that_json_has_not_do_not_stop_a_run(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "score": NaN, "list": [1e999]}\n')
    [found] = documents(tmp_path / "a.jsonl")
    kept = _jsonable({"metadata": dict(found.metadata)})
    assert kept == {"metadata": {"score": None, "list": [None]}}
    assert serialize(Record(found.id, found.text, found.source, provenance=kept))


def test_every_id_is_known_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen_ids_module, "_MOST_IN_SET", 100)
    ids, known = SeenIds(), set[str]()
    random = np.random.default_rng(0)
    for number in random.integers(0, 20_000, 40_000).tolist():
        name = f"a/{number}.jsonl"
        assert ids.add(name) == (name not in known)
        known.add(name)
    assert len(ids) == len(known)
    assert not any(ids.add(name) for name in known)
