"""Foreign files with the documents that tests give them, a task for each."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from ipt_jax.core.example_proto import example_class
from ipt_jax.data.tasks import Task

Docs = list[dict[str, str]]


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
