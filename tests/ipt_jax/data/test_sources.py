"""Foreign formats on real documents: the same records from each, and what bad input gets."""

import gzip
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings

from ipt_jax.core import json_lines
from ipt_jax.core.errors import DamagedRecord, UserError
from ipt_jax.core.example_proto import example_class
from ipt_jax.data.formats import jsonl, parquet
from ipt_jax.data.formats.files import CACHE
from ipt_jax.data.formats.jsonl import JsonlRows
from ipt_jax.data.pipeline import batches
from ipt_jax.data.sources import open_source, read_records
from ipt_jax.data.tasks import Mixture, Task

Docs = list[dict[str, str]]


@pytest.fixture(scope="module")
def docs(documents):
    """40 real documents with ids, one of them with more than ASCII."""
    texts = [*documents[:39], documents[39] + " é漢🙂"]
    return [{"id": f"d/{number}", "text": text} for number, text in enumerate(texts)]


def example(features: dict[str, Any]) -> bytes:
    made: Any = example_class()()
    for key, value in features.items():
        values = value if isinstance(value, list) else [value]
        feature = made.features.feature[key]
        if isinstance(values[0], str | bytes):
            feature.bytes_list.value.extend(v.encode() if isinstance(v, str) else v for v in values)
        elif isinstance(values[0], int):
            feature.int64_list.value.extend(values)
        else:
            feature.float_list.value.extend(values)
    return made.SerializeToString()


def write_examples(path: Path, items: list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for item in items:
        writer.write(item)
    writer.close()


def lines(items: Docs) -> bytes:
    return b"".join(json.dumps(item, ensure_ascii=False).encode() + b"\n" for item in items)


def write_jsonl(folder: Path, items: Docs) -> Task:
    (folder / "x.jsonl").write_bytes(lines(items))
    return Task("t", str(folder / "x.jsonl"))


def write_gz(folder: Path, items: Docs) -> Task:
    half = gzip.compress(lines(items[:20])), gzip.compress(lines(items[20:]))  # two members
    (folder / "x.jsonl.gz").write_bytes(b"".join(half))
    return Task("t", str(folder / "x.jsonl.gz"))


def write_zst(folder: Path, items: Docs) -> Task:
    with pa.CompressedOutputStream(str(folder / "x.jsonl.zst"), "zstd") as out:
        out.write(lines(items))
    return Task("t", str(folder / "x.jsonl.zst"))


def write_pattern(folder: Path, items: Docs) -> Task:
    for number, start in enumerate(range(0, 40, 10)):
        (folder / f"x{number}.jsonl").write_bytes(lines(items[start : start + 10]))
    return Task("t", str(folder / "x?.jsonl"))


def write_parquet(folder: Path, items: Docs) -> Task:
    for name, part in (("a", items[:15]), ("b", items[15:])):
        rows = [{"content": d["text"], "key": d["id"], "n": 3} for d in part]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet", row_group_size=7)
    return Task("t", str(folder), text_key="content", id_key="key")


def write_array_record(folder: Path, items: Docs) -> Task:
    for number, start in enumerate((0, 25)):
        made = [example({"doc": d["text"], "key": d["id"]}) for d in items[start:][:25]]
        write_examples(folder / f"wiki-train.array_record-{number:05d}-of-00002", made)
    write_examples(folder / "wiki-test.array_record-00000-of-00001", [example({"doc": "no"})])
    (folder / "features.json").write_text("{}")
    return Task("t", str(folder), text_key="doc", id_key="key")


def write_saved(folder: Path, items: Docs) -> Task:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([{"text": d["text"], "id": d["id"]} for d in items])
    data.save_to_disk(str(folder / "saved"))
    return Task("t", str(folder / "saved"))


def write_loadable(folder: Path, items: Docs) -> Task:
    """A folder in the form of the hub, which only ``load_dataset`` knows how to read."""
    pytest.importorskip("datasets")
    rows = [{"body": d["text"], "id": d["id"]} for d in items]
    pq.write_table(pa.Table.from_pylist(rows), folder / "validation-00000-of-00001.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:1]), folder / "train-00000-of-00001.parquet")
    return Task("t", str(folder), format="huggingface", split="validation", text_key="body")


FORMATS = [
    write_jsonl,
    write_gz,
    write_zst,
    write_pattern,
    write_parquet,
    write_array_record,
    write_saved,
    write_loadable,
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Data sets are not written into the home of who tests."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub"))  # read when it is imported
    if "datasets" in sys.modules:
        import datasets.config

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__[6:])
def test_every_format_gives_the_same_records(tmp_path, docs, write):
    (tmp_path / "in").mkdir()
    task = write(tmp_path / "in", docs)
    source = open_source(task)
    assert [(r.id, r.text) for r in source.read(range(40))] == [(d["id"], d["text"]) for d in docs]
    copy = pickle.loads(pickle.dumps(source))  # as a worker process gets it
    wanted = [39, 0, 26, 26, 7]
    assert [record.id for record in copy.read(wanted)] == [f"d/{i}" for i in wanted]
    assert len(copy) == 40
    for index in (40, -1):
        with pytest.raises(IndexError):
            source.read([0, index])
    again = open_source(task, verify=False)
    assert (again.fingerprint, again.folder) == (source.fingerprint, source.folder)
    other = open_source(write(tmp_path / "in", [*docs[:-1], {"id": "d/39", "text": "other"}]))
    assert other.fingerprint != source.fingerprint


