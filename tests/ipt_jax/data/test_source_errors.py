"""Foreign sources that are damaged, unclear or not there: what is named, and what goes on."""

import gzip
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ipt_jax.core.errors import DamagedRecord, UserError
from ipt_jax.data.formats.files import CACHE
from ipt_jax.data.sources import open_source
from ipt_jax.data.tasks import Task
from tests.ipt_jax.data.foreign_files import (
    Docs,
    example,
    write_examples,
    write_jsonl,
    write_loadable,
)

pytestmark = pytest.mark.usefixtures("own_data_set_cache")


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
def test_a_bad_line_names_file_line_and_key(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "good"}\n')
    source = open_source(Task("t", str(tmp_path / "x.jsonl")))
    with pytest.raises(DamagedRecord) as told:
        source.read([0, 1, 2])
    assert f"line 3 of {tmp_path}/x.jsonl" in str(told.value)
    assert message in str(told.value)
    assert [record.text for record in source.read([0, 2])] == ["good", "good"]


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_values_that_python_cannot_hold(tmp_path: Path, form: str) -> None:
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


def test_an_id_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a", "n": 7}\n{"text": "b"}\n')
    source = open_source(Task("t", str(tmp_path / "x.jsonl"), id_key="n"))
    assert source.read([0])[0].id == "7"
    with pytest.raises(DamagedRecord, match=r"line 2 of .*x\.jsonl: `n` is missing"):
        source.read([1])


def test_bytes_that_changed_in_secret(tmp_path: Path, docs: Docs) -> None:
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


def test_a_folder_that_cannot_hold_the_index(tmp_path: Path, docs: Docs) -> None:
    task = write_jsonl(tmp_path, docs)
    (tmp_path / CACHE).write_text("in its place")
    with pytest.raises(UserError, match=rf"{CACHE} for the indexes.*set `index_folder`"):
        open_source(task)
    source = open_source(task, index_folder=tmp_path / "elsewhere" / "deep")
    assert source.read([3])[0].id == "d/3"
    assert source.folder == tmp_path / "elsewhere" / "deep"


def test_examples_that_are_none(tmp_path: Path) -> None:
    task = Task("t", str(tmp_path / "x.array_record"))
    broken, picture = b"\xff\xff\xff", example({"text": b"\xff\xd8"})
    write_examples(Path(task.source), [example({"text": "a"}), broken, picture])
    source = open_source(task)
    assert source.read([0])[0].text == "a"
    with pytest.raises(DamagedRecord, match=r"record 1 of .*x\.array_record is no tf\.train"):
        source.read([1])
    with pytest.raises(DamagedRecord, match=r"record 2 of .*: `text` is a bytes, not text"):
        source.read([2])


ONE = {"x.jsonl": b'{"text": "a"}\n'}
SEVERAL = {"train.jsonl": ONE["x.jsonl"], "test.jsonl": ONE["x.jsonl"]}
EXAMPLE = {"y.arrayrecord": [example({"text": "a"})]}
WIKI = {f"wiki-{n}": EXAMPLE["y.arrayrecord"] for n in (
    "train.array_record-00001-of-00002", "test.array_record-00000-of-00001"
)}  # fmt: skip


