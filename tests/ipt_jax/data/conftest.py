"""Real text in record shards, tokenised by the real Mistral tokenizer."""

import json
from pathlib import Path

import pytest

from ipt_jax.core.records import Record, ShardWriter
from ipt_jax.data.tasks import Mixture, Task

BUNDLED = Path(__file__).parents[3] / "data_gen" / "sample_corpus" / "documents.jsonl"


@pytest.fixture(scope="session")
def documents():
    """The bundled real documents."""
    return [json.loads(line)["text"] for line in BUNDLED.read_text().splitlines()]


@pytest.fixture(scope="session")
def write_shards():
    """Writes texts as a folder of small shards and gives its path."""

    def write(folder: Path, texts: list[str], per_shard: int = 64) -> str:
        with ShardWriter(folder, records_per_shard=per_shard) as writer:
            for number, text in enumerate(texts):
                writer.write(Record(f"{folder.name}/{number}", text, folder.name))
        return str(folder)

    return write


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, documents, write_shards):
    """Folders ``raw`` (200 documents), ``short`` (120 openings) and ``few`` (5)."""
    pytest.importorskip("mistral_common", reason="carries the Mistral tokenizer")
    folder = tmp_path_factory.mktemp("corpus")
    write_shards(folder / "raw", documents[:200])
    write_shards(folder / "short", [text[:300] for text in documents[:120]])
    write_shards(folder / "few", documents[:5])
    return folder


@pytest.fixture(scope="session")
def mixture(corpus):
    """Three sources of different sizes at rates that are not theirs."""
    names = ("raw", "short", "few")
    tasks = tuple(Task(name, str(corpus / name)) for name in names)
    return Mixture("test", tasks, {"raw": 0.6, "short": 0.3, "few": 0.1})
