"""The safetensors files of a Hugging Face folder: which are the model, and who may read them."""

from __future__ import annotations

from pathlib import Path

from ipt_jax.core.errors import UserError
from ipt_jax.core.json_lines import load_json

INDEX_NAME = "model.safetensors.index.json"


def weight_files(folder: Path, alone: bool = False) -> list[Path]:
    """The files that model.safetensors.index.json names, else model.safetensors; no others.

    Raises:
      UserError: neither is there, or the index cannot be read or names a file that is not there;
        with `alone` also where a model.safetensors lies beside the index and is not named by it,
        which transformers reads and vLLM does not.
    """
    index, single = folder / INDEX_NAME, folder / "model.safetensors"
    if not index.is_file():
        if single.is_file():
            return [single]
        raise UserError(
            f"has no {single.name} and no {INDEX_NAME}; weights are read from safetensors only "
            "(pickled .bin files can run code)",
            path=folder,
            advice="convert the folder, or export it again",
        )
    try:
        named = {str(name) for name in load_json(index)["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"cannot be read ({type(error).__name__}: {error})",
            path=index,
            advice="copy the folder again",
        ) from error
    files = [folder / name for name in sorted(named)]
    for path in files:
        if path.parent != folder or not path.is_file():
            raise UserError(
                f"{index} names {path.name}, which is not beside it",
                path=index,
                advice="copy it again",
            )
    if alone and single not in files and single.is_file():
        raise UserError(
            "the index beside it names other files, and of the two forms transformers reads the "
            "one and vLLM the other",
            path=single,
            advice="take away the one that is out of date",
        )
    return files


def follow_umask(folder: Path) -> None:
    """Give the safetensors files in `folder` the mode of any new file: the library writes 0600."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)
