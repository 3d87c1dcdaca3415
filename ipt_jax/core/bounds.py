"""What a setting may be, written into its type, and the one check of it.

@dataclass(frozen=True)
class GuardConfig(Config):
    stop_after: Positive = 10
    spike_deviations: Annotated[float, AtLeast(0)] = 6.0

Making one refuses a value of another kind, out of its bounds, NaN or infinite, by the path of its
key: `optimizer.schedule`, `extensions.0.tokens`.
"""

from __future__ import annotations

import functools
import math
import numbers
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ipt_jax.core.errors import UserError, did_you_mean, require, require_choice


@dataclass(frozen=True, eq=False)
class Bound:
    """What must hold between a value and a limit, and how that is said."""

    words: str
    holds: Callable[[Any, Any], bool]
    limit: Any


def _among(value: Any, names: Any) -> bool:
    return value in names


def _given(value: Any, _: str) -> bool:
    return bool(value.strip() if isinstance(value, str) else value)


AtLeast = functools.partial(Bound, "at least", operator.ge)
Above = functools.partial(Bound, "above", operator.gt)
AtMost = functools.partial(Bound, "at most", operator.le)
Below = functools.partial(Bound, "below", operator.lt)
# A name out of a table whose names a Literal cannot list.
OneOf = functools.partial(Bound, "one of", _among)
# A text or list that has to be given; the limit says what to name in it.
NotEmpty = functools.partial(Bound, "given:", _given)

Positive = Annotated[int, AtLeast(1)]
NotNegative = Annotated[int, AtLeast(0)]
Amount = Annotated[float, AtLeast(0)]
Share = Annotated[float, AtLeast(0), AtMost(1)]
Fraction = Annotated[float, AtLeast(0), Below(1)]

_KINDS: dict[Any, tuple[type, str]] = {
    bool: (bool, "true or false"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "text"),
}
_unchecked = ContextVar("unchecked", default=False)


@dataclass(frozen=True)
class Config:
    """Base of the dataclasses of settings; making one raises UserError for what is wrong."""

    def __post_init__(self) -> None:
        if not _unchecked.get():
            _check_own(self)

    def check_together(self) -> None:
        """Raise UserError, beginning with its key, for keys that do not go together."""


@contextmanager
def unchecked() -> Iterator[None]:
    """Leave configs made meanwhile to `check_config`, which knows the paths of their keys."""
    token = _unchecked.set(True)
    try:
        yield
    finally:
        _unchecked.reset(token)


def check_config(value: Any, path: str = "") -> None:
    """Check the configs in `value`, the innermost first; `path` leads to them. Raises UserError."""
    if isinstance(value, Mapping | list | tuple):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            check_config(item, f"{path}{key}.")
    elif isinstance(value, Config):
        for field in fields(value):
            check_config(getattr(value, field.name), f"{path}{field.name}.")
        try:
            _check_own(value)
        except UserError as error:
            raise error.under(path) from error.__cause__


def config_of[T: Config](cls: type[T], values: Any, path: str = "", **given: Any) -> T:
    """The config of a mapping's keys and what is `given` beside them; `path` leads to the keys.

    Raises UserError for a key that is unknown, missing or wrong.
    """
    require(path[:-1], values, isinstance(values, Mapping), "a mapping of keys")
    kinds, made = _kinds_of(cls), dict(given)
    known = [name for name in kinds if name not in given]
    for key, value in values.items():
        if key not in known:
            said = f"{path}{key}: unknown key. {did_you_mean(str(key), known)}"
            raise UserError(said, key=f"{path}{key}")
        inner = [kind for kind in (kinds[key], *get_args(kinds[key])) if _is_config(kind)]
        if inner and isinstance(value, Mapping):
            value = config_of(inner[0], value, f"{path}{key}.")
        made[key] = tuple(value) if isinstance(value, list) and _is_tuple(kinds[key]) else value
    for field in fields(cls):
        missing = field.default is MISSING and field.default_factory is MISSING
        if missing and field.name not in made:
            raise UserError(f"{path}{field.name} is missing: give it.", key=path + field.name)
    try:
        return cls(**made)
    except UserError as error:
        raise error.under(path) from error.__cause__


def _is_config(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Config)


def _is_tuple(kind: Any) -> bool:
    return tuple in (get_origin(kind), *map(get_origin, get_args(kind)))


def _check_own(config: Config) -> None:
    for key, kind in _kinds_of(type(config)).items():
        check_value(kind, getattr(config, key), key)
    config.check_together()


@functools.cache
def _kinds_of(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


def check_value(kind: Any, value: Any, key: str, null: str = "") -> None:
    """Refuse a value that is not of `kind`, a type hint; `key` leads to it. Raises UserError."""
    bounds: Sequence[Bound] = ()
    if get_origin(kind) is Annotated:
        kind, *bounds = get_args(kind)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        _check_any(inner, value, key)
    elif origin is Literal:
        bounds = [OneOf(inner)]
    elif kind in _KINDS:
        allowed, words = _KINDS[kind]
        right = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
        require(key, value, right, words + null)
        if kind is float:
            require(key, value, -math.inf < value < math.inf, "finite" + null)
    elif origin is list or (origin is tuple and inner[-1] is ...):
        require(key, value, isinstance(value, list | tuple), "a list" + null)
        for number, item in enumerate(value):
            check_value(inner[0], item, f"{key}.{number}")
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        require(key, value, isinstance(value, Mapping), "a mapping" + null)
        for name, item in value.items():
            check_value(inner[0], name, f"{key}.{name}")
            check_value(inner[1], item, f"{key}.{name}")
    elif _is_config(kind):
        require(key, value, isinstance(value, kind), f"a {kind.__name__}{null}")
    wrong = [bound for bound in bounds if not bound.holds(value, bound.limit)]
    if wrong and wrong[0].holds is _among:
        require_choice(key, value, wrong[0].limit)
    words = " and ".join(f"{bound.words} {bound.limit}" for bound in bounds)
    require(key, value, not wrong, words + null)


def _check_any(kinds: Sequence[Any], value: Any, key: str) -> None:
    """One of a union's kinds must do; else the error of the one that came farthest is raised."""
    if value is None and NoneType in kinds:
        return
    null, errors = ", or null" if NoneType in kinds else "", []
    for kind in kinds:
        if kind is not NoneType:
            try:
                return check_value(kind, value, key, null)
            except UserError as error:
                errors.append(error)
    raise max(errors, key=lambda error: len(error.key))
