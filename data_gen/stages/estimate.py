"""What a run will take, from a sample of its documents that really goes through the engine."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_gen.corpus import Document
from ipt_jax.core.rejection import Rejection

SAMPLE_DOCUMENTS = 200


@dataclass(frozen=True)
class Estimate:
    """Of a whole run, with the 95% interval that the sample's spread gives."""

    documents: int
    """In the corpus, those that can be read."""
    sampled: int
    """Documents that went through the engine."""
    asked: int
    """Documents that the run will ask about."""
    prompt_tokens: tuple[float, float, float]
    """Low, expected, high."""
    completion_tokens: tuple[float, float, float]
    """Low, expected, high."""
    seconds: float
    """At the sample's speed; a longer run keeps the engine fuller, so rather less."""
    gpu_hours: float
    """Seconds times GPUs."""
    cost: float
    """GPU hours at the given price."""


def sample_corpus(
    documents: Iterable[Document | Rejection], count: int, seed: int
) -> tuple[list[Document], int]:
    """Up to `count` documents in corpus order, each as likely as any other, and how many there are.

    The corpus is read once, and no more than the sample is kept.
    """
    random = np.random.Generator(np.random.Philox(seed))
    kept: list[tuple[int, Document]] = []
    seen = 0
    for document in documents:
        if isinstance(document, Rejection):
            continue
        seen += 1
        if len(kept) < count:
            kept.append((seen, document))
        elif (place := int(random.integers(seen))) < count:
            kept[place] = seen, document
    return [document for _, document in sorted(kept, key=lambda one: one[0])], seen


def write_sample(documents: Sequence[Document], path: Path) -> None:
    """The sample as JSON lines that read_corpus gives back."""
    with open(path, "w", encoding="utf-8") as file:
        for one in documents:
            fields = {**one.metadata, "id": one.id, "text": one.text, "source": one.source}
            file.write(json.dumps(fields, default=str) + "\n")


def estimate(
    documents: int,
    sampled: int,
    fraction: float,
    tokens: Sequence[tuple[int, int]],
    seconds: float,
    *,
    gpus: int,
    price_per_gpu_hour: float,
) -> Estimate:
    """Extrapolate from `tokens`: prompt and completion tokens of each answer in the sample."""
    asked = round(fraction * documents)
    scale = asked / max(sampled, 1)
    counts = np.asarray(tokens, float).reshape(-1, 2)

    def total(column: int) -> tuple[float, float, float]:
        values = counts[:, column]
        deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        spread = 1.96 * deviation * math.sqrt(len(values))
        expected = float(values.sum())
        low = max(expected - spread, 0.0)
        return scale * low, scale * expected, scale * (expected + spread)

    whole = seconds * scale
    hours = whole / 3600 * gpus
    return Estimate(
        documents=documents,
        sampled=sampled,
        asked=asked,
        prompt_tokens=total(0),
        completion_tokens=total(1),
        seconds=whole,
        gpu_hours=hours,
        cost=hours * price_per_gpu_hour,
    )


def print_estimate(found: Estimate, say: Callable[[str], Any] = print) -> None:
    """One line a quantity."""

    def interval(name: str, values: tuple[float, float, float]) -> str:
        low, expected, high = values
        return f"{name}: {expected:,.0f} (95%: {low:,.0f} to {high:,.0f})"

    say(f"documents: {found.documents:,}, of which {found.asked:,} will be asked about")
    say(f"sampled: {found.sampled:,}")
    say(interval("prompt tokens", found.prompt_tokens))
    say(interval("completion tokens", found.completion_tokens))
    say(f"hours at the sample's speed: {found.seconds / 3600:,.2f}")
    say(f"GPU hours: {found.gpu_hours:,.2f}; cost: {found.cost:,.2f}")
