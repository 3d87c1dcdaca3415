"""A training run's folder: what it holds, its summary, and what of a config a start may change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import yaml
from jax.sharding import Mesh

from ipt_jax.core.configuration import as_yaml, write_run_files
from ipt_jax.core.fingerprint import digest_of
from ipt_jax.core.run_folder import (
    RUN_FILES,
    FolderRefused,
    RunFolder,
    fingerprint_of,
    print_of,
    prints_of,
)
from ipt_jax.data.pipeline import OpenMixture
from ipt_jax.models.lora import adapter_count
from ipt_jax.training.checkpoints import SAVES, newest_list
from ipt_jax.training.config import TrainConfig
from ipt_jax.training.metrics import MetricsLog
from ipt_jax.training.processes import barrier
from ipt_jax.training.starting_weights import weights_digest
from ipt_jax.training.step import TrainSetup

KIND = "training"
OWNS = (
    *RUN_FILES,
    *("metrics.jsonl", "skipped.jsonl", "summary.json", "damaged/#.jsonl", "heartbeats/#.json"),
    *("tensorboard/events.out.tfevents.*", "profile/plugins/", "wandb/", "wandb_run_id.txt"),
    *(f"checkpoints/{name}" for name in SAVES),
)
EXPORTS = ("export", "adapter")  # of launch/convert.py, in folders of their own
# What may change between two starts of the same training: where and how it runs, and what is
# written down. All else decides what is learnt.
FREE = (
    *("run_folder", "resume", "fresh", "dry_run", "dry_run_devices", "dry_run_device"),
    *(
        "dry_run_mfu",
        "mesh",
        "processes",
        "accumulation_steps",
        "rows_per_device",
        "attention_backend",
        "guard",
    ),
    *("watchdog", "metrics", "profile", "checkpoints", "xla_flags", "compilation_cache"),
    *("data.worker_count", "data.verify_checksums", "data.skip_damaged"),
    *("model.overrides.remat", "model.overrides.remat_save"),
)
# Where lies what counts by its content.
PLACES = ("data.mixture", "data.root", "data.tokenizer", "data.index_folder", "init_from")
BEGINNING, BEGINNING_RUN = "init_from/weights", "init_from/run"
# What may differ between the processes of one run: who they are, and what is of their host.
OWN = (
    *("processes", "compilation_cache", "profile"),
    *("data.worker_count", "data.verify_checksums", "data.index_folder"),
)


@contextmanager
def open_run_folder(config: TrainConfig, mesh: Mesh, mixture: OpenMixture) -> Iterator[Path]:
    """Hold the run folder, with config.yaml and environment.json in it, while the body runs.

    Raises:
      FolderRefused: another process trains there, or it holds a run whose config differs in more
        than FREE, or whose data, tokenizer or first weights were others.
    """
    folder = config.run_folder.expanduser()
    if jax.process_index() > 0:
        barrier("run folder")
        yield folder
        return
    prints = run_prints(config, mixture)
    # A key that is newer than the run did what its default does; and extensions may be added.
    defaults = _fixed(yaml.safe_load(as_yaml(TrainConfig())))
    defaults |= {k: v for k, v in prints.items() if k.startswith("extensions.")}
    defaults |= {k: v for k, v in prints.items() if k == BEGINNING_RUN}
    free = PLACES
    # Weights that are not read again may have been trained on since.
    if BEGINNING_RUN in prints and config.adapter is None and config.resume != "0":
        free = (*free, *([BEGINNING] if newest_list(folder / "checkpoints") else ()))
    try:
        run = RunFolder.open(
            folder,
            KIND,
            prints,
            owns=OWNS,
            folders=EXPORTS,
            fresh=config.fresh,
            defaults=defaults,
            free=free,
            legacy=_before_markers,
        )
    except FolderRefused as error:
        if not {"train_tokens", "epochs"} & {*error.differs}:
            raise
        why = str(error).removeprefix(f"{error.path}: ")
        why += " To train the run longer, leave train_tokens and epochs and add to extensions."
        raise FolderRefused(error.path, "differs", why, error.differs) from error
    with run:
        devices = [f"{device.platform}:{device.device_kind}" for device in mesh.devices.flat]
        write_run_files(folder, config, devices=devices)
        barrier("run folder")
        yield folder


def run_prints(config: TrainConfig, mixture: OpenMixture) -> dict[str, str]:
    """What a training's result depends on, by name; what its config names by a path, by content.

    Of `init_from` all weights are read, unless they are remembered; of a run also what it is.
    """
    prints = _fixed(yaml.safe_load(as_yaml(config))) | mixture.prints()
    if config.init_from is not None:
        prints[BEGINNING] = weights_digest(config.init_from)
        if not (config.init_from / "config.json").exists():
            begun = fingerprint_of(config.init_from) or {}
            begun = {k: v for k, v in begun.items() if not k.startswith("extensions.")}
            prints |= {BEGINNING_RUN: digest_of(begun)} if begun else {}
    return prints


def _before_markers(folder: Path) -> dict[str, str] | None:
    """The fingerprint of a training that an earlier version began; None where there is none."""
    try:
        content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    whole = isinstance(content, dict) and {"run_folder", "data", "train_tokens"} <= content.keys()
    return _fixed(content) if whole and (folder / "environment.json").is_file() else None


def _fixed(config: Mapping[str, Any]) -> dict[str, str]:
    """A config's values by dotted key, without the free ones; each extension has a key."""
    prints = _without((*FREE, "extensions"), config)
    extensions = enumerate(config.get("extensions") or ())
    return prints | {f"extensions.{n}": print_of(extension) for n, extension in extensions}


