"""Examples in another format of Table 7 than their data set's own.

Where every text of a kind comes in one format, a small synthesizer reads the format from the text
and not from the shots. With some sequences in another format, only the shots tell it. This is no
part of the paper, whose 34 data sets bring that variety themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data_gen.instruction_pretrain.collection import Example
from data_gen.instruction_pretrain.formats import Pair

FREE_FORM, MULTIPLE_CHOICE, WITHOUT_RATIONALE = "free_form", "multiple_choice", "without_rationale"
MOST_OPTIONS = 4
# An answer that points at the options says nothing without them.
_POINTS_AT_OPTIONS = "of the above"


def other_patterns(examples: Sequence[Example]) -> list[str]:
    """The patterns that these examples, of one data set, can be written in besides their own."""
    pairs = [pair for example in examples for pair in example.pairs]
    found = [FREE_FORM] if any(pair.options for pair in pairs) else [MULTIPLE_CHOICE]
    if any(pair.rationale for pair in pairs):
        found.append(WITHOUT_RATIONALE)
    return found


def in_pattern(
    example: Example, pattern: str, answers: Sequence[str], generator: np.random.Generator
) -> tuple[Example | None, tuple[Pair, ...]]:
    """The example in `pattern`, None if no pair can be; and the pairs that cannot be.

    One question with two sets of options is one question without them. Of an example's answers
    each is a wrong option once, the rest is drawn from `answers`, which are of other texts: with
    the same answers below every question a small synthesizer learns to go round in circles.
    """
    kept: list[Pair] = []
    left: list[Pair] = []
    order = generator.permutation(len(example.pairs))
    for pair, other in zip(example.pairs, order, strict=True):
        if pattern == WITHOUT_RATIONALE:
            changed = replace(pair, rationale=None)
        elif pattern == FREE_FORM:
            changed = replace(pair, options=())
            asked = any(changed.question == other.question for other in kept)
            if asked or _POINTS_AT_OPTIONS in pair.response.lower():
                changed = None
        else:
            wrong = [example.pairs[other].response]
            wrong += [answers[i] for i in generator.integers(len(answers), size=MOST_OPTIONS)]
            changed = _with_options(pair, wrong, generator)
        if changed is None:
            left.append(pair)
        else:
            kept.append(changed)
    return (replace(example, pairs=tuple(kept)) if kept else None), tuple(left)


def _with_options(pair: Pair, wrong: Sequence[str], generator: np.random.Generator) -> Pair | None:
    if "\n" in pair.response:
        return None
    different = {pair.response.lower(): pair.response}
    for answer in wrong:
        if len(different) < MOST_OPTIONS and "\n" not in answer:
            different.setdefault(answer.lower(), answer)
    if len(different) < 2:
        return None
    options = list(different.values())
    return replace(
        pair, options=tuple(options[int(i)] for i in generator.permutation(len(options)))
    )
