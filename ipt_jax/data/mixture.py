"""What a run says of its data, mixtures read from YAML, and a mixture made ready for training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml

from ipt_jax.core.bounds import Amount, AtLeast, Config, NotEmpty, NotNegative, config_of
from ipt_jax.core.errors import DamagedRecord, UserError, require
from ipt_jax.core.run_folder import prints_of
from ipt_jax.core.tokenizers import Tokenizer, load_tokenizer
from ipt_jax.data.encode import Lengths, extra_tokens, index_lengths
from ipt_jax.data.sources import DamageLog, Source, open_source, read_records
from ipt_jax.data.tasks import HUB, NATURAL, Mixture, MixtureStage, Task

Packing = Literal["concatenate", "best_fit"]
PACKINGS: tuple[Packing, ...] = get_args(Packing)


@dataclass(frozen=True)
class DataConfig(Config):
    """The data of one run. Raises UserError for a value that cannot be."""

    mixture: str | dict[str, Any] = "configs/mixtures/quickstart_raw.yaml"
    """Path of a mixture's YAML file, or the same keys inline (`tasks`, `rates`, `stages`, `by`,
    `root`)."""
    root: str | None = None
    """Folder that relative sources start from; overrides the mixture's own `root`."""
    rates: dict[str, float] | None = None
    """Overrides the rates of a mixture without stages."""
    tokenizer: str = "mistral-7b-v0.1"
    """A name or folder that `load_tokenizer` takes; its vocabulary must be the model's."""
    row_tokens: Annotated[int, AtLeast(2)] = 2048
    """T: tokens in a row."""
    packing: Packing = "concatenate"
    """How examples fill rows: one after another, cut at the end of each row; or best_fit, where
    only an example longer than a row is cut."""
    seed: NotNegative = 0
    """Of the order of examples, apart from all other seeds."""
    worker_count: NotNegative = 0
    """Processes that read and tokenise; 0 for threads of the training process."""
    verify_checksums: bool = True
    """Compare every shard's sha256 with the manifest before the first step."""
    index_folder: str | None = None
    """Where the indexes of files that are no shards of ours are kept; beside them if not given."""
    skip_damaged: bool = False
    """Go on without records that cannot be read, counted and logged; without it they stop the
    run."""


@dataclass(frozen=True)
class _MixtureFile(Config):
    """The keys of a mixture's file, as Task, MixtureStage and Mixture take them."""

    tasks: Annotated[dict[str, dict[str, Any]], NotEmpty("each task's name with its `source`")]
    name: Any = "mixture"
    root: Any = None
    by: Literal["tokens", "examples"] = "tokens"
    rates: Mapping[str, Amount] | Literal["natural"] = NATURAL
    stages: list[Any] | None = None


def load_mixture(config: DataConfig) -> Mixture:
    """The mixture that a run's data config names, with its overrides."""
    if isinstance(config.mixture, str):
        content, where = _read(Path(config.mixture)), config.mixture
    else:
        content, where = dict(config.mixture), "the key `mixture`"
    if config.rates is not None:
        if content.get("stages"):
            raise UserError(
                "`rates` are given beside it, but its `stages` change them",
                key="rates",
                path=where,
                advice="leave the given ones out, or write them into the mixture",
            )
        content = {**content, "rates": dict(config.rates)}
    return parse_mixture(content, where=where, root=config.root, tokenizer=config.tokenizer)


