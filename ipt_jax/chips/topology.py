"""Devices that are not there, for which XLA compiles all the same: from a chip's description."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from ipt_jax.chips.devices import Device, Target, compiling_for
from ipt_jax.core.errors import UserError

GPUS_PER_HOST = 8
# Chips -> the block of a torus they make, by libtpu's names: two axes on v5e and v6e, three on v4
# and v5p. A host has four, so that is the smallest that libtpu describes.
_FLAT = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_DEEP = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}


def why_not(device: Device) -> str | None:
    """What must be installed to compile for this chip; None: its compiler is here."""
    if device.gpu is not None:
        if any(map(importlib.util.find_spec, ("jax_cuda13_plugin", "jax_cuda12_plugin"))):
            return None
        return "JAX's CUDA plugin is not installed (pip install 'ipt-jax[cuda]')"
    if importlib.util.find_spec("libtpu"):
        return None
    return "libtpu is not installed (pip install 'ipt-jax[tpu]')"


def described_devices(device: Device, count: int) -> list[Any]:
    """`count` devices of this kind, to make a mesh of and compile for; nothing runs on them.

    Raises:
      UserError: its compiler is not installed or does not take the description, or no block of a
        TPU's torus has so many chips.
    """
    if reason := why_not(device):
        raise UserError(f"compiling for {count} × {device.name}: {reason}.")
    if device.gpu is not None:
        hosts, left = divmod(count, GPUS_PER_HOST)
        shape = f"1x{hosts}x{GPUS_PER_HOST}" if hosts and not left else f"1x1x{count}"
        asked = {"topology": shape, "target_config": device.gpu.description(device)}
        platform, name = "cuda", device.name
    else:
        shapes = _DEEP if device.tpu in ("v4", "v5p") else _FLAT
        block = max(count, min(shapes))  # a part of the smallest block will do
        if block not in shapes:
            raise UserError(
                f"compiling for {count} × {device.name}: blocks of {', '.join(map(str, shapes))} "
                "chips can be described."
            )
        # It would ask Google's metadata server for half a minute where there is none, and let no
        # two processes compile side by side, nor one beside a training on this host's chips.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        asked, platform, name = {}, "tpu", f"{device.tpu}:{shapes[block]}"
    try:
        return list(topologies.get_topology_desc(name, platform, **asked).devices)[:count]
    except (RuntimeError, NotImplementedError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"compiling for {count} × {device.name}: JAX {jax.__version__} does not take the "
            f"description in ipt_jax/chips/devices.py ({first}); it was made for JAX 0.11."
        ) from error


def compiled_for(
    mesh: Mesh, function: jax.stages.Wrapped, *arguments: Any, options: Any = None
) -> jax.stages.Compiled:
    """`function` of abstract arguments, compiled for a mesh of described devices."""
    target = Target.of(mesh)
    # Kernels in Triton ask JAX, while they are lowered, for the mesh instead of a device.
    with compiling_for(target), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = function.lower(*arguments)
        if target.platform != "gpu":
            return lowered.compile(options)
        # Where no device can time them, a product's candidates are compiled for nothing, a third
        # of a step's compilation; temporaries and collectives came out the same without.
        try:
            return lowered.compile({**(options or {}), "xla_gpu_autotune_level": 0})
        except RuntimeError as error:  # products in float32 have no candidate to begin with
            if "No supported config" not in str(error):
                raise
            return lowered.compile(options)
