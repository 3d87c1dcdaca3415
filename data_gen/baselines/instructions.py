"""The wordings that turn mined tasks into instructions with answers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_gen.errors.shared import load_yaml
from ipt_jax.core.errors import UserError, did_you_mean

DEFAULT_FILE = Path(__file__).with_name("instructions.yaml")
_SLOT = re.compile(r"\{(\w+)\}")
_PAIR = {"premise", "hypothesis"}
# Key -> slots that each of its wordings must hold.
_NEEDED: dict[str, set[str]] = {
    "reading": {"text"},
    "title_to_text": {"title", "text"},
    "completion": {"first", "rest"},
    "opening": set(),
    "title": {"title"},
    "topic": {"subject", "topic"},
    "words": {"keywords", "sentence"},
    "definition": {"term", "definition"},
    "nli": _PAIR,
    "entail": _PAIR,
    "neutral": _PAIR,
    "contradict": _PAIR,
    "cause_effect": {"cause", "effect"},
    "effect_cause": {"cause", "effect"},
    "similar": {"first", "second"},
    "different": {"first", "second"},
}
_LABELS = {"label", "relation", "linking"}
_CONNECTED = {"entail", "neutral", "contradict", "similar"}


def _allowed(key: str) -> set[str]:
    more = _LABELS if key == "nli" else {"connector"} if key in _CONNECTED else set()
    return _NEEDED[key] | more | {"domain"}


@dataclass(frozen=True)
class Instructions:
    """Wordings by key."""

    wordings: Mapping[str, Sequence[str]]
    """For each key of the file at least one."""
    sha256: str
    """Of the file."""

    def draw(self, key: str, slots: Mapping[str, str], generator: np.random.Generator) -> str:
        """One wording of `key`, filled in; braces within a slot stay as they are."""
        choices = self.wordings[key]
        return _SLOT.sub(lambda m: slots[m[1]], choices[int(generator.integers(len(choices)))])


def load_instructions(path: Path = DEFAULT_FILE) -> Instructions:
    """Raises UserError where the file is none, a key is missing or unknown, a slot is wrong."""
    content = load_yaml(path, "file of wordings", "instructions")
    if not isinstance(content, dict):
        said = f"{path} holds no keys: its form is that of {DEFAULT_FILE.name}."
        raise UserError(said, key="instructions", path=path)
    for key in content:
        if key not in _NEEDED:
            said = f"{path}: unknown key '{key}'. {did_you_mean(str(key), _NEEDED)}"
            raise UserError(said, key=str(key), path=path)
    for key in _NEEDED:
        _check(path, key, content.get(key))
    return Instructions(content, hashlib.sha256(path.read_bytes()).hexdigest())


def _check(path: Path, key: str, wordings: Any) -> None:
    if not isinstance(wordings, list) or not wordings or not all(type(w) is str for w in wordings):
        said = f"{path}: '{key}' must be a list of at least one text."
        raise UserError(said, key=key, path=path)
    for wording in wordings:
        slots = set(_SLOT.findall(wording))
        missing, unknown = _NEEDED[key] - slots, slots - _allowed(key)
        if key == "nli" and not slots & _LABELS:
            missing = {"label"}
        if missing or unknown:
            wrong = [*(f"lacks {{{s}}}" for s in missing), *(f"has {{{s}}}" for s in unknown)]
            raise UserError(
                f"{path}: the wording {wording!r} of '{key}' {', '.join(sorted(wrong))}; it may "
                f"hold {', '.join(sorted(_allowed(key)))}.",
                key=key,
                path=path,
            )
