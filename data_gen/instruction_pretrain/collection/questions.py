"""What many sets' records have in common: options, conversations, lists of questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from data_gen.corpus.dataset_files import MALFORMED
from data_gen.instruction_pretrain.collection.base import Question
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.rejection import Reason


def choice(
    text: str,
    asked: str,
    options: Mapping[Any, str] | Sequence[str],
    label: Any,
    rationale: str | None = None,
) -> Question:
    """The option of this label, or in this place, answers; a label without one is found among none
    of them."""
    named = dict(options) if isinstance(options, Mapping) else dict(enumerate(options))
    answer = named.get(label, str(label) if isinstance(label, int) else label)
    return Question(text, Pair(asked, answer, tuple(named.values()), rationale))


def labelled(choices: Any) -> dict[str, str]:
    """Texts by their labels, out of a list of both or, as in the hub's tables, two lists."""
    if isinstance(choices, dict):
        return dict(zip(choices["label"], choices["text"], strict=True))
    return {one["label"]: one["text"] for one in choices}


def conversation(pieces: Iterable[Question | Reason]) -> Iterator[Question | Reason]:
    """The turns of a conversation, each after those before it."""
    before: tuple[str, ...] = ()
    for piece in pieces:
        if isinstance(piece, Question):
            yield replace(piece, before=before)
            before += (piece.pair.instruction,)
        else:
            yield piece


def one_by_one(
    items: Iterable[Any], convert: Callable[[Any], Question | Reason]
) -> Iterator[Question | Reason]:
    """What `convert` makes of each; a malformed one does not take its record's others along."""
    for place, item in enumerate(items):
        try:
            yield convert(item)
        except MALFORMED as error:
            problem = f"question {place}: {type(error).__name__}: {error}"
            yield Reason("malformed_record", problem)
