"""Table 9: evaluation examples in the raw corpus and in the augmented one (App. D)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_gen.instruction_pretrain.stage import AUGMENTED, PLAIN
from data_gen.quality.decontaminate import DecontaminateConfig, SetCounts, open_rule
from data_gen.quality.inputs import InputShards
from data_gen.stages.ingest import RAW
from ipt_jax.core.errors import DamagedRecord
from ipt_jax.core.records import Record

_BATCH = 256  # records looked through at a time


@dataclass(frozen=True)
class Contamination:
    """Counts by evaluation set."""

    raw: dict[str, SetCounts]
    """In the raw texts."""
    augmented: dict[str, SetCounts]
    """In the corpus with pairs: augmented records, and the texts that stayed plain."""
    damaged: int
    """Records that could not be read."""


def contamination_of(synthesis: Path, config: DecontaminateConfig) -> Contamination:
    """Look for the evaluation examples by IPT's rule, `substring`, in all shards of a folder.

    Raises UserError where shards or evaluation sets are missing or bad.
    """
    shards = synthesis / "shards"
    raw, damaged_raw = _counts([shards / RAW], config)
    augmented, damaged = _counts([shards / AUGMENTED, shards / PLAIN], config)
    return Contamination(raw, augmented, damaged_raw + damaged)


def _counts(
    folders: Sequence[Path], config: DecontaminateConfig
) -> tuple[dict[str, SetCounts], int]:
    rule = open_rule("substring", config)
    corpus, damaged = InputShards(list(map(str, folders))), 0
    for start in range(0, len(corpus), _BATCH):
        numbers = range(start, min(start + _BATCH, len(corpus)))
        good: list[Record] = []
        for _, record in corpus.read_good(numbers):
            if isinstance(record, DamagedRecord):
                damaged += 1
            else:
                good.append(record)
        rule.check(good)
    return rule.counts(), damaged
