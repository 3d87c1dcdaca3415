"""Held-out examples that the synthesizer is tried on, one JSON line each, with their shots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_gen.instruction_pretrain.collection import Example
from data_gen.instruction_pretrain.formats import Pair, Shot
from ipt_jax.core.errors import UserError
from ipt_jax.core.json_lines import parse_json
from ipt_jax.core.seeds import generator_of


@dataclass(frozen=True)
class HeldOut:
    """A text that the synthesizer was not tuned on, with its gold pairs."""

    id: str
    """Unique in the file."""
    dataset: str
    """Data set of the example and of its shots."""
    text: str
    """The raw text."""
    pairs: tuple[Pair, ...]
    """Gold pairs, at least one."""
    shots: tuple[Shot, ...]
    """Other examples of the data set, put before the text in the few-shot setting."""
    unseen: bool
    """Of a data set that the synthesizer was not tuned on at all."""


def held_out_line(example: Example, shots: Sequence[Example | Shot], unseen: bool) -> str:
    """The example's line in the file, without a line break."""
    value = {
        "id": example.id,
        "dataset": example.dataset,
        "text": example.text,
        "unseen": unseen,
        "pairs": list(map(_pair_value, example.pairs)),
        "shots": [{"text": s.text, "pairs": list(map(_pair_value, s.pairs))} for s in shots],
    }
    return json.dumps(value, ensure_ascii=False)


def read_held_out(*paths: str | Path) -> list[HeldOut]:
    """Every example of the files, in order.

    Raises:
      UserError: no such file, an empty one, or a line that is no example; file, line and key are
        named.
    """
    found: list[HeldOut] = []
    places: dict[str, str] = {}
    unseen: dict[str, bool] = {}
    for path in paths:
        before = len(found)
        for where, line in _lines(Path(path).expanduser()):
            example = _example(line, where)
            if example.id in places:
                raise UserError(
                    f"{where}: the id {example.id!r} stands at {places[example.id]} too: give each "
                    "example its own."
                )
            if unseen.setdefault(example.dataset, example.unseen) != example.unseen:
                raise UserError(
                    f"{where}: `unseen` of {example.dataset} is {example.unseen} here and "
                    "otherwise before: a data set is seen or unseen as a whole."
                )
            places[example.id] = where
            found.append(example)
        if len(found) == before:
            raise UserError(f"{path} holds no example: write it anew with `held_out_line`.")
    return found


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    try:
        # Not splitlines: a JSON string may hold other line separators as they are.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the held-out examples in {path} cannot be read ({error}): correct `held_out`."
        ) from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{path}:{number}", line


def draw_examples(examples: Sequence[HeldOut], per_dataset: int | None, seed: int) -> list[HeldOut]:
    """At most `per_dataset` of each data set, in the order of the file; None for all."""
    if per_dataset is None:
        return list(examples)
    places: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        places.setdefault(example.dataset, []).append(place)
    kept: list[int] = []
    for name, of_set in places.items():
        order = generator_of(seed, "held_out", name).permutation(np.asarray(of_set))
        kept += order[:per_dataset].tolist()
    return [examples[place] for place in sorted(kept)]


def _pair_value(pair: Pair) -> dict[str, Any]:
    return {
        "instruction": pair.instruction,
        "response": pair.response,
        "options": list(pair.options),
        "rationale": pair.rationale,
    }


def _example(line: str, where: str) -> HeldOut:
    try:
        value = parse_json(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}): one example a line.") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: holds a {type(value).__name__}, where an object should be.")
    shots = [
        Shot(_text(shot, "text", f"{where}: shot {n}"), _pairs(shot, f"{where}: shot {n}"))
        for n, shot in enumerate(_list(value, "shots", where), 1)
    ]
    return HeldOut(
        id=_text(value, "id", where),
        dataset=_text(value, "dataset", where),
        text=_text(value, "text", where),
        pairs=_pairs(value, where),
        shots=tuple(shots),
        unseen=_of_type(value, "unseen", bool, where),
    )


def _pairs(value: Any, where: str) -> tuple[Pair, ...]:
    pairs = tuple(
        _pair(pair, f"{where}: pair {number}")
        for number, pair in enumerate(_list(value, "pairs", where), 1)
    )
    if not pairs:
        raise UserError(f"{where}: `pairs` is empty: an example has at least one.")
    return pairs


def _pair(value: Any, where: str) -> Pair:
    instruction, response = _text(value, "instruction", where), _text(value, "response", where)
    options = _list(value, "options", where)
    if not all(isinstance(option, str) for option in options):
        raise UserError(f"{where}: `options` holds something that is no text.")
    rationale = value.get("rationale")
    if rationale is not None and not isinstance(rationale, str):
        raise UserError(f"{where}: `rationale` must be text or null, not {rationale!r}.")
    return Pair(instruction, response, tuple(options), rationale)


def _text(value: Any, key: str, where: str) -> str:
    found = _of_type(value, key, str, where)
    if not found.strip():
        raise UserError(f"{where}: `{key}` is empty.")
    return found


def _list(value: Any, key: str, where: str) -> list[Any]:
    return _of_type(value, key, list, where)


def _of_type[T](value: Any, key: str, kind: type[T], where: str) -> T:
    if not isinstance(value, Mapping) or key not in value:
        raise UserError(f"{where}: has no `{key}`.")
    if not isinstance(value[key], kind):
        raise UserError(f"{where}: `{key}` is {value[key]!r}: it must be a {kind.__name__}.")
    return value[key]
