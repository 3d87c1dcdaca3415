"""The settings of the two measurements."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from data_gen.engines import EngineConfig
from data_gen.quality.decontaminate import DecontaminateConfig
from ipt_jax.core.bounds import Config, NotEmpty, OneOf, Positive
from ipt_jax.core.errors import UserError, require

MEASURES = ("accuracy", "zero", "few", "helpfulness")


@dataclass(frozen=True)
class Models(Config):
    """The synthesizer and what it was tuned from."""

    base: EngineConfig = field(default_factory=EngineConfig)
    """The model before tuning."""
    tuned: EngineConfig = field(default_factory=EngineConfig)
    """The synthesizer."""


@dataclass(frozen=True)
class SynthesizerAnalysis(Config):
    """Base and tuned synthesizer on held-out examples: Table 5 and Figure 5."""

    held_out: Annotated[list[str], NotEmpty("name the JSON lines of held-out examples")] = field(
        default_factory=list
    )
    """Files of JSON lines: examples with gold pairs and shots (`held_out.jsonl` of tuning data)."""
    output: str = "runs/analysis/synthesizer"
    """Folder of the results; answers are kept in it, so that a second run asks only what is new."""
    models: Models = field(default_factory=Models)
    """Both are asked the same. `max_tokens` bounds what is written after a text; `temperature`,
    `top_k` and `top_p` hold for pairs alone, answers take the likeliest token."""
    reader: EngineConfig | None = None
    """The model that answers in Figure 5; null for the base model, as in the paper."""
    measures: list[Annotated[str, OneOf(MEASURES)]] = field(default_factory=lambda: list(MEASURES))
    """Which of `accuracy`, `zero`, `few` (Table 5) and `helpfulness` (Figure 5, needs `few`)."""
    examples_per_dataset: Positive | None = None
    """Most examples drawn of each data set; null for all."""
    questions_per_example: Positive | None = None
    """Most instructions of each example that are asked for `accuracy`; null for all."""
    answer_tokens: Positive = 128
    """Most tokens of an answer (`accuracy`, `helpfulness`)."""
    reading_pairs: Positive = 5
    """Most pairs before the instruction of `helpfulness`."""
    seed: int = 0
    """Draws examples, questions, test pairs and random pairs."""

    def check_together(self) -> None:
        if "helpfulness" in self.measures and "few" not in self.measures:
            raise UserError(
                "measures names `helpfulness` without `few`: its pairs are those of the few-shot "
                "generations (Figure 5). Add `few`.",
                key="measures",
            )


@dataclass(frozen=True)
class CorpusAnalysis(Config):
    """An instruction-augmented corpus: Tables 6, 9, 11 and 12, Figure 6, and its pairs counted."""

    synthesis: Annotated[str, NotEmpty("name the folder that synthesis wrote")] = ""
    """Folder that synthesis wrote, with `shards/augmented`."""
    output: str = "runs/analysis/corpus"
    """Folder of the results."""
    corpus: str = "corpus"
    """What the corpus is called in the tables."""
    judge: EngineConfig | None = None
    """Chat model that judges pairs (Table 6, Figure 6); null for none. GPT-4 in the paper."""
    judged_texts: Positive = 500
    """Augmented texts drawn for the judge and the domains (section 5.2 draws 500)."""
    counted_texts: Positive = 20_000
    """Texts drawn for the counts of pairs and lengths; those judged are among them."""
    domains: Literal["keywords", "judge"] = "keywords"
    """Who tells domains (Tables 11, 12): a list of words, a rough baseline that needs no model, or
    the judge's model."""
    keywords: str = ""
    """YAML of words by domain; empty for the one that comes along."""
    contamination: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    """Evaluation sets of Table 9 and how they are looked for; none for no Table 9."""
    seed: int = 0
    """Draws texts."""

    def check_together(self) -> None:
        judged = self.domains != "judge" or self.judge is not None
        require("judge", self.judge, judged, "given where domains is `judge`: name its model")
