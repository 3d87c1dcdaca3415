"""Read a Hugging Face folder of the Mistral or Llama family; safetensors only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ipt_jax.errors import UserError
from ipt_jax.hf.weights import from_hugging_face, tensor_shapes
from ipt_jax.models.config import DecoderConfig, RopeScaling
from ipt_jax.models.decoder import Params


def read_config(folder: Path) -> DecoderConfig:
    """The decoder that a folder's config.json describes.

    Raises:
      UserError: no config.json, another architecture, or a feature the decoder does not have.
    """
    path = folder / "config.json"
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path}: not there; name a Hugging Face model folder.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); fetch the folder again.") from error
    family = raw.get("model_type")
    if family not in ("mistral", "llama"):
        raise UserError(f"{path}: model_type={family!r}; only mistral and llama can be read.")
    for key in ("attention_bias", "mlp_bias"):
        if raw.get(key):
            raise UserError(f"{path}: {key} is set; the decoder has no biases.")
    try:
        heads, width = raw["num_attention_heads"], raw["hidden_size"]
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        return DecoderConfig(
            vocabulary_size=raw["vocab_size"],
            width=width,
            mlp_width=raw["intermediate_size"],
            layers=raw["num_hidden_layers"],
            heads=heads,
            kv_heads=raw.get("num_key_value_heads") or heads,
            head_width=raw.get("head_dim") or width // heads,
            max_positions=raw["max_position_embeddings"],
            family=family,
            rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
            rope_scaling=_rope_scaling(rope, path),
            window=raw.get("sliding_window"),
            tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
            norm_epsilon=raw["rms_norm_eps"],
        )
    except KeyError as error:
        raise UserError(f"{path}: lacks the key {error}; fetch the folder again.") from error


def _rope_scaling(rope: dict[str, Any], path: Path) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise UserError(f"{path}: rope type {kind!r}; only default and llama3 can be read.")
    return RopeScaling(
        factor=rope["factor"],
        low_frequency_factor=rope["low_freq_factor"],
        high_frequency_factor=rope["high_freq_factor"],
        original_positions=rope["original_max_position_embeddings"],
    )


def load_hugging_face(folder: Path, config: DecoderConfig, dtype: str = "float32") -> Params:
    """The folder's weights as our parameters (numpy, float32 or bfloat16), tensor by tensor.

    Raises:
      UserError: no safetensors, a missing tensor or one of another shape than `config` says.
    """
    with _open_tensors(folder, config) as get:
        return from_hugging_face(config, get, dtype)


def stream_hugging_face(folder: Path, config: DecoderConfig) -> Iterator[tuple[str, np.ndarray]]:
    """The folder's tensors by name, float32, in file order, one at a time.

    Raises:
      UserError: as `load_hugging_face`.
    """
    with _open_tensors(folder, config) as get:
        for name in tensor_shapes(config):
            yield name, get(name)


@contextmanager
def _open_tensors(folder: Path, config: DecoderConfig) -> Iterator[Callable[[str], np.ndarray]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{folder}: holds no .safetensors file; weights are read from safetensors only "
            "(pickled .bin files can run code), so convert it first."
        )
    shapes = tensor_shapes(config)
    with ExitStack() as stack:
        owner: dict[str, Any] = {}
        for file in files:
            try:
                reader = stack.enter_context(safe_open(file, framework="numpy"))
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{file}: not a whole safetensors file ({error}); fetch it again."
                ) from error
            owner |= dict.fromkeys(reader.keys(), reader)

        def get(name: str) -> np.ndarray:
            if name not in owner:
                raise UserError(f"{folder}: tensor {name} is in none of its {len(files)} file(s).")
            tensor = owner[name].get_tensor(name)
            if tensor.shape != shapes[name]:
                raise UserError(
                    f"{folder}: tensor {name} has shape {tensor.shape}, but the model config "
                    f"asks for {shapes[name]}; choose the preset that fits the weights."
                )
            return tensor.astype(np.float32)

        yield get
