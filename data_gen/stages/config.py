"""What the settings of stages have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from data_gen.corpus import MAX_CHARACTERS, Document, read_corpus
from data_gen.corpus.reading import Shape
from data_gen.engines import EngineConfig
from data_gen.stages.estimate import SAMPLE_DOCUMENTS
from ipt_jax.core.bounds import Amount, AtLeast, Config, NotNegative, Positive
from ipt_jax.core.rejection import Rejection


@dataclass(frozen=True, kw_only=True)
class OutputConfig(Config):
    """Of every stage."""

    output: str = "runs/synthesis"
    """Folder of the run; made where missing."""
    fresh: bool = False
    """Start over: delete what an earlier run left in `output`."""


@dataclass(frozen=True, kw_only=True)
class FolderConfig(OutputConfig):
    """Of what writes shards of one size."""

    records_per_shard: Positive = 4096
    """Records in one shard."""


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
    that fsspec reads. `#jsonl` (or another form) behind one says what its ending does not."""
    limit: Positive | None = None
    """Read only so many records of the corpus."""
    max_characters: Positive = MAX_CHARACTERS
    """Longer documents are rejected."""
    text_field: str = "text"
    """Field of a record that holds the text; text files, web archives and shards need none."""
    id_field: str = "id"
    """Field of a record that holds the id."""

    def documents(self, shape: Shape | None = None) -> Iterator[Document | Rejection]:
        """The corpus, record by record, as `shape` makes them of it."""
        return read_corpus(
            self.input,
            text_field=self.text_field,
            id_field=self.id_field,
            max_characters=self.max_characters,
            limit=self.limit,
            shape=shape,
        )


@dataclass(frozen=True, kw_only=True)
class AskingConfig(StageConfig):
    """Of a stage that asks a language model."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    """The model, and how its tokens are drawn."""
    gpus: NotNegative = 0
    """GPUs that the engine uses, for GPU hours; they are not counted for you."""
    price_per_gpu_hour: Amount = 0.0
    """Price of one GPU for an hour, in any currency, for the cost."""
    dry_run: bool = False
    """Let a sample of documents go through the engine and print what the whole run will take."""
    dry_run_documents: Annotated[int, AtLeast(2)] = SAMPLE_DOCUMENTS
    """Documents of that sample."""
