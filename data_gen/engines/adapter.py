"""LoRA adapters in PEFT's format: a small folder that is merged into a copy of its base model."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_gen.errors.shared import model_error
from ipt_jax.core.bounds import Positive, check_value
from ipt_jax.core.errors import UserError
from ipt_jax.core.json_lines import load_json
from ipt_jax.core.weight_files import follow_umask, weight_files

if TYPE_CHECKING:
    import torch

adapter_error = partial(UserError, key="engine.adapter")
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Keys of PEFT's LoraConfig that leave the product of A and B as it is. Any other that is set, also
# one of a later PEFT, may change it, and the adapter is refused.
_HARMLESS = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode"),
    *("base_model_name_or_path", "revision", "r", "lora_alpha", "lora_dropout", "target_modules"),
    *("bias", "init_lora_weights", "eva_config"),
    *("layers_pattern", "megatron_core", "qalora_group_size"),  # only beside a key that is refused
}
# Other initialisations (pissa, olora, corda, loftq, ...) also changed the base's weights.
_HARMLESS_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
_BESIDE_WEIGHTS = ("*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")


@dataclass(frozen=True)
class PackagedAdapter:
    """An adapter that this package carries."""

    folder: Path
    """Where it lies."""
    base: str
    """`engine.model` that it was tuned on."""


PACKAGED: dict[str, PackagedAdapter] = {
    "smollm2-135m-synthesizer": PackagedAdapter(
        Path(__file__).parent.parent / "synthesizers" / "smollm2_135m", "smollm2-135m-instruct"
    )
}


@dataclass(frozen=True)
class Adapter:
    """What an adapter folder says of itself; its tensors are still unread."""

    folder: Path
    """PEFT's folder."""
    name: str
    """Short name, or the folder's."""
    rank: int
    """Rows of A, columns of B."""
    scale: float
    """lora_alpha / r: what the product of B and A is multiplied by."""
    targets: tuple[str, ...]
    """Names, or ends of names, of the adapted modules."""
    revision: str
    """Twelve hexadecimal digits of scale and weights; not of the paths in its config."""

    def adapts(self, module: str) -> bool:
        """Whether PEFT adapts the module of this full name."""
        return any(f".{module}".endswith(f".{target}") for target in self.targets)


def read_adapter(adapter: str, base: str) -> Adapter:
    """The adapter that a config names for the model `base`: a short name in PACKAGED, or a folder.

    `base_model_name_or_path` in its config is not read, since paths differ between machines:
    `write_merged` compares names and shapes.

    Raises UserError for an adapter with another base, a folder that is not whole, and options that
    are not plain LoRA.
    """
    packaged = PACKAGED.get(adapter)
    if packaged is not None and base != packaged.base:
        raise adapter_error(
            f"`engine.adapter` '{adapter}' was tuned on the model '{packaged.base}', but "
            f"`engine.model` is '{base}': name that model, or an adapter of yours."
        )
    folder = packaged.folder if packaged is not None else Path(adapter).expanduser().absolute()
    if not folder.is_dir():
        raise adapter_error(
            f"`engine.adapter` is '{adapter}': there is no folder {folder}. Give one that PEFT "
            f"wrote ({CONFIG_FILE}, {WEIGHTS_FILE}), or one of: {', '.join(PACKAGED)}.",
            path=folder,
        )
    rank, scale, targets = _read_config(folder / CONFIG_FILE)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise adapter_error(
            f"{weights}: not there. Other forms of an adapter (adapter_model.bin, a pickle) are "
            "never loaded: save it again with PEFT's save_pretrained.",
            path=weights,
        )
    digest = hashlib.sha256(json.dumps([rank, scale]).encode())
    digest.update(weights.read_bytes())
    name = adapter if packaged is not None else folder.name
    return Adapter(folder, name, rank, scale, targets, digest.hexdigest()[:12])


