"""M-shot training texts out of documents and pairs, in varied plain forms (section 2.2).

Every choice is drawn on its own from a generator seeded for the record.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_gen.instruction_pretrain.format import Pair, Shot

PAIR_PATTERNS = (
    "Question: {question}\nAnswer: {answer}",
    "Q: {question}\nA: {answer}",
    "{question}\n{answer}",
    "{question}\nAnswer: {answer}",
    "Problem: {question}\nSolution: {answer}",
    "Task: {question}\nResponse: {answer}",
    "[question] {question}\n[answer] {answer}",
    "Someone asks: {question}\nThe reply: {answer}",
)
OPENINGS = (
    "",
    "Answer the questions about the passage above.",
    "Here is what can be asked about this text, and what it says.",
    "Reading comprehension:",
    "The following questions are answered by the text.",
    "Let us check what we have read.",
    "Questions on the passage:",
    "Using the text above, respond to each of these.",
)
HEADINGS = ("", "Passage:\n", "Text:\n", "Read this:\n")
PAIR_JOINS = ("\n\n", "\n")


def render_training_text(shots: Sequence[Shot], generator: np.random.Generator) -> list[str]:
    """Parts that join to an M-shot text: each text, then its opening, then each of its pairs.

    One pattern holds for all pairs of the record, so that later shots follow earlier ones.
    """
    pattern = PAIR_PATTERNS[generator.integers(len(PAIR_PATTERNS))]
    opening = OPENINGS[generator.integers(len(OPENINGS))]
    heading = HEADINGS[generator.integers(len(HEADINGS))]
    join = PAIR_JOINS[generator.integers(len(PAIR_JOINS))]
    parts: list[str] = []
    for number, shot in enumerate(shots):
        before = "\n\n" if number else ""
        parts.append(f"{before}{heading}{shot.text}\n\n")
        lead = f"{opening}{join}" if opening else ""
        for place, pair in enumerate(shot.pairs):
            parts.append((join if place else lead) + render_with(pattern, pair))
    return parts


def render_with(pattern: str, pair: Pair) -> str:
    """`pattern` with the pair filled in; braces within the pair stay as they are."""
    head, _, rest = pattern.partition("{question}")
    middle, _, tail = rest.partition("{answer}")
    return f"{head}{pair.question}{middle}{pair.answer}{tail}"
