"""Task and Mixture, with seqio's words and meaning, their preprocessors and their registries.

A preprocessor takes the fields of one record as a dict and returns the fields of one record. It
finds the record's text under ``text`` and its id under ``id``, whatever their keys in the file,
and everything else under its own key. It may add ``parts`` and ``loss``. One record stays one
record: a source is read at random access, so nothing can be dropped or split here.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ipt_jax.core.bounds import Above, Amount, Config, NotEmpty, OneOf, Positive
from ipt_jax.core.errors import UserError, did_you_mean, require
from ipt_jax.core.tokenizers import load_tokenizer

Fields = dict[str, Any]
Preprocessor = Callable[..., Fields]


def _text(fields: Fields, key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        found = f"is a {type(value).__name__}" if key in fields else "is missing"
        raise UserError(f"`{key}` {found}, not text; the record has {sorted(fields)}", key=key)
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
    return _register(_REGISTRY, "preprocessor", name, preprocessor)


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
        function = _registered(_REGISTRY, "preprocessor", name)
        settings = dict(settings or {})
        try:
            inspect.signature(function).bind({}, **settings)
        except TypeError as error:
            raise UserError(f"the preprocessor {name!r} has wrong settings: {error}.") from error
        made.append((name, functools.partial(function, **settings) if settings else function))
    return tuple(made)


NATURAL = "natural"
HUB = "hf://"  # how the source of a data set on the hub begins
FORMATS = ("records", "tokens", "arrayrecord", "parquet", "jsonl", "huggingface")


@dataclass(frozen=True)
class Task(Config):
    """One source of examples and how its texts become tokens. Raises UserError if impossible."""

    name: Annotated[str, NotEmpty("the task's name")]
    """Key in mixtures, metrics and reports."""
    source: str
    """Folder of record or token shards with a manifest; or a file, folder or pattern of JSON lines,
    parquet or ArrayRecord; or a Hugging Face data set: a saved folder, or ``hf://NAME`` or
    ``hf://NAME@REVISION`` from the hub."""
    tokenizer: str = "mistral-7b-v0.1"
    """What ``load_tokenizer`` takes."""
    bos: bool | None = None
    """Put BOS before each example; None: where its tokenizer puts one before a text (``adds_bos``).
    True is refused where it does not: whoever reads the exported model would leave it out."""
    eos: bool = True
    """Put EOS after each example."""
    loss: Literal["all", "responses"] = "all"
    """``all``: every token (pre-training); ``responses``: the weights of the record's parts."""
    encode: Literal["text", "parts"] = "text"
    """``text``: the whole text at once; ``parts``: prompts and completions as a model meets them,
    with BOS, EOS and other control tokens that are parts (``Tokenizer.encode_parts``)."""
    max_epochs: Annotated[float, Above(0)] | None = None
    """How often each example may be seen; None for no limit."""
    format: Annotated[str, OneOf(FORMATS)] | None = None
    """One of ``FORMATS``; None to tell it from the manifest or the file names."""
    text_key: str = "text"
    """Key, column or feature of a foreign record that holds its text."""
    id_key: str | None = None
    """That of its id; None for ``id`` where a record has one, else its file and line."""
    split: str = "train"
    """Which split of a data set, or of a folder whose files are named by split."""
    subset: str | None = None
    """Which subset (configuration) of a data set, where it has several."""
    preprocessors: tuple[str | Mapping[str, Mapping[str, Any]], ...] = ()
    """Names of preprocessors, in order, each alone or with its settings: ``{pair: {…}}``."""

    def check_together(self) -> None:
        object.__setattr__(self, "preprocessors", tuple(self.preprocessors))  # a list may be given
        try:
            preprocessors(self.preprocessors)
        except UserError as error:
            raise UserError(f"preprocessors: {error}", key="preprocessors") from error

    def refused(self, key: str, why: str, advice: str, path: Path | None = None) -> UserError:
        """What is to be raised where the value of `key` does not go with what is in the source."""
        at = f"tasks.{self.name}.{key}"
        said = f"`{at}` is {getattr(self, key)!r}, but {why}"
        return UserError(said, key=at, path=path, advice=advice)

    @property
    def adds_bos(self) -> bool:
        """Whether BOS is put before each example: the one place where `bos` is decided.

        Raises UserError where `bos` asks for one that the tokenizer's own folder does not add.
        """
        adds = load_tokenizer(self.tokenizer).adds_bos
        if self.bos and not adds:
            raise self.refused(
                "bos",
                f"the tokenizer {self.tokenizer!r} puts no BOS before a text, and what reads the "
                "exported model would put none",
                "leave `bos` out, or let the `post_processor` of its tokenizer.json add it",
            )
        return adds if self.bos is None else self.bos


