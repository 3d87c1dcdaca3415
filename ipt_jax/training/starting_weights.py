"""The weights that a training starts from: a Hugging Face folder's, or another run's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

from ipt_jax.core.errors import UserError
from ipt_jax.core.fingerprint import digest_of, file_digest, folder_digest
from ipt_jax.hf.adapters import merge_lora
from ipt_jax.hf.load import open_hugging_face, read_config, stream_hugging_face
from ipt_jax.hf.weights import DTYPES, from_hugging_face, to_hugging_face
from ipt_jax.models.config import DecoderConfig, ModelConfig, Params
from ipt_jax.models.lora import TARGETS, LoraConfig
from ipt_jax.training.checkpoints import load_params, newest_list

# What two decoders must share for the weights of one to compute the same in the other.
SHARED = (
    *("vocabulary_size", "width", "mlp_width", "layers", "heads", "kv_heads", "head_width"),
    *("tied_embeddings", "rope_theta", "rope_scaling", "window", "norm_epsilon"),
)


def load_initial_params(folder: Path, decoder: DecoderConfig, dtype: str = "float32") -> Params:
    """The weights that training starts from: a Hugging Face folder's or another run's.

    Arrays of `dtype` (float32 or bfloat16) that are read as far as they are asked for, where the
    folder holds them as they are. Of a run that trained adapters: its base with the adapters
    merged, in memory.

    Raises:
      UserError: neither, or weights of another shape or for another mathematics.
    """
    if (folder / "config.json").exists():
        _check_fit(folder, read_config(folder), decoder)
        return open_hugging_face(folder, decoder, dtype)
    run = read_run(folder)
    if run.lora is not None:
        tensors = read_tensors(folder, decoder)

        def take(name: str) -> np.ndarray:
            found, tensor = next(tensors)
            assert found == name, f"the table yields {found} where {name} is due"
            return tensor

        return from_hugging_face(decoder, take, dtype)
    _check_fit(folder, run.decoder, decoder)
    params, _ = load_params(folder / "checkpoints")
    if dtype == "float32":
        return params
    return jax.tree.map(lambda p: np.asarray(p).astype(DTYPES[dtype]), params)


def weights_digest(folder: Path) -> str:
    """Sha256 of what `load_initial_params` reads: a folder's weights, or a run's newest save.

    Raises:
      UserError: neither, or a file that cannot be read.
    """
    if (folder / "config.json").exists():
        return folder_digest(folder, ("config.json", "*.safetensors", "*.safetensors.index.json"))
    run = read_run(folder)
    base = None if run.lora is None else weights_digest(base_of(run))
    listed = newest_list(folder / "checkpoints")
    return digest_of([run.decoder, run.lora, base, listed and file_digest(listed)])


def read_tensors(folder: Path, decoder: DecoderConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Hugging Face's tensors of such a folder or run, in file order, one at a time."""
    if (folder / "config.json").exists():
        _check_fit(folder, read_config(folder), decoder)
        return stream_hugging_face(folder, decoder)
    run = read_run(folder)
    _check_fit(folder, run.decoder, decoder)
    params, _ = load_params(folder / "checkpoints")
    if run.lora is None:
        return to_hugging_face(decoder, params)
    return merge_lora(decoder, run.lora, params, read_tensors(base_of(run), decoder))


@dataclass(frozen=True)
class TrainedRun:
    """What a run folder's config.yaml says."""

    folder: Path
    decoder: DecoderConfig
    tokenizer: str
    lora: LoraConfig | None
    settings: dict[str, Any]


def read_run(folder: Path) -> TrainedRun:
    path = folder / "config.yaml"
    if not path.exists():
        raise UserError(
            "no training run (no config.yaml there)", path=folder, advice="name a run folder"
        )
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    lora = settings.get("adapter")
    if lora is not None:
        lora = LoraConfig(**{**lora, "targets": tuple(lora.get("targets", TARGETS))})
    decoder = ModelConfig(**settings["model"]).decoder()
    return TrainedRun(folder, decoder, settings["data"]["tokenizer"], lora, settings)


def base_of(run: TrainedRun, given: Path | None = None) -> Path:
    """The folder or run whose weights the run's adapters were trained on."""
    named = given or run.settings.get("init_from")
    if named is None:
        raise UserError(
            "trained adapters, but its config.yaml has no init_from to add them to",
            key="base",
            path=run.folder,
            advice="name the base with --base",
        )
    base = Path(named)
    if not any((base / name).exists() for name in ("config.json", "config.yaml")):
        raise UserError(
            f"the base of its adapters, {base}, is no Hugging Face folder and no run (any more)",
            key="base",
            path=run.folder,
            advice="name where it lies now with --base",
        )
    return base


def first_difference(theirs: DecoderConfig, ours: DecoderConfig) -> str | None:
    """The first of SHARED that differs; a number that was float32 on its way is the same."""
    for name in SHARED:
        given, wanted = getattr(theirs, name), getattr(ours, name)
        if given != wanted and not (
            isinstance(given, float) and np.float32(given) == np.float32(wanted)
        ):
            return name
    return None


def _check_fit(folder: Path, theirs: DecoderConfig, ours: DecoderConfig) -> None:
    if name := first_difference(theirs, ours):
        given = getattr(theirs, name)
        raise UserError(
            f"init_from={folder}: its config gives {name} as {given}, but model.{name} is "
            f"{getattr(ours, name)}",
            key=f"model.{name}",
            path=folder,
            advice=(
                f"choose the preset that fits the weights or set model.overrides.{name} (to train "
                "with another value, set it in both)"
            ),
        )
