"""Write a Hugging Face folder: sharded safetensors, configs, tokenizer."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ipt_jax.core.errors import require_choice
from ipt_jax.core.files import naming, sync_folder
from ipt_jax.core.run_folder import RunFolder
from ipt_jax.core.tokenizers import Tokenizer
from ipt_jax.core.weight_files import INDEX_NAME, follow_umask
from ipt_jax.hf.weights import DTYPES, tensor_shapes, to_hugging_face
from ipt_jax.models.config import DecoderConfig
from ipt_jax.models.decoder import Params

SHARD_BYTES = 4 * 2**30
_WORKING = ".unfinished/"
ARCHITECTURES = {"mistral": "MistralForCausalLM", "llama": "LlamaForCausalLM"}


def export_hugging_face(
    folder: Path,
    config: DecoderConfig,
    weights: Params | Iterator[tuple[str, np.ndarray]],
    tokenizer: Tokenizer,
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    check: Callable[[Path], None] | None = None,
    generation: Mapping[str, Any] | None = None,
) -> Path:
    """Write `folder` for `transformers.AutoModelForCausalLM` and `AutoTokenizer`.

    `weights` are our parameters, or tensors by name in the order of `tensor_shapes`. The folder
    appears only when it is whole and `check`, if given, has passed on it: `check` gets the finished
    folder under a temporary name and raises to refuse it. `generation` is what
    generation_config.json says, by default BOS and EOS of the tokenizer.

    Raises:
      UserError: the folder holds something else, or an unknown dtype.
    """
    require_choice("dtype", dtype, DTYPES)
    tensors = to_hugging_face(config, weights) if isinstance(weights, dict) else weights
    with atomic_folder(folder, "config.json", check) as working:
        _write_weights(working, config, tensors, DTYPES[dtype], shard_bytes)
        ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        said = generation or {"_from_model_config": True, **ends}
        ends |= {key: said[key] for key in ends if key in said}
        write_json(working / "config.json", hugging_face_config(config, dtype) | ends)
        write_json(working / "generation_config.json", said)
        tokenizer.save_pretrained(working)
    return folder


@contextmanager
def atomic_folder(
    folder: Path, marker: str, check: Callable[[Path], None] | None
) -> Iterator[Path]:
    """A temporary folder whose files take the place of `folder`'s once body and `check` passed.

    Until then an earlier export stays as it was. A reader that looks for the file `marker` never
    finds files of two exports together: it goes first and comes last.

    Raises:
      FolderRefused: another process writes to `folder`, or files of someone else are in the way.
    """
    with RunFolder.open(
        folder, "export", {}, owns=(_WORKING, marker), alone=True, fresh=None
    ) as run:
        working = run.path / _WORKING
        run.remove(_WORKING)
        working.mkdir()
        try:
            yield working
            if check is not None:
                check(working)
            names = [path.relative_to(working) for path in working.rglob("*") if path.is_file()]
            run.own(*map(Path.as_posix, names))
            run.begin()
            run.remove(marker)
            run.remove(*(name for name in run.owns if name != _WORKING))
            for name in sorted(names, key=lambda name: name.as_posix() == marker):
                (run.path / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(working / name, run.path / name)
            sync_folder(run.path)
        finally:
            run.remove(_WORKING)
        run.finish()


def hugging_face_config(config: DecoderConfig, dtype: str) -> dict[str, Any]:
    """The config.json that makes transformers build the same decoder, without special tokens."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if scaling := config.rope_scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_positions,
        }
    window = {"sliding_window": config.window} if config.family == "mistral" else {}
    biases = {"attention_bias": False, "mlp_bias": False} if config.family == "llama" else {}
    return {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        # Both forms: transformers 5 reads rope_parameters, vLLM and older ones the flat keys.
        "rope_parameters": rope,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope if config.rope_scaling else None,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
        **window,
        **biases,
    }


def _write_weights(
    folder: Path,
    config: DecoderConfig,
    tensors: Iterator[tuple[str, np.ndarray]],
    dtype: np.dtype,
    shard_bytes: int,
) -> None:
    shapes = tensor_shapes(config)
    size_bytes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    shards = _plan(size_bytes, shard_bytes)
    index: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(_take(tensors, names, dtype), folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = {"total_size": sum(size_bytes.values())}
        write_json(folder / INDEX_NAME, {"metadata": total, "weight_map": index})
    follow_umask(folder)


def _take(
    tensors: Iterator[tuple[str, np.ndarray]], names: list[str], dtype: np.dtype
) -> dict[str, np.ndarray]:
    taken = {}
    for expected in names:
        name, tensor = next(tensors)
        assert name == expected, f"the table yields {name} where {expected} is due"
        taken[name] = tensor.astype(dtype, copy=False)
    return taken


def _plan(size_bytes: dict[str, int], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in size_bytes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Indented, in the order of the keys."""
    with naming(path):
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