def shared_values(config: TrainConfig) -> dict[str, str]:
    """A config's values by dotted key, but for those that its processes need not share."""
    return _without(OWN, yaml.safe_load(as_yaml(config)))


def _without(left_out: Sequence[str], config: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: value
        for key, value in prints_of(config).items()
        if not any(key == name or key.startswith(f"{name}.") for name in left_out)
    }


def describe(
    config: TrainConfig, setup: TrainSetup, mixture: OpenMixture, mesh_shape: Any, first: int
) -> str:
    """A run that begins at position `first`, in lines for a person."""
    decoder = setup.decoder
    shape = " × ".join(f"{name} {size}" for name, size in mesh_shape.items())
    stages = [
        (f"from step {step:,}: " if step else "")
        + ", ".join(f"{name} {rate:.1%}" for name, rate in rates.items())
        for step, rates in mixture.stages
    ]
    model = f"model {config.model.preset}, {decoder.parameter_count():,} parameters"
    if config.adapter is not None:
        trained = adapter_count(decoder, config.adapter)
        model += f", {trained:,} of adapters trained, base {config.adapter.base_dtype}"
    pieces = config.pieces
    rows = config.batch_rows / (pieces * mesh_shape["data"] * mesh_shape["fsdp"])
    return (
        f"{model}, {decoder.compute_dtype}\n"
        f"mesh {shape}, {jax.process_count()} process(es); "
        f"attention {setup.attention}\n"
        f"batch {config.batch_tokens:,} tokens = {config.batch_rows} rows × "
        f"{config.data.row_tokens} tokens, {pieces} piece(s) of {rows:g} rows a device\n"
        f"steps {first:,} → {config.steps:,}, {config.steps * config.batch_tokens:,} tokens in "
        f"all{_extensions(config)}\n"
        f"mixture by {mixture.mixture.by}: {'; '.join(stages)}; packing {config.data.packing}"
    )


def _extensions(config: TrainConfig) -> str:
    """A line for each extension."""
    lines, begin = "", config.base_steps
    for extension, steps in config.extension_steps:
        peak = extension.peak_learning_rate
        rate = "the rate before it" if peak is None else f"{peak:g}"
        if extension.schedule != "constant":
            rate += f" to {extension.final_fraction:g} of that"
        said = f"{extension.schedule} at {rate}"
        lines += f"\nextension, updates {begin:,} → {begin + steps:,}: {said}"
        begin += steps
    return lines


def summarise(
    config: TrainConfig,
    setup: TrainSetup,
    mixture: OpenMixture,
    log: MetricsLog,
    updates: int,
    damaged: dict[str, int],
) -> dict[str, Any]:
    """The content of summary.json."""
    return {
        "model": config.model.preset,
        "parameters": setup.decoder.parameter_count(),
        "tokens": log.tokens,
        "learnt_tokens": dict(log.learnt_tokens),
        "steps": config.steps,
        "updates": updates,
        "skipped": config.steps - updates,
        "seconds": round(log.seconds, 1),
        "final_loss": log.last.get("loss"),
        "asked_rates": mixture.asked_over(config.steps),
        "realised_rates": {n: count / log.tokens for n, count in log.source_tokens.items()},
        "source_tokens": dict(log.source_tokens),
        "damaged_records": damaged,
        **({} if log.crowded_lists is None else {"crowded_lists": log.crowded_lists}),
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
    }
