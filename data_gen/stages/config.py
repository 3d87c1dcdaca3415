"""What the settings of stages have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from data_gen.corpus import MAX_CHARACTERS, Document, read_corpus
from data_gen.corpus.pairs import PairLayout
from data_gen.engines import EngineConfig
from data_gen.stages.estimate import SAMPLE_DOCUMENTS
from ipt_jax.core.errors import require
from ipt_jax.core.rejection import Rejection


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Of every stage."""

    output: str = "runs/synthesis"
    """Folder of the run; made where missing."""
    fresh: bool = False
    """Start over: delete what an earlier run left in `output`."""


@dataclass(frozen=True, kw_only=True)
class FolderConfig(OutputConfig):
    """Of what writes shards of one size."""

    records_per_shard: int = 4096
    """Records in one shard."""

    def __post_init__(self) -> None:
        most = self.records_per_shard
        require("records_per_shard", most, most >= 1, "at least 1")


@dataclass(frozen=True, kw_only=True)
class StageConfig(FolderConfig):
    """Of every method."""

    method: str = ""
    """What makes the records: a key of METHODS in data_gen/methods.py."""
    seed: int = 0
    """All draws derive from it."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig(FolderConfig):
    """Of what reads a corpus."""

    input: list[str] = field(default_factory=list)
    """Files (.jsonl, .json, .txt, also .gz and .zst; .parquet, .array_record, .warc and .wet),
    folders of record shards, saved Hugging Face data sets, hf://NAME, patterns, and any address
    that fsspec reads."""
    limit: int | None = None
    """Read only so many records of the corpus."""
    max_characters: int = MAX_CHARACTERS
    """Longer documents are rejected."""
    text_field: str = "text"
    """Field of a record that holds the text; text files, web archives and shards need none."""
    id_field: str = "id"
    """Field of a record that holds the id."""

    def __post_init__(self) -> None:
        super().__post_init__()
        right = self.limit is None or self.limit >= 1
        require("limit", self.limit, right, "at least 1, or null")
        require("max_characters", self.max_characters, self.max_characters >= 1, "at least 1")

    def documents(self, pairs: Sequence[PairLayout] = ()) -> Iterator[Document | Rejection]:
        """The corpus, record by record; with layouts of `pairs` its records are those."""
        return read_corpus(
            self.input,
            text_field=self.text_field,
            id_field=self.id_field,
            max_characters=self.max_characters,
            limit=self.limit,
            pairs=pairs,
        )


@dataclass(frozen=True, kw_only=True)
class AskingConfig(StageConfig):
    """Of a stage that asks a language model."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    """The model, and how its tokens are drawn."""
    gpus: int = 0
    """GPUs that the engine uses, for GPU hours; they are not counted for you."""
    price_per_gpu_hour: float = 0.0
    """Price of one GPU for an hour, in any currency, for the cost."""
    dry_run: bool = False
    """Let a sample of documents go through the engine and print what the whole run will take."""
    dry_run_documents: int = SAMPLE_DOCUMENTS
    """Documents of that sample."""

    def __post_init__(self) -> None:
        super().__post_init__()
        price, sample = self.price_per_gpu_hour, self.dry_run_documents
        require("gpus", self.gpus, self.gpus >= 0, "0 or more")
        require("price_per_gpu_hour", price, price >= 0, "0 or more")
        require("dry_run_documents", sample, sample >= 2, "at least 2")
