"""Records that hold pairs of instruction and response, as texts with parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_gen.corpus.documents import Raw
from ipt_jax.core.bounds import Config
from ipt_jax.core.errors import require

# Names of the two speakers in the data sets that are about.
_ASKS = {"human", "user", "prompter", "instruction"}
_ANSWERS = {"gpt", "assistant", "bot", "chatgpt", "model", "response"}
PairForm = tuple[str, str]
"""What stands before an instruction, and between it and its response."""
PLAIN_FORM: PairForm = ("", "\n\n")


@dataclass(frozen=True)
class PairLayout(Config):
    """Where a record holds its pair, or a conversation of several."""

    instruction: list[str] = field(default_factory=lambda: ["instruction"])
    """Keys of the instruction, joined by an empty line; those that are empty are left out (a
    system prompt, an input)."""
    response: str = "response"
    """Key of the response."""
    conversation: str = ""
    """Key of a list, in place of both: texts that take turns, mappings with `from` or `role` and
    `value` or `content`, or mappings that have the keys above and so hold a pair each."""

    def check_together(self) -> None:
        for key in ("instruction", "response"):
            value = getattr(self, key)
            require(key, value, bool(self.conversation or value), "given: name its key")

    @property
    def keys(self) -> list[str]:
        """What a record of this layout has."""
        return [self.conversation] if self.conversation else [*self.instruction, self.response]


def as_pair(raw: Raw, layouts: Sequence[PairLayout], form: PairForm = PLAIN_FORM) -> Raw:
    """The record with its pairs as `text` and `parts`, instruction and response in turn; with
    the reason `no_pair` where it is of no layout. The first that it has all keys of counts."""
    if raw.fields is None:
        return raw
    fields = dict(raw.fields)
    layout = next((one for one in layouts if all(key in fields for key in one.keys)), None)
    try:
        if layout is None:
            raise ValueError(f"it has the keys {sorted(fields)}")
        turns = _turns(fields, layout)
    except ValueError as error:
        name = fields.get("id")
        named = str(name) if isinstance(name, str | int) else ""
        return Raw(raw.place, None, "no_pair", str(error)[:300], named)
    for key in layout.keys:
        fields.pop(key, None)
    parts = [
        f"{turn}\n\n" if number % 2 else f"{form[0]}{turn}{form[1]}"
        for number, turn in enumerate(turns)
    ]
    parts[-1] = turns[-1]
    return raw._replace(fields={**fields, "text": "".join(parts)}, parts=tuple(parts))


def _turns(fields: Mapping[str, Any], layout: PairLayout) -> list[str]:
    """Instruction and response in turn; raises ValueError where there are none such."""
    if not layout.conversation:
        turns = _pair(fields, layout)
    else:
        turns = _talk(fields[layout.conversation], layout)
    if len(turns) < 2 or len(turns) % 2:
        raise ValueError(f"{len(turns)} turns, where each instruction has its response")
    if not all(turns):
        raise ValueError("an instruction or a response is empty")
    return turns


def _pair(fields: Mapping[str, Any], layout: PairLayout) -> list[str]:
    asked = [_text(fields.get(key) or "", key) for key in layout.instruction]
    return ["\n\n".join(filter(None, asked)), _text(fields[layout.response], layout.response)]


def _talk(said: Any, layout: PairLayout) -> list[str]:
    key = layout.conversation
    if not isinstance(said, list):
        raise ValueError(f"`{key}` is a {type(said).__name__}, not a list of turns")
    turns: list[str] = []
    before = ""  # what a system says stands before the first instruction
    for one in said:
        if not isinstance(one, Mapping):
            turns.append(_text(one, key))
            continue
        if layout.response in one:
            turns += _pair(one, layout)
            continue
        role = str(one.get("from", one.get("role"))).lower()
        text = _text(one.get("value", one.get("content")), key)
        if role == "system" and not turns:
            before = f"{text}\n\n" if text else ""
        elif role not in (_ANSWERS if len(turns) % 2 else _ASKS):
            raise ValueError(f"turn {len(turns) + 1} is of {role!r}")
        else:
            turns.append(text)
    return [before + turns[0], *turns[1:]] if turns and turns[0] else turns


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"`{key}` holds a {type(value).__name__}, not text")
    return value.strip()
