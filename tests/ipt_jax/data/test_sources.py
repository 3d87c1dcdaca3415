"""Foreign formats on real documents: the same records from each, and what bad input gets."""

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from ipt_jax.core import json_lines
from ipt_jax.core.errors import DamagedRecord, UserError
from ipt_jax.data.formats import jsonl, parquet
from ipt_jax.data.formats.files import CACHE
from ipt_jax.data.formats.jsonl import JsonlRows
from ipt_jax.data.pipeline import batches
from ipt_jax.data.sources import open_source, read_records
from ipt_jax.data.tasks import Mixture, Task
from tests.ipt_jax.data.foreign_files import (
    Docs,
    example,
    lines,
    write_array_record,
    write_examples,
    write_gz,
    write_jsonl,
    write_loadable,
    write_parquet,
    write_pattern,
    write_saved,
    write_zst,
)

pytestmark = pytest.mark.usefixtures("own_data_set_cache")

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


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__[6:])
def test_every_format_gives_the_same_records(
    tmp_path: Path, docs: Docs, write: Callable[[Path, Docs], Task]
) -> None:
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


def test_the_pipeline_gives_the_same_batches_from_each(
    tmp_path: Path, docs: Docs, write_shards: Callable[..., str]
) -> None:
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


def test_where_a_record_is_and_what_it_is_called(tmp_path: Path, docs: Docs) -> None:
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
def test_lines_are_found_as_python_finds_them(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[bytes],
    ending: bytes,
    ended: bool,
    block: int,
) -> None:
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


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_a_line_of_any_length_is_never_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
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


def test_loss_of_foreign_records(tmp_path: Path) -> None:
    """Lists of parts and weights are taken; one of a single value may come as that value."""
    (tmp_path / "x.jsonl").write_text('{"text": "ab", "parts": ["a", "b"], "loss": [0, 1]}\n')
    assert open_source(Task("t", str(tmp_path / "x.jsonl"))).read([0])[0].loss == (0.0, 1.0)
    feature = example({"text": "ab", "parts": "ab", "loss": 0.5, "id": 4})
    write_examples(tmp_path / "x.arrayrecord", [feature])
    record = open_source(Task("t", str(tmp_path / "x.arrayrecord"))).read([0])[0]
    assert (record.id, record.parts, record.loss) == ("4", ("ab",), (0.5,))


def test_indexes_are_kept_and_never_taken_for_others(tmp_path: Path, docs: Docs) -> None:
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


def test_parquet_of_many_row_groups(
    tmp_path: Path, docs: Docs, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.parametrize(
    "pattern",
    [
        "corpus_c4_maxtext/c4_en_train.jsonl.gz",
        "corpus_datajuicer_mixture/*.jsonl",
        "hf_datasets_fixtures/the_pile/all/*.jsonl.zst",
        "dolly_hhrlhf_small/*.jsonl",
    ],
)
def test_real_corpora_are_read_as_python_reads_them(
    shared: Path, tmp_path: Path, pattern: str
) -> None:
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