def _check_rates(rates: Mapping[str, float], names: list[str], at: str) -> None:
    """Raises UserError naming the key under ``at`` that is no task or missing."""
    for name in rates:
        if name not in names:
            said = f"{at}.{name} is no task. {did_you_mean(name, names)}"
            raise UserError(said, key=f"{at}.{name}")
    if missing := [f"{at}.{name}" for name in names if name not in rates]:
        said = f"{missing[0]} is missing: give the task a rate (0 leaves it out)."
        raise UserError(said, key=missing[0])
    if not sum(rates.values()) > 0:
        said = f"{at}={dict(rates)}: all are zero; give at least one task a positive rate."
        raise UserError(said, key=at)


@dataclass(frozen=True)
class MixtureStage(Config):
    """Rates from one step on; in a mixture's YAML ``stages: [{from_step: 1000, rates: {...}}]``.

    ``Mixture`` checks them.
    """

    from_step: Positive
    """Global batches of the run before the first at these rates."""
    rates: Mapping[str, Amount]
    """Share of each task, in any unit; 0 for a task that pauses."""


@dataclass(frozen=True)
class Mixture(Config):
    """Tasks and the rates they are mixed at. Raises UserError for rates that cannot be.

    ``rates`` hold from the first step. Each of ``stages`` changes them from a step on, that is
    from a global batch on, until the next or the end of the run. Tasks go on through their order
    where they were: nothing begins again at a change.
    """

    name: str
    """Key in the registry and in reports."""
    tasks: Annotated[tuple[Task, ...], NotEmpty("at least one")]
    """The sources; ``source_ids`` of a batch count in this order."""
    rates: Mapping[str, Amount] | Literal["natural"] = NATURAL
    """Share of each task, in any unit; ``natural`` for the sources' own sizes."""
    by: Literal["tokens", "examples"] = "tokens"
    """What the shares are shares of."""
    stages: tuple[MixtureStage, ...] = ()
    """Later rates, in the order of their steps; none where ``rates`` hold to the end."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except UserError as error:
            raise UserError(f"mixture {self.name!r}: {error}", key=error.key) from error.__cause__

    def check_together(self) -> None:
        names = [task.name for task in self.tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            said = f"tasks has {twice[0]!r} twice: give each its own name."
            raise UserError(said, key=f"tasks.{twice[0]}")
        if len(tokenizers := {task.tokenizer for task in self.tasks}) > 1:
            raise UserError(
                f"tasks mixes the tokenizers {sorted(tokenizers)}",
                key="tasks",
                advice="one model reads one tokenizer's ids, so give all tasks the same",
            )
        if not isinstance(self.rates, str):
            _check_rates(self.rates, names, "rates")
        elif self.stages:
            raise UserError(
                "rates='natural', and `stages` change them",
                key="rates",
                advice="give numbers in `rates`, the rates of the first step",
            )
        before = 0
        for number, stage in enumerate(self.stages):
            at, step = f"stages.{number}", stage.from_step
            later = f"above {before}, where the stage before it begins"
            require(f"{at}.from_step", step, step > before, later)
            before = step
            _check_rates(stage.rates, names, f"{at}.rates")


_TASKS: dict[str, Task] = {}
_MIXTURES: dict[str, Mixture] = {}


def _register[T](registry: dict[str, T], kind: str, name: str, value: T) -> T:
    if registry.setdefault(name, value) != value:
        raise UserError(f"another {kind} is already registered as {name!r}", advice="rename one")
    return value


def _registered[T](registry: dict[str, T], kind: str, name: str) -> T:
    if name not in registry:
        raise UserError(f"there is no {kind} {name!r}. {did_you_mean(name, registry)}")
    return registry[name]


def register_task(task: Task) -> Task:
    """Add a task. Raises UserError where another task has its name."""
    return _register(_TASKS, "task", task.name, task)


def get_task(name: str) -> Task:
    """The registered task. Raises UserError naming the nearest where there is none."""
    return _registered(_TASKS, "task", name)


def register_mixture(
    name: str,
    rates: Mapping[str, float],
    by: Literal["tokens", "examples"] = "tokens",
    stages: Sequence[MixtureStage] = (),
) -> Mixture:
    """Add a mixture of registered tasks. Raises UserError for a task or rate that cannot be."""
    tasks = tuple(get_task(task) for task in rates)
    mixture = Mixture(name, tasks, dict(rates), by, tuple(stages))
    return _register(_MIXTURES, "mixture", name, mixture)


def get_mixture(name: str) -> Mixture:
    """The registered mixture. Raises UserError naming the nearest where there is none."""
    return _registered(_MIXTURES, "mixture", name)


def registered_tasks() -> tuple[Task, ...]:
    """All registered tasks, in the order they were added."""
    return tuple(_TASKS.values())


def registered_mixtures() -> tuple[Mixture, ...]:
    """All registered mixtures, in the order they were added."""
    return tuple(_MIXTURES.values())


def unregister(name: str) -> None:
    """Forget the task and the mixture of that name, if any."""
    _TASKS.pop(name, None)
    _MIXTURES.pop(name, None)
