"""Real text in record shards, tokenised by the real Mistral tokenizer."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ipt_jax.core.records import Record, ShardWriter
from ipt_jax.data.tasks import Mixture, Task

BUNDLED = Path(__file__).parents[3] / "data_gen" / "sample_corpus" / "documents.jsonl"


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """The bundled real documents."""
    return [json.loads(line)["text"] for line in BUNDLED.read_text().splitlines()]


@pytest.fixture(scope="session")
def write_shards() -> Callable[..., str]:
    """Writes texts as a folder of small shards and gives its path."""

    def write(folder: Path, texts: list[str], per_shard: int = 64) -> str:
        with ShardWriter(folder, records_per_shard=per_shard) as writer:
            for number, text in enumerate(texts):
                writer.write(Record(f"{folder.name}/{number}", text, folder.name))
        return str(folder)

    return write


@pytest.fixture(scope="session")
def corpus(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[str],
    write_shards: Callable[..., str],
) -> Path:
    """Folders ``raw`` (200 documents), ``short`` (120 openings) and ``few`` (5)."""
    pytest.importorskip("mistral_common", reason="carries the Mistral tokenizer")
    folder = tmp_path_factory.mktemp("corpus")
    write_shards(folder / "raw", documents[:200])
    write_shards(folder / "short", [text[:300] for text in documents[:120]])
    write_shards(folder / "few", documents[:5])
    return folder


@pytest.fixture(scope="session")
def mixture(corpus: Path) -> Mixture:
    """Three sources of different sizes at rates that are not theirs."""
    names = ("raw", "short", "few")
    tasks = tuple(Task(name, str(corpus / name)) for name in names)
    return Mixture("test", tasks, {"raw": 0.6, "short": 0.3, "few": 0.1})


@pytest.fixture(scope="session")
def docs(documents: list[str]) -> list[dict[str, str]]:
    """40 real documents with ids, one of them with more than ASCII."""
    texts = [*documents[:39], documents[39] + " é漢🙂"]
    return [{"id": f"d/{number}", "text": text} for number, text in enumerate(texts)]


@pytest.fixture
def own_data_set_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets are not written into the home of who tests."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub"))  # read when it is imported
    if "datasets" in sys.modules:
        import datasets.config

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
