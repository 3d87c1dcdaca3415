"""Read a Hugging Face folder of the Mistral or Llama family; safetensors only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from ipt_jax.core.errors import UserError, require
from ipt_jax.core.json_lines import read_object
from ipt_jax.core.lazy_array import LazyArray
from ipt_jax.core.weight_files import weight_files
from ipt_jax.hf.weights import DTYPES, Entry, entries, tensor_shapes
from ipt_jax.models.config import DecoderConfig, Params, RopeScaling
from ipt_jax.models.decoder import new_params

# What transformers takes where a config.json lacks the key.
_DEFAULTS = {"mistral": {"sliding_window": 4096, "num_key_value_heads": 8}, "llama": {}}
_REFUSED = {
    "attention_bias": "the decoder has no biases",
    "mlp_bias": "the decoder has no biases",
    "quantization_config": "quantised weights cannot be read; take the model as it was before",
}
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_COMPARED_ROWS = 8192


def read_config(folder: Path) -> DecoderConfig:
    """The decoder that a folder's config.json describes.

    Raises:
      UserError: no config.json, another architecture, or a feature the decoder does not have.
    """
    raw = read_json(path := folder / "config.json")
    family: Any = raw.get("model_type")
    require("model_type", family, family in ("mistral", "llama"), "mistral or llama", path)
    for key, reason in _REFUSED.items():
        if raw.get(key):
            raise UserError(f"{key} is set; {reason}.", key=key, path=path)
    activation = raw.get("hidden_act", "silu")
    require("hidden_act", activation, activation in ("silu", "swish"), "silu, as ours", path)
    if family == "llama" and raw.get("sliding_window") is not None:
        raise UserError(
            f"sliding_window={raw['sliding_window']} in a llama config, where transformers does "
            "not use it",
            key="sliding_window",
            path=path,
            advice="take the key out, or set model_type to mistral",
        )
    raw = _DEFAULTS[family] | raw
    try:
        heads, width = raw["num_attention_heads"], raw["hidden_size"]
        rope = {"partial_rotary_factor": raw.get("partial_rotary_factor") or 1}
        rope |= raw.get("rope_parameters") or raw.get("rope_scaling") or {}
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
            rope_scaling=_rope_scaling(rope),
            window=raw.get("sliding_window"),
            tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
            norm_epsilon=raw["rms_norm_eps"],
        )
    except KeyError as error:
        raise UserError(
            f"lacks the key {error}", key=error.args[0], path=path, advice="fetch the folder again"
        ) from error
    except UserError as error:
        raise UserError(str(error), key=error.key, path=path) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a Hugging Face folder; raises UserError where it is not there or damaged."""
    return read_object(path, "fetch the folder again", "name a Hugging Face folder")


def _rope_scaling(rope: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope["partial_rotary_factor"] != 1 or any(isinstance(v, dict) for v in rope.values()):
        raise UserError("rotary embeddings of part of a head, or other ones by layer, are unknown.")
    if kind == "default":
        return None
    require("rope_type", kind, kind == "llama3", "default or llama3")
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


def tensor_headers(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a safetensors file, by name.

    Raises:
      UserError: not a whole file, or a tensor that is not float32, float16 or bfloat16.
    """
    try:
        with safe_open(file, framework="numpy") as reader:
            parts = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118
            found = {n: (tuple(p.get_shape()), p.get_dtype()) for n, p in parts.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"not a whole safetensors file ({error})", path=file, advice="fetch it again"
        ) from error
    for name, (_, dtype) in found.items():
        if dtype not in _DTYPES:
            raise UserError(
                f"{name} is {dtype}; only {', '.join(_DTYPES.values())} can be read",
                path=file,
                advice="take the weights as they were before they were quantised",
            )
    return {name: shape for name, (shape, _) in found.items()}


def _reader(folder: Path, config: DecoderConfig) -> Callable[..., np.ndarray]:
    """Reads a tensor by name, or some of its rows, as float32; all of them are checked now."""
    there: dict[str, tuple[Path, tuple[int, ...]]] = {}
    files, single = weight_files(folder), folder / "model.safetensors"
    if single not in files and single.is_file():
        print(f"{single}: not read, for the index beside it names other files.")
    for file in files:
        for name, shape in tensor_headers(file).items():
            if name in there:
                raise UserError(f"{name} is in {there[name][0].name} too.", path=file)
            there[name] = file, shape
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    shapes = tensor_shapes(config)
    wanted = shapes | ({head: shapes[embedding]} if head in there else {})
    for name, shape in wanted.items():
        if name not in there:
            raise UserError(f"tensor {name} is in none of its {len(files)} file(s).", path=folder)
        found = there[name][1]
        if found != shape:
            raise UserError(
                f"tensor {name} has shape {found}, but the model config asks for {shape}",
                path=folder,
                advice="choose the preset that fits the weights",
            )
    # Older exports hold the rotary frequencies, which follow from the config.
    unknown = sorted(n for n in there.keys() - wanted if not n.endswith("rotary_emb.inv_freq"))
    if unknown:
        raise UserError(
            f"the decoder has no place for {unknown[0]} ({len(unknown)} such tensors in all); "
            "without them it would be another model.",
            path=there[unknown[0]][0],
        )

    def read(name: str, rows: slice = slice(None)) -> np.ndarray:
        # Opened anew each time: what an open file has shown of itself stays in memory.
        with safe_open(there[name][0], framework="numpy") as reader:
            return reader.get_slice(name)[rows].astype(np.float32, copy=False)

    if head in there and head not in shapes:
        for start in range(0, config.vocabulary_size, _COMPARED_ROWS):
            rows = slice(start, min(start + _COMPARED_ROWS, config.vocabulary_size))
            if not np.array_equal(read(head, rows), read(embedding, rows)):
                raise UserError(
                    f"ties its output to the embedding (tie_word_embeddings), but {head} holds "
                    "other numbers",
                    key="tie_word_embeddings",
                    path=folder,
                    advice="set it to false in config.json",
                )
    return read
