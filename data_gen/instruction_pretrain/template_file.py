"""Templates of training texts as YAML: ours, and files of a user's own, checked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import yaml

from data_gen.errors.shared import load_yaml
from ipt_jax.core.bounds import Amount, NotEmpty, OneOf, Share, check_value
from ipt_jax.core.errors import UserError, did_you_mean, require

OUR_FOLDER = Path(__file__).with_name("template_data")
OUR_FILES = ("pairs.yaml", "texts.yaml", "arrangements.yaml")
SLOT = re.compile(r"\{(\w+)\}")
COUNTERS = ("1", "a", "A", "i", "I")
ANSWERS = ("answer", "marker", "marked_answer")


@dataclass(frozen=True)
class Slots:
    """What the entries of a list have places for."""

    required: tuple[str, ...] = ()
    """Each stands once in every entry."""
    one_of: tuple[str, ...] = ()
    """One of these stands in every entry."""
    optional: bool = False
    """An entry may also have none of `one_of`."""


LISTS: Mapping[str, Slots] = {
    "free_form": Slots(("question", "answer")),
    "multiple_choice": Slots(("question", "options"), ANSWERS),
    "free_form_chain_of_thought": Slots(("question", "rationale", "answer")),
    "multiple_choice_chain_of_thought": Slots(("question", "options", "rationale"), ANSWERS),
    "texts": Slots(("text",)),
    "openings": Slots(),
    "pairs_first": Slots(("pairs", "text")),
    "dialogues": Slots(("dialogue",)),
    "dialogue_turns": Slots(("question", "answer")),
    "next_turns": Slots(("dialogue", "turn")),
    "numbered": Slots(("questions", "answers")),
    "examples": Slots(("examples", "last")),
    "option_questions": Slots(("question", "options")),
    "option_answers": Slots((), ANSWERS),
    "reasoned_answers": Slots(("rationale", "answer")),
    "markers": Slots((), COUNTERS, optional=True),
    "numbers": Slots((), COUNTERS),
    "opening_connections": Slots(),
    "text_connections": Slots(),
    "pair_connections": Slots(),
    "line_connections": Slots(),
    "option_connections": Slots(),
    "shot_connections": Slots(),
}
# The first two work with any number of pairs; the others need two.
WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "arrangements": ("reading", "dialogue", "numbered", "examples", "next_turn"),
    "one_pair_arrangements": ("reading", "dialogue"),
}
SHARES = ("pairs_first", "opening")


@dataclass(frozen=True)
class TemplateSet:
    """Everything that a training text can look like."""

    lists: Mapping[str, tuple[str, ...]]
    """Entries by the names of LISTS; each entry of a list is as likely as the others."""
    weights: Mapping[str, Mapping[str, float]]
    """`arrangements`, and `one_pair_arrangements` for records with a text of only one pair."""
    shares: Mapping[str, float]
    """`pairs_first`: records whose pairs come before the text; `opening`: plain ones with one."""

    @property
    def sha256(self) -> str:
        """Fingerprint of everything in it; orders of lists count, for draws depend on them."""
        content = [sorted(self.lists.items())]
        content += [[key, list(of.items())] for key, of in sorted(self.weights.items())]
        content += [sorted(self.shares.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@cache
def our_templates() -> TemplateSet:
    """The templates that come with the package (`template_data/`)."""
    templates = TemplateSet({}, {}, {})
    for name in OUR_FILES:
        templates = _overlay(templates, OUR_FOLDER / name)
    return templates


def load_templates(path: str | Path = "") -> TemplateSet:
    """The templates of a file of the user's own; without a path, ours.

    A list or weights of the file replace ours whole; what the file leaves out stays ours, single
    shares too.

    Raises:
      UserError: naming file, key and entry: no such file, no YAML, unknown or repeated keys, empty
        lists, missing, unknown or repeated slots, weights that are negative or all zero.
    """
    return _overlay(our_templates(), Path(path).expanduser()) if str(path) else our_templates()


def _overlay(below: TemplateSet, path: Path) -> TemplateSet:
    """`below` with what the file says."""
    lists, weights, shares = dict(below.lists), dict(below.weights), dict(below.shares)
    content = _read(path)
    try:
        for key, value in content.items():
            if key in LISTS:
                lists[key] = _entries(key, value, LISTS[key])
            elif key in WEIGHTS:
                weights[key] = _numbers(key, value, WEIGHTS[key], Amount)
                above = any(weights[key].values())
                require(key, value, above, "above 0 for at least one arrangement")
            elif key == "shares":
                shares |= _numbers(key, value, SHARES, Share)
            else:
                known = did_you_mean(key, (*LISTS, *WEIGHTS, "shares"))
                raise UserError(f"{key}: unknown key. {known}", key=str(key))
    except UserError as error:
        raise UserError(f"the template file {path}: {error}", key=error.key, path=path) from error
    return replace(below, lists=lists, weights=weights, shares=shares)


def _numbers(key: str, value: Any, names: tuple[str, ...], kind: Any) -> dict[str, float]:
    check_value(dict[Annotated[str, OneOf(names)], kind], value, key)
    return {name: float(number) for name, number in value.items()}


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice; YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # YAML itself refuses it
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[Any, Any]:
    content = load_yaml(path, "template file", "templates", _UniqueKeys)
    if not isinstance(content, dict) or not content:
        raise UserError(
            f"the template file {path} must hold keys with their templates, such as "
            f"`free_form:` and a list; see {OUR_FOLDER.name}/ for all of them.",
            key="templates",
            path=path,
        )
    return content


def _entries(key: str, value: Any, slots: Slots) -> tuple[str, ...]:
    check_value(Annotated[list[str], NotEmpty("at least one entry")], value, key)
    for number, entry in enumerate(value):
        if wrong := _wrong_with(entry, slots):
            raise UserError(f"{key}.{number}={entry!r} {wrong}.", key=f"{key}.{number}")
    return tuple(value)


def _wrong_with(entry: str, slots: Slots) -> str:
    """What is wrong with an entry, or nothing."""
    if not entry:
        return "is empty: write what shall stand there, or leave the entry out"
    found = SLOT.findall(entry)
    allowed = (*slots.required, *slots.one_of)
    for name in found:
        if name not in allowed:
            hint = did_you_mean(name, allowed).removesuffix(".") if allowed else "It can have none"
            return f"has a slot {{{name}}} that is unknown here. {hint}"
        if found.count(name) > 1:
            return f"has the slot {{{name}}} more than once: leave it once"
    for name in slots.required:
        if name not in found:
            return f"has no slot {{{name}}}: what belongs there would be lost"
    chosen = sum(name in slots.one_of for name in found)
    if chosen > 1 or (not chosen and slots.one_of and not slots.optional):
        names = ", ".join(f"{{{name}}}" for name in slots.one_of)
        return f"has {chosen} of the slots {names}: it must have one"
    return ""
