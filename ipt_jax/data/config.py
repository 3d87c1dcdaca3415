"""What a run says about its data, and mixtures read from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml

from ipt_jax.core.bounds import Amount, AtLeast, Config, NotEmpty, NotNegative, config_of
from ipt_jax.core.errors import UserError, require
from ipt_jax.data.tasks import HUB, NATURAL, Mixture, Stage, Task

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
    """The keys of a mixture's file, as Task, Stage and Mixture take them."""

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
                f"{where}: `rates` are given beside it, but its `stages` change them: leave the "
                "given ones out, or write them into the mixture."
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
            f"the mixture file {path} cannot be read ({error.strerror}): name a YAML file such as "
            "those in configs/mixtures."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the mixture file {path} is not YAML ({error}).") from error
    if not isinstance(content, dict):
        raise UserError(f"the mixture file {path} holds no keys: it needs at least `tasks`.")
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
                f"{key}.tokenizer is {own!r} but the run's is {tokenizer!r}: leave the task's out "
                "or make them the same.",
                key=f"{key}.tokenizer",
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
        tuple(config_of(Stage, values, f"stages.{number}.") for number, values in stages),
    )


def _under(folder: Path, source: str) -> str:
    return source if source.startswith(HUB) else str(folder / source)