def test_the_pipeline_gives_the_same_batches_from_each(tmp_path, docs, write_shards):
    """From our shards, from JSON lines and from parquet, these in a worker process."""
    pytest.importorskip("mistral_common", reason="carries the Mistral tokenizer")
    (tmp_path / "p").mkdir()
    own = Task("t", write_shards(tmp_path / "own", [d["text"] for d in docs]))
    settings_ = {"rows_per_batch": 4, "total_batches": 6, "row_tokens": 256, "seed": 3}
    expected = list(batches(Mixture("m", (own,)), **settings_))
    for task, workers in (
        (write_jsonl(tmp_path, docs), 0),
        (write_parquet(tmp_path / "p", docs), 1),
    ):
        found = list(batches(Mixture("m", (task,)), **settings_, worker_count=workers))
        for one, other in zip(expected, found, strict=True):
            for key in one:
                np.testing.assert_array_equal(one[key], other[key])


def test_where_a_record_is_and_what_it_is_called(tmp_path, docs):
    plain = [{"text": d["text"]} for d in docs]
    source = open_source(write_jsonl(tmp_path, plain))
    assert source.where(2) == f"line 3 of {tmp_path}/x.jsonl"
    assert (source.read([2])[0].id, source.read([2])[0].source) == ("x.jsonl:3", "x")
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(plain))
    assert open_source(Task("t", str(tmp_path / "bom.jsonl"))).read([0])[0].text == docs[0]["text"]
    table = pa.Table.from_pylist([{**d, "source": "wiki"} for d in plain])
    pq.write_table(table, tmp_path / "y.parquet", row_group_size=7)
    source = open_source(Task("t", str(tmp_path / "y.parquet")))
    assert source.where(20) == f"row 21 of {tmp_path}/y.parquet"
    assert (source.read([20])[0].id, source.read([20])[0].source) == ("y.parquet:21", "wiki")
    write_examples(tmp_path / "z.array_record", [example({"text": "a"}), example({"text": "b"})])
    source = open_source(Task("t", str(tmp_path / "z.array_record")))
    assert source.where(1) == f"record 1 of {tmp_path}/z.array_record"
    assert source.read([1])[0].id == "z.array_record:1"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([b"", b" ", b"\t\r", b'{"a": 1}', b'  {"text": "x"}', b"{", b"7"])),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
    st.integers(1, 40),
)
def test_lines_are_found_as_python_finds_them(tmp_path_factory, parts, ending, ended, block):
    """Blank lines, no last line break, lines over the border of a block; plain and compressed."""
    folder = tmp_path_factory.mktemp("lines")
    data = ending.join(parts) + (ending if ended else b"")
    (folder / "x.jsonl").write_bytes(data)
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(data))
    numbered = enumerate(data.split(b"\n"), 1)
    expected = [(n, line.strip(b"\r")) for n, line in numbered if line.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "_BLOCK", block)
        files = [JsonlRows([folder / name], folder, True) for name in ("x.jsonl", "x.jsonl.gz")]
    for rows in files:
        (file,) = rows._files
        found = [file.read([place])[0].strip(b"\r") for place in range(len(file))]
        assert [(file.number(i), line) for i, line in enumerate(found)] == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "is no JSON object (Expecting"),
        (b"[1]", "is no JSON object (it is a list)"),
        (b'{"text": "\xff"}', "not UTF-8 at byte 10 of the line"),
        (b"[" * 100_000, "is no JSON object (objects and lists lie more than 200 deep"),
        (b'{"text": ' + b"[" * 201 + b"]" * 201 + b"}", "more than 200 deep in each other"),
        (b'{"body": "x"}', "`text` is missing, not text: it has ['body']; set `tasks.t.text_key`"),
        (b'{"text": null}', "`text` is missing"),
        (b'{"text": 5}', "`text` is a int, not text"),
        (b'{"text": "x", "id": [1]}', "`id` is a list, not an id"),
        (
            b'{"text": "\\ud800"}',
            "`text` is not valid Unicode (surrogates not allowed at character",
        ),
        (b'{"text": "ab", "parts": ["a"], "loss": [1]}', "do not join to its text"),
        (b'{"text": "ab", "parts": "ab", "loss": ["x"]}', "`loss` is ['x'], not a list of float"),
    ],
)
def test_a_bad_line_names_file_line_and_key(tmp_path, line, message):
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "good"}\n')
    source = open_source(Task("t", str(tmp_path / "x.jsonl")))
    with pytest.raises(DamagedRecord) as told:
        source.read([0, 1, 2])
    assert f"line 3 of {tmp_path}/x.jsonl" in str(told.value)
    assert message in str(told.value)
    assert [record.text for record in source.read([0, 2])] == ["good", "good"]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_a_line_of_any_length_is_never_held(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(jsonl, "_BLOCK", 64)
    row = b'{"text": "%b"}'
    long = [row % (b"x" * length) for length in (89, 500, 88)]
    data = b"\n".join([row % b"a", long[0], b"", long[1], long[2], row % b"b", long[1]])
    (tmp_path / f"x{ending}").write_bytes(gzip.compress(data) if ending[-1] == "z" else data)
    source = open_source(Task("t", str(tmp_path / f"x{ending}")))
    found = read_records(source.read, source, range(len(source)), skip=True)
    assert [getattr(one, "text", "")[:1] for one in found] == ["a", "", "", "x", "b", ""]
    for number, line in ((1, 2), (2, 4), (5, 7)):
        assert f"line {line} of {tmp_path}/x{ending}" in str(found[number])
        assert "longer than 100 bytes" in str(found[number])


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_values_that_python_cannot_hold(tmp_path, form):
    """A damaged row where the id is one; elsewhere nobody asks for it, or it is text."""
    days = pa.array([5_000_000, 1], pa.date32())
    table = pa.table({"text": ["a", "b"], "id": ["1", "2"], "day": days})
    if form == "saved":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset(table).save_to_disk(str(tmp_path / "x"))
    else:
        (tmp_path / "x").mkdir()
        pq.write_table(table, tmp_path / "x" / "x.parquet")
    for more in ({}, {"preprocessors": ("strip",)}):
        source = open_source(Task("t", str(tmp_path / "x"), **more))
        assert [record.id for record in source.read([0, 1])] == ["1", "2"]
    dated = open_source(Task("t", str(tmp_path / "x"), id_key="day"))
    with pytest.raises(DamagedRecord, match="row 1 of .*'day' holds a date32"):
        dated.read([0])


def test_an_id_that_was_asked_for_must_be_there(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a", "n": 7}\n{"text": "b"}\n')
    source = open_source(Task("t", str(tmp_path / "x.jsonl"), id_key="n"))
    assert source.read([0])[0].id == "7"
    with pytest.raises(DamagedRecord, match=r"line 2 of .*x\.jsonl: `n` is missing"):
        source.read([1])


def test_loss_of_foreign_records(tmp_path):
    """Lists of parts and weights are taken; one of a single value may come as that value."""
    (tmp_path / "x.jsonl").write_text('{"text": "ab", "parts": ["a", "b"], "loss": [0, 1]}\n')
    assert open_source(Task("t", str(tmp_path / "x.jsonl"))).read([0])[0].loss == (0.0, 1.0)
    feature = example({"text": "ab", "parts": "ab", "loss": 0.5, "id": 4})
    write_examples(tmp_path / "x.arrayrecord", [feature])
    record = open_source(Task("t", str(tmp_path / "x.arrayrecord"))).read([0])[0]
    assert (record.id, record.parts, record.loss) == ("4", ("ab",), (0.5,))


def test_indexes_are_kept_and_never_taken_for_others(tmp_path, docs):
    task = write_jsonl(tmp_path, docs)
    source = open_source(task)
    cache = tmp_path / CACHE
    assert source.folder == cache
    kept = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    open_source(task)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == kept
    write_jsonl(tmp_path, docs[1:])
    assert [record.id for record in open_source(task).read([0, 38])] == ["d/1", "d/39"]
    for path in cache.glob("lines-*.npy"):
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"the index .*lines-\w+\.npy is damaged.*delete it"):
        open_source(task).read([0])


def test_bytes_that_changed_in_secret(tmp_path, docs):
    """As a failing disk changes them: size and time stay."""
    path = Path(write_jsonl(tmp_path, docs).source)
    task = Task("t", str(path))
    open_source(task)
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"the", b"teh"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    open_source(task, verify=False)
    with pytest.raises(UserError, match=r"x\.jsonl has other bytes than when it was indexed"):
        open_source(task)


def test_a_folder_that_cannot_hold_the_index(tmp_path, docs):
    task = write_jsonl(tmp_path, docs)
    (tmp_path / CACHE).write_text("in its place")
    with pytest.raises(UserError, match=rf"{CACHE} for the indexes.*set `index_folder`"):
        open_source(task)
    source = open_source(task, index_folder=tmp_path / "elsewhere" / "deep")
    assert source.read([3])[0].id == "d/3"
    assert source.folder == tmp_path / "elsewhere" / "deep"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl.gz", b"plain", "cannot be decompressed"),
        ("x.jsonl.gz", gzip.compress(b"{}\n" * 99, mtime=0)[:-9], "cannot be decompressed"),
        ("x.jsonl.zst", b"plain", "cannot be decompressed"),
        ("x.parquet", b"plain", "cannot be read as parquet"),
        ("x.arrayrecord", b"plain", "is no ArrayRecord file"),
    ],
    ids=["gz", "gz-cut", "zst", "parquet", "arrayrecord"],
)
def test_files_that_are_not_what_their_name_says(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} {message}"):
        open_source(Task("t", str(tmp_path / name)))
    assert not list((tmp_path / CACHE).glob("lines-*"))


