"""Task and Mixture, with seqio's words and meaning, and their registries."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ipt_jax.errors import UserError, nearest

NATURAL = "natural"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Task:
    """One source of examples and how its texts become tokens. Raises UserError if impossible."""

    name: str
    """Key in mixtures, metrics and reports."""
    source: str
    """Folder of record shards with a manifest."""
    tokenizer: str = "mistral-7b-v0.1"
    """What ``load_tokenizer`` takes."""
    bos: bool = True
    """Put BOS before each example."""
    eos: bool = True
    """Put EOS after each example."""
    loss: Literal["all", "responses"] = "all"
    """``all``: every token (pre-training); ``responses``: the weights of the record's parts."""
    max_epochs: float | None = None
    """How often each example may be seen; None for no limit."""

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError("a task has an empty name: give it one.")
        if self.loss not in ("all", "responses"):
            raise UserError(
                f"`tasks.{self.name}.loss` is {self.loss!r}: it must be 'all' or 'responses'."
            )
        for key in ("bos", "eos"):
            if not isinstance(getattr(self, key), bool):
                raise UserError(
                    f"`tasks.{self.name}.{key}` is {getattr(self, key)!r}: it must be "
                    "true or false."
                )
        if self.max_epochs is not None and not (
            _is_number(self.max_epochs) and self.max_epochs > 0
        ):
            raise UserError(
                f"`tasks.{self.name}.max_epochs` is {self.max_epochs!r}: it must be a positive "
                "number, or null for no limit."
            )


@dataclass(frozen=True)
class Mixture:
    """Tasks and the rates they are mixed at. Raises UserError for rates that cannot be."""

    name: str
    """Key in the registry and in reports."""
    tasks: tuple[Task, ...]
    """The sources; ``source_ids`` of a batch count in this order."""
    rates: Mapping[str, float] | Literal["natural"] = NATURAL
    """Share of each task, in any unit; ``natural`` for the sources' own sizes."""
    by: Literal["tokens", "examples"] = "tokens"
    """What the shares are shares of."""

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        where = f"mixture {self.name!r}"
        if not names:
            raise UserError(f"{where} has no tasks: list at least one under `tasks`.")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"{where} has the task {twice[0]!r} twice: give each its own name.")
        if self.by not in ("tokens", "examples"):
            raise UserError(f"{where}: `by` is {self.by!r}: it must be 'tokens' or 'examples'.")
        if len({task.tokenizer for task in self.tasks}) > 1:
            raise UserError(
                f"{where} mixes the tokenizers {sorted({t.tokenizer for t in self.tasks})}: one "
                "model reads one tokenizer's ids, so give all tasks the same."
            )
        if isinstance(self.rates, str):
            if self.rates != NATURAL:
                raise UserError(
                    f"{where}: `rates` is {self.rates!r}: give a number for each task or 'natural'."
                )
            return
        for name, rate in self.rates.items():
            if name not in names:
                raise UserError(f"{where}: `rates.{name}` is no task. {nearest(name, names)}")
            if not _is_number(rate) or rate < 0:
                raise UserError(
                    f"{where}: `rates.{name}` is {rate!r}: a rate is a finite number, 0 or more."
                )
        if missing := [name for name in names if name not in self.rates]:
            raise UserError(
                f"{where}: the task {missing[0]!r} has no rate: add `rates.{missing[0]}` (0 "
                "leaves it out)."
            )
        if not sum(self.rates.values()) > 0:
            raise UserError(
                f"{where}: all rates are zero ({', '.join(f'rates.{n}' for n in names)}): give "
                "at least one task a positive rate."
            )


_TASKS: dict[str, Task] = {}
_MIXTURES: dict[str, Mixture] = {}


def register_task(task: Task) -> Task:
    """Add a task. Raises UserError where another task has its name."""
    if _TASKS.setdefault(task.name, task) != task:
        raise UserError(f"another task is already registered as {task.name!r}: rename one.")
    return task


def get_task(name: str) -> Task:
    """The registered task. Raises UserError naming the nearest where there is none."""
    if name not in _TASKS:
        raise UserError(f"no task is registered as {name!r}. {nearest(name, _TASKS)}")
    return _TASKS[name]


def register_mixture(
    name: str,
    rates: Mapping[str, float],
    by: Literal["tokens", "examples"] = "tokens",
) -> Mixture:
    """Add a mixture of registered tasks. Raises UserError for a task or rate that cannot be."""
    mixture = Mixture(name, tuple(get_task(task) for task in rates), dict(rates), by)
    if _MIXTURES.setdefault(name, mixture) != mixture:
        raise UserError(f"another mixture is already registered as {name!r}: rename one.")
    return mixture


def get_mixture(name: str) -> Mixture:
    """The registered mixture. Raises UserError naming the nearest where there is none."""
    if name not in _MIXTURES:
        raise UserError(f"no mixture is registered as {name!r}. {nearest(name, _MIXTURES)}")
    return _MIXTURES[name]


def unregister(name: str) -> None:
    """Forget the task and the mixture of that name, if any."""
    _TASKS.pop(name, None)
    _MIXTURES.pop(name, None)
