"""The settings of a run of Instruction Pre-Training synthesis."""

from __future__ import annotations

from dataclasses import dataclass

from data_gen.stages.config import AskingConfig, CorpusConfig
from ipt_jax.core.bounds import Positive, Share
from ipt_jax.core.errors import require


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig(AskingConfig, CorpusConfig):
    """Raw corpus in, record shards of raw, plain and augmented texts out."""

    method: str = "instruction_pretrain"
    fraction: Share = 0.2
    """Part of the corpus to augment: 0.2 for general pre-training (3.2), 1.0 for a domain (3.3)."""
    rounds: Positive = 2
    """Rounds M; an augmented text holds up to M documents (2 general, 3 domain)."""
    min_pairs: Positive = 2
    """Fewest pairs of a completion, where `engine.constrain` is set."""
    max_pairs: int = 16
    """Most pairs kept of one completion; further ones are rejected as `surplus`."""
    demonstrations: bool = False
    """Put a worked example before texts that carry none; for models not tuned as synthesizers."""
    templates: str = ""
    """YAML file of your own templates of training texts; what it leaves out stays ours, and empty
    is ours (docs/synthesis.md)."""

    def check_together(self) -> None:
        few, most = self.min_pairs, self.max_pairs
        require("min_pairs", few, few <= most, f"at most max_pairs={most}")
