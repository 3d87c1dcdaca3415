"""Read a Hugging Face folder of the Mistral or Llama family; safetensors only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from ipt_jax.errors import UserError
from ipt_jax.hf.weights import DTYPES, Entry, entries, tensor_shapes
from ipt_jax.lazy_array import LazyArray
from ipt_jax.models.config import DecoderConfig, RopeScaling
from ipt_jax.models.decoder import new_params
from ipt_jax.models.layers import Params


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


class FolderArray(LazyArray):
    """One of our parameters in a Hugging Face folder; a part of it reads no other blocks."""

    def __init__(
        self,
        get: Callable[..., np.ndarray],
        config: DecoderConfig,
        leaf: tuple[Entry, bool],
        shape: tuple[int, ...],
        dtype: np.dtype,
    ):
        """`leaf` is the table's entry, and whether it is stacked over blocks."""
        self._get, self._config, (self._entry, self._stacked) = get, config, leaf
        self.shape, self.dtype = shape, dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        index = index if isinstance(index, tuple) else (index,)
        if index[0] is ...:
            index = (slice(None), *index)
        if not self._stacked:
            (name,) = self._entry.names(None)
            rows = self._get(name, index[0])
            return rows[slice(None), *index[1:]].astype(self.dtype, copy=False)
        blocks, rest = range(self.shape[0])[index[0]], index[1:]
        if isinstance(blocks, int):
            return self._read(blocks)[rest]
        out = None
        for place, block in enumerate(blocks):
            part = self._read(block)[rest]
            out = np.empty((len(blocks), *part.shape), self.dtype) if out is None else out
            out[place] = part
        return np.empty((0, *self.shape[1:]), self.dtype) if out is None else out

    def _read(self, block: int) -> np.ndarray:
        tensors = tuple(map(self._get, self._entry.names(block)))
        return self._entry.join(self._config, tensors).astype(self.dtype, copy=False)


def open_hugging_face(folder: Path, config: DecoderConfig, dtype: str = "float32") -> Params:
    """The folder's weights as our parameters, FolderArrays of `dtype`: nothing is read yet.

    Raises:
      UserError: no safetensors, a missing tensor or one of another shape than `config` says.
    """
    get = _reader(folder, config)
    shapes = jax.eval_shape(lambda: new_params(config, jax.random.key(0)))
    leaves: Params = {"blocks": {}}
    for entry, block, _ in entries(config):
        into, abstract = leaves, shapes
        for part in entry.ours[:-1]:
            into, abstract = into[part], abstract[part]
        name = entry.ours[-1]
        leaf, shape = (entry, block is not None), abstract[name].shape
        into.setdefault(name, FolderArray(get, config, leaf, shape, DTYPES[dtype]))
    return leaves


def load_hugging_face(folder: Path, config: DecoderConfig, dtype: str = "float32") -> Params:
    """What `open_hugging_face` gives, read: numpy arrays.

    Raises:
      UserError: as there.
    """
    return jax.tree.map(np.asarray, open_hugging_face(folder, config, dtype))


def stream_hugging_face(folder: Path, config: DecoderConfig) -> Iterator[tuple[str, np.ndarray]]:
    """The folder's tensors by name, float32, in file order, one at a time.

    Raises:
      UserError: as `open_hugging_face`.
    """
    get = _reader(folder, config)
    return ((name, get(name)) for name in tensor_shapes(config))


def _reader(folder: Path, config: DecoderConfig) -> Callable[..., np.ndarray]:
    """Reads a tensor by name, or some of its rows, as float32; all shapes are checked now."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{folder}: holds no .safetensors file; weights are read from safetensors only "
            "(pickled .bin files can run code), so convert it first."
        )
    there: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as reader:
                for name in reader.keys():  # noqa: SIM118 (it is no dict)
                    there[name] = file, tuple(reader.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file}: not a whole safetensors file ({error}); fetch it again."
            ) from error
    for name, shape in tensor_shapes(config).items():
        if name not in there:
            raise UserError(f"{folder}: tensor {name} is in none of its {len(files)} file(s).")
        found = there[name][1]
        if found != shape:
            raise UserError(
                f"{folder}: tensor {name} has shape {found}, but the model config "
                f"asks for {shape}; choose the preset that fits the weights."
            )

    def read(name: str, rows: slice = slice(None)) -> np.ndarray:
        # Opened anew each time: what an open file has shown of itself stays in memory.
        with safe_open(there[name][0], framework="numpy") as reader:
            return reader.get_slice(name)[rows].astype(np.float32, copy=False)

    return read
