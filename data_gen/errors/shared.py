"""Refusals that several rooms share, and what libraries say of an error in one line."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ipt_jax.core.errors import UserError

input_error = partial(UserError, key="input")
model_error = partial(UserError, key="engine.model")


def one_line(error: BaseException, most: int = 300) -> str:
    """An error's kind and the beginning of its words, for a message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:most]}"


def optional(module: str, refusal: UserError) -> Any:
    """A module whose package may be missing; then `refusal` is raised."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise refusal from error


def load_yaml(
    path: Path, what: str, key: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader
) -> Any:
    """The content of a user's YAML file. Raises UserError naming `what` it is, and its `key`."""
    try:
        return yaml.load(path.read_bytes(), loader)
    except FileNotFoundError as error:
        said = f"there is no {what} {path}: correct `{key}`."
        raise UserError(said, key=key, path=path) from error
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        said = f"the {what} {path} cannot be read ({error}): mend it."
        raise UserError(said, key=key, path=path) from error