def load_mixture_config(
    path: str | Path, *, root: str | None = None, tokenizer: str | None = None
) -> Mixture:
    """The mixture in a YAML file of ``configs/mixtures``.

    ``root`` overrides the file's own; ``tokenizer`` is taken by tasks that name none. Raises
    UserError naming the file and key that is missing, unknown or wrong.
    """
    return parse_mixture(_read(Path(path)), where=str(path), root=root, tokenizer=tokenizer)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(
            f"the mixture file {path} cannot be read ({error.strerror})",
            path=path,
            advice="name a YAML file such as those in configs/mixtures",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the mixture file {path} is not YAML ({error}).", path=path) from error
    if not isinstance(content, dict):
        raise UserError(
            f"the mixture file {path} holds no keys", path=path, advice="it needs at least `tasks`"
        )
    return {"name": path.stem, **content}


def parse_mixture(
    content: Mapping[str, Any],
    *,
    where: str,
    root: str | None = None,
    tokenizer: str | None = None,
) -> Mixture:
    """The mixture in a mapping with the keys of a mixture file; ``where`` names it in errors."""
    try:
        return _mixture_of(config_of(_MixtureFile, content), root, tokenizer)
    except UserError as error:
        raise UserError(f"{where}: {error}", key=error.key, path=where) from error


def _mixture_of(file: _MixtureFile, root: str | None, tokenizer: str | None) -> Mixture:
    folder, tasks = Path(root if root is not None else file.root or "."), []
    for name, values in file.tasks.items():
        key, values = f"tasks.{name}", dict(values)
        source: Any = values.get("source")
        require(f"{key}.source", source, isinstance(source, str), "a folder of shards or a file")
        own = values.get("tokenizer")
        if own is not None and tokenizer is not None and own != tokenizer:
            raise UserError(
                f"{key}.tokenizer is {own!r} but the run's is {tokenizer!r}",
                key=f"{key}.tokenizer",
                advice="leave the task's out or make them the same",
            )
        if tokenizer is not None:
            values["tokenizer"] = tokenizer
        values["source"] = _under(folder, source)
        tasks.append(config_of(Task, values, f"{key}.", name=name))
    stages = enumerate(file.stages or ())
    return Mixture(
        str(file.name),
        tuple(tasks),
        file.rates,
        file.by,
        tuple(config_of(MixtureStage, values, f"stages.{number}.") for number, values in stages),
    )


def _under(folder: Path, source: str) -> str:
    return source if source.startswith(HUB) else str(folder / source)


@dataclass(frozen=True)
class OpenMixture:
    """A mixture whose shards are checked and whose lengths are known."""

    mixture: Mixture
    config: DataConfig
    """Where row_tokens, seed and worker_count come from unless ``batches`` is told."""
    tokenizer: Tokenizer
    sources: tuple[Source | None, ...]
    """In the order of the tasks; None where the rate is 0."""
    lengths: tuple[Lengths | None, ...]
    epoch_tokens: tuple[int, ...]
    """Tokens of one epoch of each task, BOS and EOS included."""
    asked_rates: dict[str, float] = field(default_factory=dict)
    """Share of each task at the first step, adding up to 1, by ``mixture.by``."""
    damaged: DamageLog = field(default_factory=DamageLog)
    """The records this process found damaged and left out (``skip_damaged``)."""

    @property
    def task_names(self) -> tuple[str, ...]:
        """What ``source_ids`` index."""
        return tuple(task.name for task in self.mixture.tasks)

    @property
    def stages(self) -> tuple[tuple[int, dict[str, float]], ...]:
        """The step each stage begins at, from 0, and its shares, which add up to 1."""
        later = [(stage.from_step, _shares(stage.rates)) for stage in self.mixture.stages]
        return ((0, self.asked_rates), *later)

    def asked_over(self, steps: int) -> dict[str, float]:
        """Share of each task in a run of so many steps, over all its stages."""
        if not self.mixture.stages:
            return dict(self.asked_rates)
        begins = [min(step, steps) for step, _ in self.stages] + [steps]
        asked = dict.fromkeys(self.task_names, 0.0)
        for (_, rates), first, last in zip(self.stages, begins, begins[1:], strict=False):
            for name in asked:
                asked[name] += rates[name] * (last - first) / steps
        return asked

    def token_shares(self, rates: Mapping[str, float]) -> dict[str, float]:
        """Of ``rates``, shares of the mixture's unit: the share of each task in all tokens."""
        if self.mixture.by == "tokens":
            return dict(rates)
        tokens = dict.fromkeys(self.task_names, 0.0)
        for name, index, size in zip(self.task_names, self.lengths, self.epoch_tokens, strict=True):
            if index is not None and rates[name]:
                # A record without tokens, and a damaged one, is drawn like the others.
                tokens[name] = rates[name] * size / index.records
        return _shares(tokens)

    def prints(self) -> dict[str, str]:
        """What rows are made of, by name, for a run's fingerprint: all of it by content.

        Sources, files and tokenizers may move or be renamed; limits (`max_epochs`) may be raised.
        """
        mixture, rates = self.mixture, self.mixture.rates  # of which 9 and 9.0 are the same
        settings: dict[str, Any] = {
            "mixture.by": mixture.by,
            "mixture.rates": rates if isinstance(rates, str) else _floats(rates),
            "mixture.stages": [(s.from_step, _floats(s.rates)) for s in mixture.stages],
            "tasks": list(self.task_names),
            "tokenizer": self.tokenizer.prints(),
        }
        for task, source in zip(mixture.tasks, self.sources, strict=True):
            values = asdict(task)
            for key in ("name", "source", "tokenizer", "max_epochs"):
                del values[key]
            settings[f"tasks.{task.name}"] = values
            settings[f"sources/{task.name}"] = source and source.fingerprint
        return prints_of(settings)

    def leave_out(self, task: int, index: int) -> None:
        """Count and log a record that could not be read."""
        name, source, lengths = self.task_names[task], self.sources[task], self.lengths[task]
        assert source is not None and lengths is not None  # only tasks of rate 0 have none
        if (name, index) in self.damaged.records:
            return
        found = read_records(source.read, source, [index], skip=True)[0]
        if isinstance(found, DamagedRecord):
            what = str(found)
        else:
            what = f"{source.where(index)} could not be read before, but can be now"
            if lengths.array[index] < 0:
                what += f"; for a new run that has it, delete {lengths.path}"
        self.damaged.add(name, index, what)


def _floats(rates: Mapping[str, float]) -> dict[str, float]:
    return {name: float(rate) for name, rate in rates.items()}


def _shares(rates: Mapping[str, float]) -> dict[str, float]:
    total = sum(rates.values())
    return {name: rate / total for name, rate in rates.items()}


def open_mixture(
    data: DataConfig | Mixture,
    *,
    verify: bool | None = None,
    progress: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> OpenMixture:
    """Check the shards of a mixture, load its tokenizer, count tokens where not yet counted.

    ``verify`` overrides the config's ``verify_checksums``; ``progress`` gets a task's name,
    records counted and in all. Raises UserError for what is missing, damaged or empty.
    """
    if isinstance(data, Mixture):
        config, mixture = DataConfig(tokenizer=data.tasks[0].tokenizer), data
    else:
        config, mixture = data, load_mixture(data)
    check = config.verify_checksums if verify is None else verify
    tokenizer = load_tokenizer(mixture.tasks[0].tokenizer)
    asked = {task.name: 1.0 for task in mixture.tasks}
    if not isinstance(mixture.rates, str):
        asked = {task.name: float(mixture.rates[task.name]) for task in mixture.tasks}
    sources: list[Source | None] = []
    lengths: list[Lengths | None] = []
    sizes: list[int] = []
    for task in mixture.tasks:
        if not any([asked[task.name], *(stage.rates[task.name] for stage in mixture.stages)]):
            sources.append(None)
            lengths.append(None)
            sizes.append(0)
            continue
        source = open_source(
            task,
            verify=check,
            index_folder=config.index_folder,
            skip_damaged=config.skip_damaged,
        )
        index = index_lengths(
            source,
            tokenizer,
            lambda done, total, name=task.name: progress(name, done, total),
            skip_damaged=config.skip_damaged,
            encode=task.encode,
        )
        tokens = index.tokens(extra_tokens(task))
        if mixture.rates == NATURAL:
            size = tokens if mixture.by == "tokens" else len(source)
            asked[task.name] = float(size) if tokens else 0.0
        elif tokens == 0:
            raise UserError(
                f"mixture {mixture.name!r} asks for `rates.{task.name}` = {asked[task.name]:g} but "
                f"{task.source} holds no tokens",
                key=f"rates.{task.name}",
                advice="set that rate to 0 or fill the source",
            )
        sources.append(source)
        lengths.append(index)
        sizes.append(tokens)
    if not sum(asked.values()) > 0:
        raise UserError(
            f"all sources of mixture {mixture.name!r} are empty "
            f"({', '.join(task.source for task in mixture.tasks)})",
            advice="fill at least one",
        )
    opened = OpenMixture(
        mixture=mixture,
        config=config,
        tokenizer=tokenizer,
        sources=tuple(sources),
        lengths=tuple(lengths),
        epoch_tokens=tuple(sizes),
        asked_rates=_shares(asked),
    )
    for task, index in enumerate(lengths):
        for record in index.damaged.tolist() if index is not None else ():
            opened.leave_out(task, record)
    return opened
