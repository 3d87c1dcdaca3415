"""The settings of a run of the rule-based baseline."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_gen.corpus import MAX_CHARACTERS
from ipt_jax.core.errors import UserError


@dataclass(frozen=True)
class ReadingComprehensionConfig:
    """Raw corpus in, record shards of raw, plain and augmented texts out."""

    input: list[str] = field(default_factory=list)
    """Files, folders, patterns and addresses, as of launch/synthesize.py."""
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
    seed: int = 0
    """All draws derive from it."""
    limit: int | None = None
    """Read only so many records of the corpus."""
    max_characters: int = MAX_CHARACTERS
    """Longer documents are rejected."""
    text_field: str = "text"
    """Field of a record that holds the text; text files, web archives and shards need none."""
    id_field: str = "id"
    """Field of a record that holds the id."""
    records_per_shard: int = 4096
    """Documents of one shard of each part."""
    fresh: bool = False
    """Start over: delete what an earlier run left in `output`."""

    def __post_init__(self) -> None:
        if not self.domain.strip():
            raise UserError("`domain` is empty: name it, for instance `biomedicine`.")
        least = {"most_per_sub": 1, "text_tokens": 64, "records_per_shard": 1, "max_characters": 1}
        least |= {"vocabulary_pieces": 100, "vocabulary_documents": 1}
        for key, lowest in least.items():
            if getattr(self, key) < lowest:
                raise UserError(f"`{key}` is {getattr(self, key)}: it must be at least {lowest}.")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"`limit` is {self.limit}: it must be at least 1, or null.")
