"""Adapters in PEFT's format, and merged into the tensors of their base."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from ipt_jax.core.errors import UserError, require, require_choice
from ipt_jax.core.tokenizers import Tokenizer
from ipt_jax.core.weight_files import follow_umask
from ipt_jax.hf.export import atomic_folder, write_json
from ipt_jax.hf.load import read_json, tensor_headers
from ipt_jax.hf.weights import DTYPES
from ipt_jax.models.config import DecoderConfig, Params
from ipt_jax.models.lora import FACTORS, TARGETS, LoraConfig, adapter_shapes

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
MODULES = {
    **{name: f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{name: f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")},
}
# Keys of PEFT's config that change what an adapter computes; ours have none of them.
UNREADABLE = (
    *("use_rslora", "use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out"),
    *("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform"),
    *("exclude_modules", "target_parameters", "trainable_token_indices", "layer_replication"),
    *("alora_invocation_tokens", "megatron_config"),
)


def peft_tensors(
    decoder: DecoderConfig, lora: LoraConfig, adapters: Params
) -> Iterator[tuple[str, np.ndarray]]:
    """PEFT's names and tensors: lora_A [r, in] and lora_B [out, r] of every adapted projection."""
    for block in range(decoder.layers):
        for target in lora.targets:
            name = f"base_model.model.model.layers.{block}.{MODULES[target]}"
            a, b = _factors(lora, adapters, target, block)
            yield f"{name}.lora_A.weight", np.ascontiguousarray(a)
            yield f"{name}.lora_B.weight", np.ascontiguousarray(b)


def merge_lora(
    decoder: DecoderConfig,
    lora: LoraConfig,
    adapters: Params,
    tensors: Iterator[tuple[str, np.ndarray]],
) -> Iterator[tuple[str, np.ndarray]]:
    """The base's tensors, float32, each with its adapter's product added; one at a time.

    With `lora.base_dtype` bfloat16 the base is rounded to it first: to these weights, not to
    finer ones, the adapters were fitted.
    """
    adapted = {
        f"model.layers.{block}.{MODULES[target]}.weight": (target, block)
        for target in lora.targets
        for block in range(decoder.layers)
    }
    for name, tensor in tensors:
        whole = tensor.astype(DTYPES[lora.base_dtype], copy=False).astype(np.float32, copy=False)
        if name in adapted:
            a, b = _factors(lora, adapters, *adapted[name])
            whole = whole + np.float32(lora.scale) * (b @ a)
        yield name, whole


def write_peft(
    folder: Path,
    decoder: DecoderConfig,
    lora: LoraConfig,
    adapters: Params,
    base: str,
    tokenizer: Tokenizer,
    *,
    dtype: str = "float32",
    check: Callable[[Path], None] | None = None,
) -> Path:
    """Write `folder` for `peft.PeftModel.from_pretrained` and vLLM's LoRA requests.

    `base` is the folder (or name) that the adapter's config gives as its base model. As in
    `export_hugging_face`, the folder appears only when it is whole and `check` has passed on it.

    Raises:
      UserError: the folder holds something else, or an unknown dtype.
    """
    require_choice("dtype", dtype, DTYPES)
    with atomic_folder(folder, CONFIG_FILE, check) as working:
        tensors = peft_tensors(decoder, lora, adapters)
        stored = {name: tensor.astype(DTYPES[dtype]) for name, tensor in tensors}
        save_file(stored, working / WEIGHTS_FILE, metadata={"format": "pt"})
        follow_umask(working)
        write_json(working / CONFIG_FILE, peft_config(lora, base))
        tokenizer.save_pretrained(working)
    return folder


def peft_config(lora: LoraConfig, base: str) -> dict[str, Any]:
    """adapter_config.json; what it leaves out has PEFT's default."""
    # vLLM declares an integer; PEFT takes both.
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
    }


def read_peft(folder: Path, decoder: DecoderConfig) -> tuple[LoraConfig, Params]:
    """A PEFT folder's LoRA as ours: float32 numpy leaves as `new_adapters` names them.

    Raises:
      UserError: no such folder, a kind of adapter that ours are not, or tensors that do not fit
        the decoder.
    """
    lora = _read_config(folder / CONFIG_FILE)
    path = folder / WEIGHTS_FILE
    tensor_headers(path)
    tensors = load_file(path)
    leaves: Params = {}
    for name, shape in adapter_shapes(decoder, lora).items():
        leaves[name] = np.empty(shape, np.float32)
    for name, expected in peft_tensors(decoder, lora, {"blocks": leaves}):
        if name not in tensors:
            raise UserError(f"lacks {name}; its config and its weights do not fit.", path=path)
        if tensors[name].shape != expected.shape:
            raise UserError(
                f"{name} has shape {tensors[name].shape}, but the model config and the adapter's "
                f"ask for {expected.shape}",
                path=path,
                advice="choose the preset of the adapter's base",
            )
    for target in lora.targets:
        for leaf, factor in zip(FACTORS[target], ("lora_A", "lora_B"), strict=True):
            for block in range(decoder.layers):
                name = f"base_model.model.model.layers.{block}.{MODULES[target]}.{factor}.weight"
                leaves[leaf][block] = tensors.pop(name).T.reshape(leaves[leaf].shape[1:])
    if tensors:
        raise UserError(
            f"holds {sorted(tensors)[0]} and {len(tensors) - 1} more that the decoder has no "
            "adapter for.",
            path=path,
        )
    return lora, {"blocks": leaves}


def _read_config(path: Path) -> LoraConfig:
    raw = read_json(path)
    kind, bias = raw.get("peft_type"), raw.get("bias")
    found: Any = raw.get("target_modules")
    require("peft_type", kind, kind == "LORA", "LORA", path)
    for key in UNREADABLE:
        require(key, raw.get(key), not raw.get(key), "left out: plain LoRA alone is known", path)
    # Other initialisations (pissa, olora, corda, loftq) changed the weights of the base as well.
    begun = raw.get("init_lora_weights")
    own = begun in (None, True, False, "gaussian", "eva")
    require("init_lora_weights", begun, own, "one that leaves the base's weights alone", path)
    require("bias", bias, bias in (None, "none"), "none: the decoder has no biases", path)
    require("target_modules", found, isinstance(found, list), "a list of names", path)
    ordered = [*(name for name in TARGETS if name in found), *sorted(set(found) - {*TARGETS})]
    try:
        return LoraConfig(
            rank=raw["r"],
            alpha=float(raw["lora_alpha"]),
            dropout=float(raw.get("lora_dropout", 0.0)),
            targets=tuple(ordered),
        )
    except KeyError as error:
        raise UserError(
            f"lacks the key {error}", key=error.args[0], path=path, advice="write the adapter again"
        ) from error
    except UserError as error:
        raise UserError(str(error), key=error.key, path=path) from error


def _factors(
    lora: LoraConfig, adapters: Params, target: str, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """One adapter as PEFT has it: A [r, in] and B [out, r]."""
    a, b = (np.asarray(adapters["blocks"][name][block]) for name in FACTORS[target])
    return a.reshape(-1, lora.rank).T, b.reshape(lora.rank, -1).T
