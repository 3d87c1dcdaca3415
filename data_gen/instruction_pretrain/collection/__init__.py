"""The data sets that the synthesizer is tuned and tried on (Figure 7, section 5.1)."""

from __future__ import annotations

from pathlib import Path

import yaml

from data_gen.instruction_pretrain.collection import (
    academic,
    encyclopedia,
    expert,
    facts,
    fiction,
    multi_domain,
    short_texts,
    unseen,
)
from data_gen.instruction_pretrain.collection.base import (
    DOMAINS,
    MOST_EXAMPLES,
    MULTI_DOMAIN,
    Dataset,
    Example,
    Gathered,
    Question,
    gather,
)

__all__ = [
    "DATASETS",
    "DOMAINS",
    "MOST_EXAMPLES",
    "MULTI_DOMAIN",
    "Dataset",
    "Example",
    "Gathered",
    "Question",
    "gather",
]

_MODULES = (encyclopedia, fiction, academic, short_texts, expert, facts, multi_domain, unseen)


def _datasets() -> dict[str, Dataset]:
    table = Path(__file__).with_name("datasets.yaml").read_text(encoding="utf-8")
    adapters = {name: pair for module in _MODULES for name, pair in module.ADAPTERS.items()}
    return {
        name: Dataset.of_table(name, fields, *adapters[name])
        for name, fields in yaml.safe_load(table).items()
    }


DATASETS: dict[str, Dataset] = _datasets()
"""By name."""
