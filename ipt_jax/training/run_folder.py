"""A training run's folder: made, reopened by the same run, refused to another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import yaml
from jax.sharding import Mesh

from ipt_jax.configuration import as_yaml, clear_run_folder, write_run_files
from ipt_jax.errors import UserError
from ipt_jax.training.config import TrainConfig
from ipt_jax.training.processes import wait_for_all

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


def open_run_folder(config: TrainConfig, mesh: Mesh) -> Path:
    """Make or reopen the run folder and write config.yaml and environment.json.

    Raises:
      UserError: it holds a run whose config differs in more than FREE.
    """
    folder = config.run_folder
    saved = folder / "config.yaml"
    if jax.process_index() == 0:
        if config.fresh:
            clear_run_folder(folder)
        if saved.exists():
            _refuse_another(folder, saved, as_yaml(config))
        devices = [f"{device.platform}:{device.device_kind}" for device in mesh.devices.flat]
        write_run_files(folder, config, devices=devices)
    wait_for_all("run folder")
    return folder


def _refuse_another(folder: Path, saved: Path, asked: str) -> None:
    before, now = (_fixed(yaml.safe_load(text)) for text in (saved.read_text("utf-8"), asked))
    # A key that is newer than the run did what its default does.
    defaults = _fixed(yaml.safe_load(as_yaml(TrainConfig())))
    before = {**{key: defaults[key] for key in defaults.keys() & now.keys()}, **before}
    if before == now:
        return
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    raise UserError(
        f"run_folder={folder}: holds a run with another config ({saved}; it differs in "
        f"{', '.join(keys)}); choose another run_folder, or delete what is there with --fresh."
    )


def _fixed(config: dict[str, Any]) -> dict[str, Any]:
    """A config's values by dotted key, without the free ones."""
    flat: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if prefix in FREE:
            return
        if isinstance(value, dict) and prefix != "data.mixture":
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = value

    add("", config)
    return flat