@pytest.mark.parametrize(
    ("files", "task", "message"),
    [
        ({"x.jsonl.gz": b"plain"}, {"source": "x.jsonl.gz"}, r"gz cannot be decompressed"),
        ({"x.jsonl.gz": gzip.compress(b"{}\n" * 99, mtime=0)[:-9]}, {}, r"gz cannot be decompr"),
        ({"x.jsonl.zst": b"plain"}, {}, r"x\.jsonl\.zst cannot be decompressed"),
        ({"x.parquet": b"plain"}, {}, r"x\.parquet cannot be read as parquet"),
        ({"x.arrayrecord": b"plain"}, {}, r"x\.arrayrecord is no ArrayRecord file"),
        (ONE | EXAMPLE, {}, r"several formats \(arrayrecord, jsonl\); set `tasks\.t\.f"),
        (
            {"x.ndjson": ONE["x.jsonl"]},
            {"source": "x.ndjson"},
            r"x\.ndjson is not told by its name: set `tasks\.t\.form",
        ),
        ({}, {"source": "nothing*.jsonl", "format": "jsonl"}, r"nothing\*\.jsonl names no file"),
        ({}, {"source": "nowhere"}, r"no .*nowhere/manifest\.json"),
        (WIKI, {"split": "validation"}, r"wiki-test\.array_record, wiki-train.*0 of them are"),
        (WIKI, {}, r"holds 1 of the 2 files .*missing: 00000"),
        (
            SEVERAL,
            {"source": "train.jsonl", "split": "test"},
            r"`tasks\.t\.split` is 'test', but .* names the files themselves",
        ),
        (
            SEVERAL,
            {"source": "train.jsonl", "subset": "en"},
            r"`tasks\.t\.subset` is 'en', but .* is jsonl; leave it out",
        ),
        (SEVERAL, {}, r"test\.jsonl, train\.jsonl: which .*'train' is not clear"),
    ],
)
def test_files_that_do_not_make_a_source(
    tmp_path: Path, files: dict[str, Any], task: dict[str, str], message: str
) -> None:
    for name, content in files.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            write_examples(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        open_source(Task("t", **{**task, "source": str(tmp_path / task.get("source", ""))}))
    assert not list((tmp_path / CACHE).glob("lines-*"))


def test_what_makes_the_same_files_a_source(tmp_path: Path) -> None:
    (tmp_path / "x.ndjson").write_bytes(ONE["x.jsonl"])
    write_examples(tmp_path / "y.arrayrecord", EXAMPLE["y.arrayrecord"])
    for source in (tmp_path, tmp_path / "x.ndjson"):
        task = Task("t", str(source), format="arrayrecord" if source == tmp_path else "jsonl")
        assert open_source(task).read([0])[0].text == "a"
    with pytest.raises(UserError, match="The nearest is 'jsonl'") as refused:
        Task("t", "x", format="json")
    assert refused.value.key == "format"


def test_data_sets_that_cannot_be_loaded(tmp_path: Path, docs: Docs) -> None:
    datasets = pytest.importorskip("datasets")
    for name, more in (("saved", ""), ("others", "!")):
        rows = datasets.Dataset.from_list([{"text": d["text"] + more} for d in docs])
        datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / name))
    before = open_source(Task("t", str(tmp_path / "saved")))
    assert before.read([4])[0].id == "saved:train:5"
    swapped = shutil.copytree(tmp_path / "saved", tmp_path / "swapped")
    for path in swapped.glob("train/*.arrow"):  # the folder's own fingerprint stays
        shutil.copy(tmp_path / "others" / "train" / path.name, path)
    assert open_source(Task("t", str(swapped))).fingerprint != before.fingerprint
    hub = write_loadable(tmp_path, docs).source
    for source, keys, message in (
        (
            tmp_path / "saved",
            {"split": "test"},
            r"saved has no split 'test': set `tasks\.t\.split`.*train",
        ),
        (tmp_path / "saved", {"text_key": "txt"}, r"saved has no column `txt`.* nearest is 'text'"),
        (hub, {"format": "huggingface", "subset": "french"}, r"subset 'french'\) cannot be loaded"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(Task("t", str(source), **keys))


def test_our_own_shards_without_a_manifest_are_not_taken(
    tmp_path: Path, docs: Docs, write_shards: Callable[..., str]
) -> None:
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


@pytest.mark.parametrize(
    ("package", "source"),
    [("pyarrow", "x.parquet"), ("pyarrow", "x.jsonl.zst"), ("datasets", "hf://someone/corpus@v1")],
)
def test_a_package_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, source: str
) -> None:
    (tmp_path / "x.parquet").write_bytes(b"x")
    (tmp_path / "x.jsonl.zst").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, package, None)
    where = source if source.startswith("hf:") else str(tmp_path / source)
    with pytest.raises(UserError, match=r"not installed; `pip install 'ipt-jax\[sources\]'`"):
        open_source(Task("t", where))
