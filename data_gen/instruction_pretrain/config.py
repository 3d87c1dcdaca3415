"""The settings of a run of Instruction Pre-Training synthesis."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_gen.corpus import MAX_CHARACTERS
from data_gen.engines import EngineConfig
from data_gen.estimate import SAMPLE_DOCUMENTS
from ipt_jax.core.errors import UserError


@dataclass(frozen=True)
class SynthesisConfig:
    """Raw corpus in, record shards of raw, plain and augmented texts out."""

    input: list[str] = field(default_factory=list)
    """Files (.jsonl, .json, .txt, also .gz and .zst; .parquet, .array_record, .warc and .wet),
    folders of record shards, saved Hugging Face data sets, hf://NAME, patterns, and any address
    that fsspec reads."""
    output: str = "runs/synthesis"
    """Synthesis folder; made where missing."""
    fraction: float = 0.2
    """Part of the corpus to augment: 0.2 for general pre-training (3.2), 1.0 for a domain (3.3)."""
    rounds: int = 2
    """Rounds M; an augmented text holds up to M documents (2 general, 3 domain)."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """The synthesizer."""
    min_pairs: int = 2
    """Fewest pairs of a completion, where `engine.constrain` is set."""
    max_pairs: int = 16
    """Most pairs kept of one completion; further ones are rejected as `surplus`."""
    demonstrations: bool = False
    """Put a worked example before texts that carry none; for models not tuned as synthesizers."""
    templates: str = ""
    """YAML file of your own templates of training texts; what it leaves out stays ours, and empty
    is ours (docs/synthesis.md)."""
    seed: int = 0
    """Draws of documents, tokens and templates derive from it."""
    limit: int | None = None
    """Read only so many records of the corpus."""
    max_characters: int = MAX_CHARACTERS
    """Longer documents are rejected."""
    text_field: str = "text"
    """Field of a record that holds the text; text files, web archives and shards need none."""
    id_field: str = "id"
    """Field of a record that holds the id."""
    records_per_shard: int = 4096
    """Records in one shard."""
    gpus: int = 0
    """GPUs that the engine uses, for GPU hours; they are not counted for you."""
    price_per_gpu_hour: float = 0.0
    """Price of one GPU for an hour, in any currency, for the cost."""
    dry_run: bool = False
    """Let a sample of documents go through the engine and print what the whole run will take."""
    dry_run_documents: int = SAMPLE_DOCUMENTS
    """Documents of that sample."""
    fresh: bool = False
    """Start over: delete what an earlier run left in `output`."""

    def __post_init__(self) -> None:
        wrong = {
            "fraction": (self.fraction, 0 <= self.fraction <= 1, "between 0 and 1"),
            "rounds": (self.rounds, self.rounds >= 1, "at least 1"),
            "min_pairs": (
                self.min_pairs,
                1 <= self.min_pairs <= self.max_pairs,
                f"between 1 and max_pairs ({self.max_pairs})",
            ),
            "gpus": (self.gpus, self.gpus >= 0, "0 or more"),
            "price_per_gpu_hour": (
                self.price_per_gpu_hour,
                self.price_per_gpu_hour >= 0,
                "0 or more",
            ),
            "dry_run_documents": (
                self.dry_run_documents,
                self.dry_run_documents >= 2,
                "at least 2",
            ),
            "limit": (self.limit, self.limit is None or self.limit >= 1, "at least 1, or null"),
            "max_characters": (self.max_characters, self.max_characters >= 1, "at least 1"),
        }
        for key, (value, right, allowed) in wrong.items():
            if not right:
                raise UserError(f"`{key}` is {value}: it must be {allowed}.")
