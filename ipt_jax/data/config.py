"""What a run says about its data, and mixtures read from YAML."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from ipt_jax.core.bounds import AtLeast, Config, NotNegative
from ipt_jax.core.errors import UserError, did_you_mean
from ipt_jax.data.tasks import HUB, NATURAL, Mixture, Stage, Task

PACKINGS = ("concatenate", "best_fit")
_MIXTURE_KEYS = ("name", "root", "by", "rates", "stages", "tasks")
_STAGE_KEYS = tuple(field.name for field in fields(Stage))
_TASK_KEYS = tuple(field.name for field in fields(Task) if field.name != "name")


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
    packing: Literal["concatenate", "best_fit"] = "concatenate"
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
    _check_keys(content, _MIXTURE_KEYS, where, "")
    folder = Path(root if root is not None else str(content.get("root") or "."))
    tasks = content.get("tasks")
    if not isinstance(tasks, dict) or not tasks:
        raise UserError(f"{where}: `tasks` must map each task's name to its `source`.")
    made = []
    for name, values in tasks.items():
        key = f"tasks.{name}"
        if not isinstance(values, dict) or not isinstance(values.get("source"), str):
            raise UserError(f"{where}: `{key}` needs a `source`: a folder of shards or a file.")
        _check_keys(values, _TASK_KEYS, where, f"{key}.")
        own = values.get("tokenizer")
        if own is not None and tokenizer is not None and own != tokenizer:
            raise UserError(
                f"{where}: `{key}.tokenizer` is {own!r} but the run's is {tokenizer!r}: leave "
                "the task's out or make them the same."
            )
        chosen = {"tokenizer": tokenizer} if tokenizer is not None else {}
        source = _under(folder, values["source"])
        try:
            made.append(Task(**{**values, **chosen, "name": name, "source": source}))
        except (UserError, TypeError) as error:
            key = error.key if isinstance(error, UserError) else None
            raise UserError(f"{where}: {error}", key=key, path=where) from error
    if not isinstance(content.get("rates", NATURAL), dict | str):
        raise UserError(f"{where}: `rates` must map tasks to numbers or be 'natural'.")
    rates: Any = content.get("rates", NATURAL)  # Mixture checks the rest
    try:
        name, by = str(content.get("name", "mixture")), content.get("by", "tokens")
        return Mixture(name, tuple(made), rates, by, _parse_stages(content.get("stages"), where))
    except UserError as error:
        raise UserError(f"{where}: {error}", key=error.key, path=where) from error


def _parse_stages(stages: object, where: str) -> tuple[Stage, ...]:
    if stages is None:
        return ()
    form = "a list of mappings with `from_step` and `rates`"
    if not isinstance(stages, list):
        raise UserError(f"{where}: `stages` must be {form}.")
    made = []
    for number, values in enumerate(stages):
        if not isinstance(values, dict):
            raise UserError(f"{where}: `stages.{number}` is {values!r}: `stages` must be {form}.")
        _check_keys(values, _STAGE_KEYS, where, f"stages.{number}.")
        if missing := [key for key in _STAGE_KEYS if key not in values]:
            raise UserError(f"{where}: `stages.{number}` needs `{missing[0]}`.")
        made.append(Stage(**values))
    return tuple(made)


def _under(folder: Path, source: str) -> str:
    return source if source.startswith(HUB) else str(folder / source)


def _check_keys(content: Mapping[str, Any], valid: tuple[str, ...], where: str, at: str) -> None:
    for key in content:
        if key not in valid:
            raise UserError(f"{where}: unknown key `{at}{key}`. {did_you_mean(key, valid)}")
