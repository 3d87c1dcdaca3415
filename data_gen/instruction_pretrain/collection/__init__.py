"""The data sets that the synthesizer is tuned and tried on (Figure 7, section 5.1)."""

from __future__ import annotations

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

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for module in (
        encyclopedia,
        fiction,
        academic,
        short_texts,
        expert,
        facts,
        multi_domain,
        unseen,
    )
    for dataset in module.DATASETS
}
"""By name."""
