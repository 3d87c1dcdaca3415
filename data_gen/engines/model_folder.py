"""A local Hugging Face model folder: is it whole, which weights are these, made once. No torch."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from data_gen.errors.shared import model_error
from ipt_jax.core.errors import UserError
from ipt_jax.core.fingerprint import folder_digest
from ipt_jax.core.weight_files import weight_files


def check_model_folder(folder: Path) -> None:
    """Raise UserError unless `folder` holds a config, safetensors weights and a tokenizer."""
    if not folder.is_dir():
        raise model_error(
            f"there is no model folder {folder}: give a local Hugging Face folder in "
            "`engine.model` (config.json, *.safetensors, tokenizer).",
            path=folder,
        )
    if not (folder / "config.json").is_file():
        raise model_error(
            f"{folder} has no config.json: it is not a Hugging Face model folder. Name the folder "
            "that holds config.json, *.safetensors and the tokenizer.",
            path=folder,
        )
    weight_files(folder, alone=True)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise model_error(
            f"{folder} has no tokenizer (tokenizer.json or tokenizer.model): copy it from the "
            "model's source into the folder.",
            path=folder,
        )


def folder_revision(folder: Path) -> str:
    """Twelve hexadecimal digits of all that is read as the model: weights, config, tokenizer, chat
    template. Both ends of a file would not do: a merged adapter changes only its middle."""
    return folder_digest(folder, ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"))[:12]


def make_folder(target: Path, write: Callable[[Path], None]) -> Path:
    """`target`, written by `write` into a folder beside it where it is not there yet.

    It appears whole or not at all, also where two processes make it at once. Raises UserError
    where the folder cannot be made, or one that is there is not whole.
    """
    if target.is_dir():
        check_model_folder(target)
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{target.name}.tmp-", dir=target.parent))
    except OSError as error:
        raise UserError(
            f"the model cache {target.parent} cannot be written ({error.strerror}): give a folder "
            "that you may write in `engine.cache_folder`.",
            key="engine.cache_folder",
            path=target.parent,
        ) from error
    try:
        write(temporary)
        temporary.chmod(0o755)
        try:
            os.rename(temporary, target)
        except OSError:
            if not target.is_dir():  # else another process was quicker; its folder is as good
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
