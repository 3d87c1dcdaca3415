"""What accelerators this machine has, found without starting JAX on them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

CUDA_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")


def why_no_gpu(environment: Mapping[str, str], platforms: str | None, devices: Path) -> str | None:
    """Why JAX will not use an NVIDIA GPU; None if it will.

    Args:
      environment: of the process.
      platforms: JAX's setting, `jax.config.jax_platforms`.
      devices: where the driver's device files are looked for.
    """
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return f"JAX_PLATFORMS={platforms}"
    if environment.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides all GPUs"
    if not any(devices.glob("nvidia[0-9]*")) and not (devices / "nvidiactl").exists():
        return "no NVIDIA GPU here"
    if not any(map(importlib.util.find_spec, CUDA_PLUGINS)):
        return "there is an NVIDIA GPU, but JAX's CUDA plugin is not installed"
    return None


def gpu_count(environment: Mapping[str, str], devices: Path) -> int:
    """How many NVIDIA GPUs a process here sees; 0 where the device files do not tell."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named:
        return len(named.split(","))
    return sum(1 for _ in devices.glob("nvidia[0-9]*"))


def has_tpu(platforms: str | None, devices: Path) -> bool:
    """Whether JAX will use a TPU."""
    if platforms and "tpu" not in platforms.split(","):
        return False
    files = any(devices.glob("accel[0-9]*")) or any((devices / "vfio").glob("[0-9]*"))
    return files and importlib.util.find_spec("libtpu") is not None
