"""The safetensors files of a Hugging Face folder: which are the model, and who may read them."""

from __future__ import annotations

import json
from pathlib import Path

from ipt_jax.errors import UserError

INDEX_NAME = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The files that model.safetensors.index.json names, else model.safetensors; no others.

    Raises:
      UserError: neither is there, or the index cannot be read or names a file that is not there.
    """
    index, single = folder / INDEX_NAME, folder / "model.safetensors"
    if not index.is_file():
        if single.is_file():
            return [single]
        raise UserError(
            f"{folder}: has no {single.name} and no {INDEX_NAME}; weights are read from "
            "safetensors only (pickled .bin files can run code), so convert or copy it first."
        )
    try:
        named = {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index}: cannot be read ({type(error).__name__}: {error}); copy the folder again."
        ) from error
    files = [folder / name for name in sorted(named)]
    for path in files:
        if path.parent != folder or not path.is_file():
            raise UserError(f"{index} names {path.name}, which is not beside it: copy it again.")
    return files


def follow_umask(folder: Path) -> None:
    """Give the safetensors files in `folder` the mode of any new file: the library writes 0600."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)