def test_parquet_of_many_row_groups(tmp_path, docs, monkeypatch):
    task = write_parquet(tmp_path, docs)
    monkeypatch.setattr(parquet, "_CACHE_BYTES", 1)  # one row group is kept
    source = open_source(task)
    order = np.random.default_rng(0).permutation(40).tolist()
    assert [record.id for record in source.read(order)] == [f"d/{i}" for i in order]
    assert len(source._rows._tables) == 1  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"a\.parquet has no column `txt`.*nearest is 'content'"):
        open_source(Task("t", str(tmp_path), text_key="txt"))
    path = tmp_path / "b.parquet"
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)
    with pytest.raises(DamagedRecord, match=r"row group 0 of .*b\.parquet cannot be read"):
        open_source(task).read([15])


def test_examples_that_are_none(tmp_path):
    task = Task("t", str(tmp_path / "x.array_record"))
    broken, picture = b"\xff\xff\xff", example({"text": b"\xff\xd8"})
    write_examples(Path(task.source), [example({"text": "a"}), broken, picture])
    source = open_source(task)
    assert source.read([0])[0].text == "a"
    with pytest.raises(DamagedRecord, match=r"record 1 of .*x\.array_record is no tf\.train"):
        source.read([1])
    with pytest.raises(DamagedRecord, match=r"record 2 of .*: `text` is a bytes, not text"):
        source.read([2])


