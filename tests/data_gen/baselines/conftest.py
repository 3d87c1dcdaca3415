"""Real texts, and a vocabulary of them."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from data_gen.baselines.domain_words import DomainWords, open_general, train_vocabulary
from data_gen.baselines.instructions import load_instructions
from data_gen.baselines.reading_comprehension import Rules
from data_gen.baselines.sentences import split_sentences


@pytest.fixture(scope="session")
def abstracts(shared: Path) -> list[str]:
    """The twelve samples of the method's authors: title on the first line."""
    folder = shared / "data" / "lmops_adaptllm_raw_texts"
    return [(folder / f"{number}.txt").read_text() for number in range(12)]


@pytest.fixture(scope="session")
def pubmed(shared: Path) -> list[dict[str, str]]:
    """Abstracts whose titles lie in a field of their own."""
    path = shared / "data/corpus_pubmed_abstracts/juliabeco_pubmed_abstracts.csv"
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        {"id": row["pmid"], "title": row["title"], "text": row["abstract"]}
        for row in rows
        if row["abstract"]
    ]


@pytest.fixture(scope="session")
def news(shared: Path) -> list[dict[str, str]]:
    """A thousand Reuters stories: a headline, then lines wrapped at a column."""
    path = shared / "data/corpus_reuters21578/reuters_apte.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(next(file)) for _ in range(1000)]


@pytest.fixture(scope="session")
def vocabulary(abstracts: list[str], pubmed: list[dict[str, str]]) -> bytes:
    texts = [*abstracts, *(row["text"] for row in pubmed)]
    return train_vocabulary((s.text for text in texts for s in split_sentences(text)), 16_000)


@pytest.fixture(scope="session")
def rules(vocabulary: bytes) -> Rules:
    general = open_general("mistral-7b-v0.1")
    return Rules("biomedicine", DomainWords(vocabulary, general), general, load_instructions())
