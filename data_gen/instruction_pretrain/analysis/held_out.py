"""Held-out examples that the synthesizer is tried on, one JSON line each, with their shots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from data_gen.instruction_pretrain.collection import Example
from data_gen.instruction_pretrain.formats import Pair, Shot
from ipt_jax.core.bounds import NotEmpty, check_value
from ipt_jax.core.errors import UserError, require
from ipt_jax.core.json_lines import parse_json
from ipt_jax.core.seeds import generator_of

_TEXT = Annotated[str, NotEmpty("a text")]
_SHOT = {"text": _TEXT, "pairs": Annotated[list[Any], NotEmpty("at least one")]}
_PAIR = {"instruction": _TEXT, "response": _TEXT, "options": list[str], "rationale": str | None}
_EXAMPLE = {"id": _TEXT, "dataset": _TEXT, "unseen": bool, "shots": list[Any]}


@dataclass(frozen=True)
class HeldOut(Example):
    """An example that the synthesizer was not tuned on; its pairs are the gold ones."""

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
        for number, line in _lines(Path(path).expanduser()):
            where, wrong = f"{path}:{number}", partial(UserError, path=path, record=str(number))
            try:
                example = _example(parse_json(line))
            except ValueError as error:
                raise wrong(f"{where}: not JSON ({error}): one example a line.") from error
            except UserError as error:
                raise wrong(f"{where}: {error}", key=error.key) from error
            if example.id in places:
                said = f"{where}: the id {example.id!r} stands at {places[example.id]} too: give "
                raise wrong(f"{said}each example its own.", key="id")
            if unseen.setdefault(example.dataset, example.unseen) != example.unseen:
                said = f"{where}: `unseen` of {example.dataset} is {example.unseen} here and "
                said += "otherwise before: a data set is seen or unseen as a whole."
                raise wrong(said, key="unseen")
            places[example.id] = where
            found.append(example)
        if len(found) == before:
            said = f"{path} holds no example: write it anew with `held_out_line`."
            raise UserError(said, key="held_out", path=path)
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        # Not splitlines: a JSON string may hold other line separators as they are.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        said = f"the held-out examples in {path} cannot be read ({error}): correct `held_out`."
        raise UserError(said, key="held_out", path=path) from error
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


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


def _example(value: Any) -> HeldOut:
    own = _fields(value, _EXAMPLE, "")
    of_own = _shot(value, "")
    shots = tuple(_shot(shot, f"shots.{number}.") for number, shot in enumerate(own["shots"]))
    return HeldOut(own["id"], own["dataset"], of_own.text, of_own.pairs, shots, own["unseen"])


def _shot(value: Any, prefix: str) -> Shot:
    own = _fields(value, _SHOT, prefix)
    pairs = enumerate(own["pairs"])
    return Shot(own["text"], tuple(_pair(one, f"{prefix}pairs.{number}.") for number, one in pairs))


def _pair(value: Any, prefix: str) -> Pair:
    own = _fields(value, _PAIR, prefix)
    return Pair(own["instruction"], own["response"], tuple(own["options"]), own["rationale"])


def _fields(value: Any, kinds: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What an object holds under these keys, null where it lacks one. Raises UserError."""
    require(prefix[:-1] or "the line", value, isinstance(value, Mapping), "an object")
    for name, kind in kinds.items():
        check_value(kind, value.get(name), prefix + name)
    return {name: value.get(name) for name in kinds}
