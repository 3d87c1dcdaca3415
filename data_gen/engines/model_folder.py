"""A local Hugging Face model folder: is it whole, and which weights are these. No torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ipt_jax.errors import UserError

_EDGE_BYTES = 1 << 20


def check_model_folder(folder: Path) -> None:
    """Raise UserError unless `folder` holds a config, safetensors weights and a tokenizer."""
    if not folder.is_dir():
        raise UserError(
            f"there is no model folder {folder}: give a local Hugging Face folder in "
            "`engine.model` (config.json, *.safetensors, tokenizer)."
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} has no config.json: it is not a Hugging Face model folder. Name the folder "
            "that holds config.json, *.safetensors and the tokenizer."
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} has no *.safetensors weights; other forms (pickles) are never loaded. "
            "Convert them on a machine that trusts them: load the model, call save_pretrained."
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise UserError(
            f"{folder} has no tokenizer (tokenizer.json or tokenizer.model): copy it from the "
            "model's source into the folder."
        )


def folder_revision(folder: Path) -> str:
    """Twelve hexadecimal digits of config, tokenizer, and size and both ends of each weight file.

    Weights are not read whole: that would take a minute for 7B parameters at every start.
    """
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size_bytes = path.stat().st_size
        digest.update(json.dumps([path.name, size_bytes]).encode())
        with open(path, "rb") as file:
            digest.update(file.read(_EDGE_BYTES))
            file.seek(max(0, size_bytes - _EDGE_BYTES))
            digest.update(file.read())
    return digest.hexdigest()[:12]
