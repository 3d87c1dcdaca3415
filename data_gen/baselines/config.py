"""The settings of the baselines."""

from __future__ import annotations

from dataclasses import dataclass

from data_gen.stages.config import CorpusConfig, StageConfig
from ipt_jax.core.errors import UserError, require


@dataclass(frozen=True, kw_only=True)
class ReadingComprehensionConfig(CorpusConfig, StageConfig):
    """Raw corpus in, record shards of raw, plain and augmented texts out."""

    method: str = "reading_comprehension"
    output: str = "runs/reading_comprehension"
    """Synthesis folder; made where missing."""
    domain: str = ""
    """Name of the domain as the instructions say it: `biomedicine`, `finance`."""
    first_line_is_title: bool = True
    """Take the first line for the title where it can be one (PubMed abstracts, news)."""
    title_field: str | None = None
    """Field of a record that holds its title, for corpora in which the text does not."""
    domain_vocabulary: str | None = None
    """Sentencepiece model of the domain; null to train one on this corpus."""
    vocabulary_pieces: int = 32_000
    """Most pieces of a trained one; the paper does not say, LLaMA's vocabulary has so many."""
    vocabulary_documents: int = 100_000
    """Train it on so many documents, taken at even steps."""
    general_vocabulary: str = "mistral-7b-v0.1"
    """Tokenizer whose words are no domain words: `mistral-7b-v0.1`, `llama3`, a folder, or a
    sentencepiece file. It also counts tokens."""
    instructions: str | None = None
    """YAML file of wordings in the form of data_gen/baselines/instructions.yaml, or null for it."""
    most_per_sub: int = 2
    """Tasks of each sub-category in a text (Cheng et al., section 4)."""
    text_tokens: int = 1800
    """Longest text before its tasks, in tokens; a longer one becomes several with tasks of their
    own, in one record (appendix C cuts it off there)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.domain.strip():
            raise UserError("`domain` is empty: name it, for instance `biomedicine`.")
        least = {"most_per_sub": 1, "text_tokens": 64}
        least |= {"vocabulary_pieces": 100, "vocabulary_documents": 1}
        for key, lowest in least.items():
            value = getattr(self, key)
            require(key, value, value >= lowest, f"at least {lowest}")


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
