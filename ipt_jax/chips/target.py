"""For which devices a program is compiled: the one place that attention, kernels and plans ask.

JAX can compile for a chip that is not there (`ipt_jax.chips.topology`); its default backend is then
another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import Mesh

from ipt_jax.chips.devices import Device, device_of


@dataclass(frozen=True)
class Target:
    """What a program is compiled for."""

    platform: str
    """As JAX calls it: cpu, gpu or tpu."""
    kind: str
    """`device_kind`, as its maker calls it."""
    capability: str = ""
    """A GPU's compute capability, as `9.0`."""
    cores: int = 0
    """A GPU's streaming multiprocessors."""
    mesh: Mesh | None = field(default=None, compare=False)
    """The devices together; None: one."""

    @classmethod
    def of(cls, devices: Any) -> Target:
        """That of a jax.Device, or of the devices of a mesh, which are alike."""
        mesh = devices if isinstance(devices, Mesh) else None
        device: Any = devices if mesh is None else mesh.devices.flat[0]
        return cls(
            device.platform,
            device.device_kind,
            str(getattr(device, "compute_capability", "")),
            int(getattr(device, "core_count", None) or 0) if device.platform == "gpu" else 0,
            mesh,
        )

    @property
    def device_kind(self) -> str:
        """The kind, by the name that `device_of` knows."""
        return self.kind

    @property
    def major(self) -> int:
        """Of an NVIDIA GPU's compute capability; 0 elsewhere."""
        first = self.capability.partition(".")[0]
        return int(first) if self.platform == "gpu" and first.isdecimal() else 0

    @property
    def known(self) -> Device | None:
        """Its data sheet, where we have it."""
        return device_of(self)

    def size(self, axis: str) -> int:
        """Devices along an axis of the mesh; 1 without one."""
        return 1 if self.mesh is None else self.mesh.shape.get(axis, 1)


_TARGET: ContextVar[Target | None] = ContextVar("target", default=None)


def target() -> Target:
    """As the innermost `compiling_for` says, else this process's first device."""
    return _TARGET.get() or Target.of(jax.local_devices()[0])


@contextmanager
def compiling_for(what: Target) -> Iterator[None]:
    """Functions that are traced in the body are traced for `what`."""
    token = _TARGET.set(what)
    try:
        yield
    finally:
        _TARGET.reset(token)
