"""The settings of the baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from data_gen.stages.config import CorpusConfig, StageConfig
from ipt_jax.core.bounds import AtLeast, NotEmpty, Positive


@dataclass(frozen=True, kw_only=True)
class ReadingComprehensionConfig(CorpusConfig, StageConfig):
    """Raw corpus in, record shards of raw, plain and augmented texts out."""

    method: str = "reading_comprehension"
    output: str = "runs/reading_comprehension"
    """Synthesis folder; made where missing."""
    domain: Annotated[str, NotEmpty("for instance `biomedicine`")] = ""
    """Name of the domain as the instructions say it: `biomedicine`, `finance`."""
    first_line_is_title: bool = True
    """Take the first line for the title where it can be one (PubMed abstracts, news)."""
    title_field: str | None = None
    """Field of a record that holds its title, for corpora in which the text does not."""
    domain_vocabulary: str | None = None
    """Sentencepiece model of the domain; null to train one on this corpus."""
    vocabulary_pieces: Annotated[int, AtLeast(100)] = 32_000
    """Most pieces of a trained one; the paper does not say, LLaMA's vocabulary has so many."""
    vocabulary_documents: Positive = 100_000
    """Train it on so many documents, taken at even steps."""
    general_vocabulary: str = "mistral-7b-v0.1"
    """Tokenizer whose words are no domain words: `mistral-7b-v0.1`, `llama3`, a folder, or a
    sentencepiece file. It also counts tokens."""
    instructions: str | None = None
    """YAML file of wordings in the form of data_gen/baselines/instructions.yaml, or null for it."""
    most_per_sub: Positive = 2
    """Tasks of each sub-category in a text (Cheng et al., section 4)."""
    text_tokens: Annotated[int, AtLeast(64)] = 1800
    """Longest text before its tasks, in tokens; a longer one becomes several with tasks of their
    own, in one record (appendix C cuts it off there)."""


@dataclass(frozen=True, kw_only=True)
class RandomPairsConfig(StageConfig):
    """A finished synthesis folder in, shards whose texts carry the pairs of others out."""

    method: str = "random_pairs"
    output: str = "runs/random_pairs"
    """Folder; shards/augmented and summary.json are written there."""
    synthesis: str = "runs/synthesis"
    """Folder of a finished run of Instruction Pre-Training synthesis."""
    templates: str = ""
    """Templates of the training texts, as of the method instruction_pretrain."""
