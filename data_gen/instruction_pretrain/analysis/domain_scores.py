"""Domains of texts and of their pairs: coverage, overlap, distribution (App. F)."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from data_gen.instruction_pretrain.analysis.f1 import mean
from data_gen.instruction_pretrain.collection import DATASETS, DOMAINS, MULTI_DOMAIN


@dataclass(frozen=True)
class DomainScores:
    """Table 11; shares between 0 and 1, None where no text counts."""

    coverage: float | None
    """Mean share of a text's domains that its pairs have too."""
    coverage_multi_domain: float | None
    """The same over texts of several domains."""
    overlap: float | None
    """Mean of shared domains over all domains of text and pairs."""
    texts: int
    """With a domain; the others are in no mean."""
    texts_multi_domain: int
    """With several."""
    texts_without_domain: int
    """Texts that the classifier gave no domain."""


def domain_scores(pairs: Sequence[tuple[Set[str], Sequence[Set[str]]]]) -> DomainScores:
    """Of each text its domains and those of each of its pairs; pairs' domains count together."""
    coverage, several, overlap = [], [], []
    for of_text, of_pairs in pairs:
        if not of_text:
            continue
        instruction: set[str] = set().union(*of_pairs)
        covered = len(of_text & instruction) / len(of_text)
        coverage.append(covered)
        if len(of_text) > 1:
            several.append(covered)
        overlap.append(len(of_text & instruction) / len(of_text | instruction))
    return DomainScores(
        coverage=mean(coverage),
        coverage_multi_domain=mean(several),
        overlap=mean(overlap),
        texts=len(coverage),
        texts_multi_domain=len(several),
        texts_without_domain=len(pairs) - len(coverage),
    )


def domain_distribution(found: Sequence[Set[str]]) -> dict[str, float | None]:
    """A row of Table 12: shares that add up to 1; a text of two domains counts half to each.

    Texts without a domain are left out.
    """
    labelled = [domains for domains in found if domains]
    return {
        domain: mean((domain in domains) / len(domains) for domains in labelled)
        for domain in DOMAINS
    }


def collection_distribution() -> dict[str, float | None]:
    """Of the data sets that this collection tunes on, each counted once.

    So is the paper's row of fine-tuning data: its shares are 27ths (22.2 is 6, 3.7 is 1).
    """
    domains = [
        {dataset.domain}
        for dataset in DATASETS.values()
        if not dataset.unseen and dataset.domain != MULTI_DOMAIN
    ]
    return domain_distribution(domains)