def test_a_set_of_files_must_be_whole_and_clear(tmp_path, docs):
    task = write_array_record(tmp_path, docs)
    both = tmp_path / "wiki-train.array_record-00000-of-00002"
    with pytest.raises(UserError, match=r"wiki-test\.array_record, wiki-train.*0 of them are"):
        open_source(Task("t", task.source, text_key="doc", split="validation"))
    test = open_source(Task("t", task.source, text_key="doc", split="test"))
    assert [record.text for record in test.read(range(len(test)))] == ["no"]
    both.unlink()
    with pytest.raises(UserError, match=r"holds 1 of the 2 files .*missing: 00000"):
        open_source(task)
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / "j").mkdir(exist_ok=True)
        (tmp_path / "j" / name).write_bytes(lines(docs))
    for keys, message in (
        ({"split": "test"}, r"`tasks\.t\.split` is 'test', but .* names the files themselves"),
        ({"subset": "en"}, r"`tasks\.t\.subset` is 'en', but .* is jsonl: leave it out"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(Task("t", str(tmp_path / "j" / "train.jsonl"), **keys))
    with pytest.raises(UserError, match=r"test\.jsonl, train\.jsonl: which .*'train' is not clear"):
        open_source(Task("t", str(tmp_path / "j")))


def test_formats_that_are_not_clear(tmp_path, docs):
    write_jsonl(tmp_path, docs)
    write_examples(tmp_path / "y.arrayrecord", [example({"text": "a"})])
    with pytest.raises(
        UserError, match=r"several formats \(arrayrecord, jsonl\): set `tasks\.t\.f"
    ):
        open_source(Task("t", str(tmp_path)))
    assert len(open_source(Task("t", str(tmp_path), format="jsonl"))) == 40
    (tmp_path / "x.jsonl").rename(tmp_path / "x.ndjson")
    with pytest.raises(UserError, match=r"x\.ndjson is not told by its name: set `tasks\.t\.form"):
        open_source(Task("t", str(tmp_path / "x.ndjson")))
    assert len(open_source(Task("t", str(tmp_path / "x.ndjson"), format="jsonl"))) == 40
    with pytest.raises(UserError, match=r"`tasks\.t\.format` is 'json'. The nearest is 'jsonl'"):
        Task("t", "x", format="json")
    with pytest.raises(UserError, match=r"nothing\*\.jsonl names no file"):
        open_source(Task("t", str(tmp_path / "nothing*.jsonl"), format="jsonl"))
    with pytest.raises(UserError, match=r"no nowhere/manifest\.json"):
        open_source(Task("t", "nowhere"))


def test_our_own_shards_without_a_manifest_are_not_taken(tmp_path, docs, write_shards):
    """They are of a run that did not end; only who says so reads them as foreign."""
    folder = Path(write_shards(tmp_path / "own", [d["text"] for d in docs]))
    with pytest.raises(UserError, match=r"`tasks\.t\.text_key` is 'body', but .*own holds shards"):
        open_source(Task("t", str(folder), text_key="body"))
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no .*own/manifest\.json"):
        open_source(Task("t", str(folder)))
    source = open_source(Task("t", str(folder), format="arrayrecord"))
    assert [record.text for record in source.read(range(40))] == [d["text"] for d in docs]
    assert source.read([5])[0].id == "own/5"


def test_data_sets_that_cannot_be_loaded(tmp_path, docs):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"text": d["text"]} for d in docs])
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))
    before = open_source(Task("t", str(tmp_path / "saved")))
    assert before.read([4])[0].id == "saved:train:5"
    others = datasets.Dataset.from_list([{"text": d["text"] + "!"} for d in docs])
    others.save_to_disk(str(tmp_path / "others"))
    swapped = tmp_path / "swapped"
    shutil.copytree(tmp_path / "saved", swapped)
    for name in swapped.glob("train/*.arrow"):  # the folder's own fingerprint stays
        shutil.copy(tmp_path / "others" / name.name, name)
    assert open_source(Task("t", str(swapped))).fingerprint != before.fingerprint
    with pytest.raises(UserError, match=r"saved has no split 'test': set `tasks\.t\.split`.*train"):
        open_source(Task("t", str(tmp_path / "saved"), split="test"))
    with pytest.raises(UserError, match=r"saved has no column `txt`.* nearest is 'text'"):
        open_source(Task("t", str(tmp_path / "saved"), text_key="txt"))
    task = write_loadable(tmp_path, docs)
    wrong = Task("t", task.source, format="huggingface", subset="french")
    with pytest.raises(UserError, match=r"subset 'french'\) cannot be loaded"):
        open_source(wrong)