def write_merged(base: Path, adapter: Adapter, folder: Path) -> None:
    """Write the model in `base` with the adapter into the empty `folder`: as large as the base.

    Each adapted weight becomes W + scale * B @ A, computed in float32 and rounded once to the type
    of W. Tokenizer, config and the other weights are those of the base; its files are held in
    memory one at a time.

    Raises UserError where a tensor of either is missing, too many, of another shape, damaged or
    not finite, or the disk has no room.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    files = weight_files(base)
    _check_room(files, folder)
    factors = _read_factors(adapter)
    try:
        shapes = {name: shape for path in files for name, shape in _shapes(path).items()}
        _check_fit(adapter, factors, shapes, base)
        for path in files:
            tensors = load_file(path)
            for name, weight in tensors.items():
                a = factors.get(f"{_PREFIX}{name.removesuffix('.weight')}.lora_A.weight")
                if a is None:
                    continue
                b = factors[f"{_PREFIX}{name.removesuffix('.weight')}.lora_B.weight"]
                if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
                    raise model_error(
                        f"{path}: {name} is {weight.dtype}; an adapter goes on float32, bfloat16 "
                        "or float16 weights: take the base before it was quantised.",
                        path=path,
                        record=name,
                    )
                tensors[name] = (weight.float() + adapter.scale * (b @ a)).to(weight.dtype)
            save_file(tensors, folder / path.name, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"the model in {base} with the adapter {adapter.folder} cannot be written to the cache "
            f"{folder.parent} ({type(error).__name__}: {error}): see that the model's files are "
            "whole and the disk has room.",
            key="engine.cache_folder",
            path=folder.parent,
        ) from error
    follow_umask(folder)
    for pattern in _BESIDE_WEIGHTS:
        for path in base.glob(pattern):
            shutil.copyfile(path, folder / path.name)


def _read_config(path: Path) -> tuple[int, float, tuple[str, ...]]:
    """Rank, scale and target modules."""
    wrong = partial(UserError, path=path)
    try:
        raw: Any = load_json(path)
    except OSError as error:
        said = f"{path}: cannot be read ({error.strerror}); name a folder that PEFT wrote."
        raise wrong(said, key="engine.adapter") from error
    except ValueError as error:
        said = f"{path}: not valid JSON ({error}); save the adapter again."
        raise wrong(said, key="engine.adapter") from error
    if not isinstance(raw, dict) or raw.get("peft_type") != "LORA":
        kind = raw.get("peft_type") if isinstance(raw, dict) else raw
        said = f"{path}: peft_type={kind!r}; only LORA adapters can be put on a model."
        raise wrong(said, key="peft_type")
    changing = {key: value for key, value in raw.items() if value and key not in _HARMLESS}
    if raw.get("bias") not in (None, "none"):
        changing["bias"] = raw["bias"]
    if raw.get("init_lora_weights") not in _HARMLESS_INITS:
        changing["init_lora_weights"] = raw["init_lora_weights"]
    for key, value in changing.items():
        said = (
            f"{path}: {key}={value!r} changes what the adapter computes, and only plain LoRA can "
            "be put on a model here: merge it with PEFT (merge_and_unload) and name the merged "
            "folder in `engine.model`."
        )
        raise wrong(said, key=key)
    rank: Any = raw.get("r")
    alpha: Any = raw.get("lora_alpha")
    targets: Any = raw.get("target_modules")
    try:
        check_value(Positive, rank, "r")
        check_value(float, alpha, "lora_alpha")
        check_value(list[str], targets, "target_modules")
    except UserError as error:
        raise wrong(f"{path}: {error} Save it again.", key=error.key) from error
    return rank, alpha / rank, tuple(targets)


def _read_factors(adapter: Adapter) -> dict[str, torch.Tensor]:
    """All tensors of the adapter by PEFT's names, float32."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = adapter.folder / WEIGHTS_FILE
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise adapter_error(
            f"{path}: not a whole safetensors file ({error}); copy or save the adapter again.",
            path=path,
        ) from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor.float()).all():
            raise adapter_error(
                f"{path}: {name} ({tensor.dtype}) holds values that are no finite numbers; the "
                "adapter is damaged, or its tuning diverged.",
                path=path,
                record=name,
            )
    return {name: tensor.float() for name, tensor in tensors.items()}


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _check_fit(
    adapter: Adapter,
    factors: dict[str, torch.Tensor],
    shapes: dict[str, tuple[int, ...]],
    base: Path,
) -> None:
    """Raise UserError unless the adapter has A and B for each adapted weight, and nothing else."""
    path, expected = adapter.folder / WEIGHTS_FILE, dict[str, tuple[int, int]]()
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if module != name and len(shape) == 2 and adapter.adapts(module):
            expected[f"{_PREFIX}{module}.lora_A.weight"] = (adapter.rank, shape[1])
            expected[f"{_PREFIX}{module}.lora_B.weight"] = (shape[0], adapter.rank)
    if missing := sorted(expected.keys() - factors.keys()):
        raise adapter_error(
            f"{path}: lacks {missing[0]} ({len(missing)} in all), though the model in {base} has "
            f"such a weight and target_modules in {CONFIG_FILE} names it: the adapter is not "
            "whole, or was tuned on another model.",
            path=path,
            record=missing[0],
        )
    if unknown := sorted(factors.keys() - expected.keys()):
        raise model_error(
            f"{path}: holds {unknown[0]} ({len(unknown)} in all), for which the model in {base} "
            f"has no weight or {CONFIG_FILE} no target module: name the model that the adapter "
            "was tuned on in `engine.model`.",
            path=path,
            record=unknown[0],
        )
    for name, shape in expected.items():
        if tuple(factors[name].shape) != shape:
            raise model_error(
                f"{path}: {name} has shape {tuple(factors[name].shape)}, but the model in {base} "
                f"and the rank {adapter.rank} ask for {shape}: name the model that the adapter "
                "was tuned on in `engine.model`.",
                path=path,
                record=name,
            )
    if not expected:
        raise UserError(
            f"{adapter.folder / CONFIG_FILE}: target_modules={list(adapter.targets)} names no "
            f"weight of the model in {base}: name the model that the adapter was tuned on.",
            key="target_modules",
            path=adapter.folder / CONFIG_FILE,
        )


def _check_room(files: list[Path], folder: Path) -> None:
    need_bytes, free_bytes = sum(p.stat().st_size for p in files), shutil.disk_usage(folder).free
    if need_bytes > free_bytes:
        raise UserError(
            f"{folder.parent} has {free_bytes / 1e9:.1f} GB free, and the model merged with its "
            f"adapter takes {need_bytes / 1e9:.1f} GB: make room, or give another folder in "
            "`engine.cache_folder`.",
            key="engine.cache_folder",
            path=folder.parent,
        )
