"""Preprocessors: what is done to a record's fields before its text is tokenised.

A preprocessor takes the fields of one record as a dict and returns the fields of one record. It
finds the record's text under ``text`` and its id under ``id``, whatever their keys in the file,
and everything else under its own key. It may add ``parts`` and ``loss``. One record stays one
record: a source is read at random access, so nothing can be dropped or split here.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ipt_jax.core.errors import UserError, did_you_mean

Fields = dict[str, Any]
Preprocessor = Callable[..., Fields]


def _text(fields: Fields, key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        found = f"is a {type(value).__name__}" if key in fields else "is missing"
        raise UserError(f"`{key}` {found}, not text; the record has {sorted(fields)}")
    return value


def pair(
    fields: Fields,
    *,
    instruction: str = "instruction",
    response: str = "response",
    before: str = "Instruction: ",
    between: str = "\n\nAnswer: ",
) -> Fields:
    """An instruction and its response as one text, loss on the response only.

    ``instruction`` and ``response`` are keys. The form is FineInstructions' by default:
    ``Instruction: …``, an empty line, ``Answer: …``.
    """
    parts = (before + _text(fields, instruction) + between, _text(fields, response))
    return {**fields, "text": "".join(parts), "parts": parts, "loss": (0.0, 1.0)}


def join(fields: Fields, *, keys: Sequence[str], by: str = "\n\n") -> Fields:
    """The texts under ``keys`` one after another, ``by`` between them."""
    return {**fields, "text": by.join(_text(fields, key) for key in keys)}


def strip(fields: Fields) -> Fields:
    """The text without white space at its beginning and end."""
    if fields.get("parts") is not None:
        raise UserError("`strip` would shorten `text` but not its `parts`: put it before `pair`")
    return {**fields, "text": _text(fields, "text").strip()}


_REGISTRY: dict[str, Preprocessor] = {"pair": pair, "join": join, "strip": strip}


def register_preprocessor(name: str, preprocessor: Preprocessor) -> Preprocessor:
    """Add a preprocessor. Raises UserError where another has its name.

    A length index knows a preprocessor by its name and settings only: give one that changes its
    texts a new name.
    """
    if _REGISTRY.setdefault(name, preprocessor) is not preprocessor:
        raise UserError(f"another preprocessor is already registered as {name!r}: rename one.")
    return preprocessor


def unregister_preprocessor(name: str) -> None:
    """Forget the preprocessor of that name, if any."""
    _REGISTRY.pop(name, None)


def preprocessors(
    asked: Sequence[str | Mapping[str, Mapping[str, Any]]],
) -> tuple[tuple[str, Preprocessor], ...]:
    """Name and function of each, settings bound; picklable.

    Raises UserError for an unknown name or setting, and for a setting that is missing.
    """
    made = []
    for item in asked:
        one = item if isinstance(item, Mapping) else {item: {}}
        if len(one) != 1:
            raise UserError(f"{item!r} should be one preprocessor: `name` or `name: {{settings}}`.")
        ((name, settings),) = one.items()
        if name not in _REGISTRY:
            raise UserError(f"there is no preprocessor {name!r}. {did_you_mean(name, _REGISTRY)}")
        function = _REGISTRY[name]
        settings = dict(settings or {})
        try:
            inspect.signature(function).bind({}, **settings)
        except TypeError as error:
            raise UserError(f"the preprocessor {name!r} has wrong settings: {error}.") from error
        made.append((name, functools.partial(function, **settings) if settings else function))
    return tuple(made)