@pytest.mark.parametrize(
    ("package", "source"),
    [("pyarrow", "x.parquet"), ("pyarrow", "x.jsonl.zst"), ("datasets", "hf://someone/corpus@v1")],
)
def test_a_package_that_is_not_installed(tmp_path, monkeypatch, package, source):
    (tmp_path / "x.parquet").write_bytes(b"x")
    (tmp_path / "x.jsonl.zst").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, package, None)
    where = source if source.startswith("hf:") else str(tmp_path / source)
    with pytest.raises(UserError, match=r"not installed: `pip install 'ipt-jax\[sources\]'`"):
        open_source(Task("t", where))


@pytest.mark.parametrize(
    "pattern",
    [
        "corpus_c4_maxtext/c4_en_train.jsonl.gz",
        "corpus_datajuicer_mixture/*.jsonl",
        "hf_datasets_fixtures/the_pile/all/*.jsonl.zst",
        "dolly_hhrlhf_small/*.jsonl",
    ],
)
def test_real_corpora_are_read_as_python_reads_them(shared, tmp_path, pattern):
    """Record by record against a plain loop, in a folder that is not ours to write to."""
    asked = ({"pair": {"instruction": "prompt"}},) if "dolly" in pattern else ()
    source = open_source(
        Task("t", str(shared / "data" / pattern), preprocessors=asked), index_folder=tmp_path
    )
    expected = []
    for path in sorted((shared / "data").glob(pattern)):
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        elif path.suffix == ".zst":
            data = pa.input_stream(str(path), compression="zstd").read()
        expected += [json.loads(line) for line in data.split(b"\n") if line.strip()]
    order = np.random.default_rng(1).permutation(len(source)).tolist()
    assert len(order) == len(expected) > 0
    for record, index in zip(source.read(order), order, strict=True):
        fields = expected[index]
        if asked:
            assert record.parts is not None
            assert record.parts[1] == fields["response"]
            assert record.parts[0] == f"Instruction: {fields['prompt']}\n\nAnswer: "
        else:
            assert record.text == fields["text"]
