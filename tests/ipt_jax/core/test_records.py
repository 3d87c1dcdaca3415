"""Records: the proto's bytes, round trips, and what damage gets."""

import errno
import json
import os
import pickle
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from ipt_jax.core import manifest, shard_file
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import (
    Manifest,
    Record,
    RecordSource,
    ShardWriter,
    atomic_write,
    parse,
    serialize,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def a_record(draw: st.DrawFn) -> Record:
    parts = draw(st.none() | st.lists(TEXT, max_size=4).map(tuple))
    loss = None if parts is None else tuple(draw(st.sampled_from([0.0, 0.5, 1.0])) for _ in parts)
    text = draw(TEXT) if parts is None else "".join(parts)
    provenance = draw(st.dictionaries(TEXT, JSON, max_size=3))
    return Record(draw(TEXT), text, draw(TEXT), parts, loss, provenance)


def some(count: int, start: int = 0) -> list[Record]:
    return [
        Record(f"doc-{i}", f"naïve text {i} " * (i % 7), "made", provenance={"seed": i})
        for i in range(start, start + count)
    ]


def write(folder: Path, items: list[Record], **options: object) -> Path:
    with ShardWriter(folder, **options) as writer:  # type: ignore[arg-type]
        for record in items:
            writer.write(record)
    return folder


@given(a_record())
def test_a_record_comes_back_as_it_was(record: Record) -> None:
    assert parse(serialize(record), where="here") == record


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited proto field, written by hand."""
    assert len(content) < 128 * 128
    size = len(content)
    varint = [size] if size < 128 else [size & 127 | 128, size >> 7]
    return bytes([number << 3 | 2, *varint]) + content


def test_the_bytes_are_those_of_tf_train_example() -> None:
    def entry(key: str, value: bytes) -> bytes:
        return _field(1, _field(1, key.encode()) + _field(2, value))

    def bytes_list(*values: bytes) -> bytes:
        return _field(1, b"".join(_field(1, value) for value in values))

    floats = _field(2, _field(1, b"\x00\x00\x00\x00" + b"\x00\x00\x80\x3f"))  # packed 0.0, 1.0
    features = (
        entry("id", bytes_list(b"a"))
        + entry("loss", floats)
        + entry("parts", bytes_list("né".encode(), b"w"))
        + entry("provenance", bytes_list(b"{}"))
        + entry("source", bytes_list(b"s"))
        + entry("text", bytes_list("néw".encode()))
    )
    record = Record("a", "néw", "s", ("né", "w"), (0.0, 1.0))
    assert serialize(record) == _field(1, features)
    assert parse(_field(1, features), where="here") == record


def test_tensorflow_reads_the_bytes() -> None:
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is an extra (seqio)")
    record = Record("a", "néw", "s", ("né", "w"), (0.0, 1.0), {"k": [1]})
    feature = tf.train.Example.FromString(serialize(record)).features.feature
    assert feature["text"].bytes_list.value[0].decode() == "néw"
    assert list(feature["loss"].float_list.value) == [0.0, 1.0]


@settings(max_examples=10, deadline=None)
@given(st.lists(a_record(), max_size=40), st.integers(1, 20))
def test_shards_hold_every_record_in_order(
    tmp_path_factory: pytest.TempPathFactory, items: list[Record], per_shard: int
) -> None:
    folder = write(tmp_path_factory.mktemp("shards"), items, records_per_shard=per_shard)
    source = RecordSource(folder)
    assert source.read(range(len(source))) == items
    assert [s.records for s in source.manifest.shards] == [
        min(per_shard, len(items) - start) for start in range(0, len(items), per_shard)
    ]


def test_reading_in_any_order_and_from_a_pickle(tmp_path: Path) -> None:
    items = some(100)
    source = RecordSource(write(tmp_path, items, records_per_shard=30))
    wanted = [99, 0, 31, 31, 60]
    copy = pickle.loads(pickle.dumps(source))
    assert source[45] == items[45]
    assert copy.read(wanted) == [items[i] for i in wanted]
    with pytest.raises(IndexError):
        source.read([100])


def test_the_manifest_counts(tmp_path: Path) -> None:
    class Words:
        name = "words"

        def encode_batch(self, texts: list[str]) -> list[list[int]]:
            return [[0] * len(text.split()) for text in texts]

    items = some(50)
    write(tmp_path, items, records_per_shard=20, tokenizer=Words())
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["format"] == "ipt-jax-records/1"
    assert [s["records"] for s in content["shards"]] == [20, 20, 10]
    assert sum(s["tokens"]["words"] for s in content["shards"]) == sum(
        len(r.text.split()) for r in items
    )
    assert sum(s["text_bytes"] for s in content["shards"]) == sum(
        len(r.text.encode()) for r in items
    )


def test_parts_that_do_not_join_are_refused() -> None:
    with pytest.raises(UserError, match=r"record 'x'.*join"):
        Record("x", "abc", "s", ("a", "b"), (0.0, 1.0))
    with pytest.raises(UserError, match=r"record 'x'.*2 parts but 1"):
        Record("x", "abc", "s", ("a", "bc"), (0.0,))
    with pytest.raises(UserError, match=r"record 'x'.*both or neither"):
        Record("x", "abc", "s", ("abc",))
    with pytest.raises(UserError, match=r"record 'x'.*negative"):
        Record("x", "abc", "s", ("abc",), (float("nan"),))


def test_what_cannot_be_written_names_the_record() -> None:
    with pytest.raises(UserError, match=r"record 'x'.*Unicode"):
        serialize(Record("x", "a\ud800", "s"))
    with pytest.raises(UserError, match=r"record 'x'.*JSON"):
        serialize(Record("x", "a", "s", provenance={"k": object()}))


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"", serialize(Record("a", "b", "c"))[:-9]])
def test_bytes_that_are_no_record_name_the_place(data: bytes) -> None:
    with pytest.raises(UserError, match=r"record 7 of shard-x"):
        parse(data, where="record 7 of shard-x")


def test_a_changed_byte_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, some(200), records_per_shard=100)
    shard = tmp_path / "part-00001.arrayrecord"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"sha256 of shard .*part-00001\.arrayrecord"):
        RecordSource(tmp_path)


def test_damage_is_noticed_without_checksums_too(tmp_path: Path) -> None:
    write(tmp_path, some(200))
    shard = tmp_path / "part-00000.arrayrecord"
    shard.write_bytes(os.urandom(shard.stat().st_size))
    with pytest.raises(UserError, match=r"part-00000\.arrayrecord cannot be read"):
        RecordSource(tmp_path, verify=False).read([3])


def test_another_shard_in_its_place_is_noticed_without_checksums(tmp_path: Path) -> None:
    write(tmp_path / "a", some(50))
    write(tmp_path / "b", some(60))
    data = (tmp_path / "b" / "part-00000.arrayrecord").read_bytes()
    (tmp_path / "a" / "part-00000.arrayrecord").write_bytes(data)
    content = json.loads((tmp_path / "a" / "manifest.json").read_text())
    content["shards"][0]["bytes"] = len(data)
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"a/part-00000\.arrayrecord cannot be read.*manifest lists"
    ):
        RecordSource(tmp_path / "a", verify=False).read([3])


def test_a_truncated_and_a_missing_shard(tmp_path: Path) -> None:
    write(tmp_path, some(200), records_per_shard=100)
    shard = tmp_path / "part-00000.arrayrecord"
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"part-00000\.arrayrecord has .* bytes where"):
        RecordSource(tmp_path, verify=False)
    shard.unlink()
    with pytest.raises(UserError, match=r"part-00000\.arrayrecord is missing"):
        RecordSource(tmp_path, verify=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no"),
        ("{nonsense", "not valid JSON"),
        ('{"format": "other"}', "format 'other'"),
        ('{"format": "ipt-jax-records/1", "shards": [{"name": "a"}]}', "damaged"),
        (
            '{"format": "ipt-jax-records/1", "shards": '
            '[{"name": "../a", "records": 1, "bytes": 1, "sha256": ""}]}',
            "outside its own folder",
        ),
        *(
            (
                '{"format": "ipt-jax-records/1", "shards": [{"name": "a", "sha256": "", '
                f'"bytes": 70000, {counts}}}]}}',
                message,
            )
            for counts, message in (
                ('"records": -3', "-3 records in 70,000 bytes.*damaged"),
                ('"records": 1000000000000', "records in 70,000 bytes.*damaged"),
                ('"records": Infinity', "damaged"),
                ('"records": 1, "tokens": {"a": -1}', "'a': -1.*damaged"),
            )
        ),
    ],
)
def test_a_manifest_that_is_none(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=rf"manifest\.json.*{message}|{message}.*manifest\.json"):
        Manifest.load(tmp_path)


def test_an_exception_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with pytest.raises(KeyboardInterrupt), ShardWriter(folder, records_per_shard=10) as writer:
        for record in some(35):
            writer.write(record)
        raise KeyboardInterrupt
    assert list(folder.iterdir()) == []


def test_an_exception_leaves_the_former_shards(tmp_path: Path) -> None:
    before = some(30)
    write(tmp_path, before, records_per_shard=10)
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, records_per_shard=5) as writer:
        writer.write(some(1, start=90)[0])
        raise RuntimeError
    assert RecordSource(tmp_path).read(range(30)) == before
    after = some(7)
    assert RecordSource(write(tmp_path, after)).read(range(7)) == after
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "part-00000.arrayrecord"]


def test_what_a_killed_writer_left_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "part-00000.arrayrecord.tmp").write_bytes(b"half")
    with pytest.raises(UserError, match=r"manifest\.json"):
        RecordSource(tmp_path)
    write(tmp_path, some(3))
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk always full")
def test_a_full_disk_names_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shard_file.ArrayRecordWriter
    full = lambda path, options: real("/dev/full", options)  # noqa: E731
    monkeypatch.setattr(shard_file, "ArrayRecordWriter", full)
    with pytest.raises(UserError, match=r"part-00000\.arrayrecord.*No space left.*free disk"):
        write(tmp_path / "out", some(50))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_at_the_manifest_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest, "atomic_write", full)
    with pytest.raises(UserError, match=r"No space left"):
        write(tmp_path, some(5))
    assert not (tmp_path / "manifest.json").exists()


def test_atomic_write_keeps_the_old_file_on_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, "old")

    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
