"""The accelerators that we know, those this machine has, and those a program is compiled for.

JAX can compile for a chip that is not there (`ipt_jax.chips.topology`); its default backend is then
another one. So attention, kernels and plans ask `target` for which devices they are compiled.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.sharding import Mesh


@dataclass(frozen=True)
class Gpu:
    """What XLA's compiler asks about an NVIDIA chip besides what `Device` has."""

    capability: str
    """Compute capability."""
    cores: int
    """Streaming multiprocessors."""
    clock_ghz: float
    """Highest clock of the scalar units."""
    matrix_clock_ghz: float
    """Clock of the tensor cores at which the data sheet's peak holds."""
    matrix_operations: int
    """Multiply-adds of 16-bit numbers a clock and tensor core; four cores a multiprocessor."""
    shared_bytes: int
    """Shared memory of a multiprocessor."""
    cache_bytes: int
    """Second-level cache."""

    def description(self, device: Device) -> str:
        """A `GpuTargetConfigProto` in text form, for `jax.experimental.topologies`."""
        major, minor = self.capability.split(".")
        # Instructions of one generation alone (Hopper's warpgroup products) have to be asked for.
        special = "feature_extension: ACCELERATED_FEATURES" if int(major) >= 9 else ""
        scalar = {4: (64, 1), 8: (64, 1), 10: (128, 2), 11: (128, 1), 12: (64, 1), 16: (128, 2)}
        half = self.matrix_operations
        # By XLA's number of a type: 16-bit floats, float32 as TF32, then 8-bit numbers.
        matrix = {10: half, 16: half, 11: half // 2} | dict.fromkeys((2, 6, 19, 20), 2 * half)

        def rates(clock: float, of: dict[int, tuple[int, int]]) -> str:
            return " ".join(
                f"rate_infos {{ key: {key} value {{ clock_rate_ghz: {clock} "
                f"units_per_core: {units} ops_per_clock: {operations} }} }}"
                for key, (units, operations) in of.items()
            )

        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              shared_memory_per_block: 49152 shared_memory_per_core: {self.shared_bytes}
              shared_memory_per_block_optin: {self.shared_bytes - 1024}
              core_count: {self.cores} fpus_per_core: {128 if int(major) >= 9 else 64}
              clock_rate_ghz: {self.clock_ghz} l2_cache_size: {self.cache_bytes}
              memory_bandwidth: {int(device.bandwidth)}
              device_memory_size: {int(device.memory_bytes)} ecc_enabled: true
              cuda_compute_capability {{ major: {major} minor: {minor} {special} }}
              scalar_unit_description {{ {rates(self.clock_ghz, scalar)} }}
              matrix_unit_description {{
                {rates(self.matrix_clock_ghz, {key: (4, n) for key, n in matrix.items()})}
              }}
              device_vendor: "NVIDIA Corporation" name: "{device.described_kind}"
              platform_version: "Compute Capability {self.capability}{"a" if special else ""}"
              device_address_bits: 64 pcie_bandwidth: 34359738368
              driver_version: "13.0.0" runtime_version: "13.0.0"
              compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
              device_interconnect_info {{ active_links: 18 }}
            }}
            platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
            device_description_str: "{device.described_kind}"
        """


@dataclass(frozen=True)
class Device:
    """One accelerator as its maker's data sheet describes it."""

    name: str
    """Its key in DEVICES, as configs write it."""
    kinds: tuple[str, ...]
    """Regular expressions; one of them matches the whole of `jax.Device.device_kind`."""
    described_kind: str
    """The device kind of one that is only described."""
    peak_flops: float
    """Dense bfloat16 FLOP/s with float32 accumulation; sheets that count sparsity give twice it."""
    memory_bytes: float
    """Memory of one device."""
    bandwidth: float
    """Bytes a second between it and its memory."""
    link_bandwidth: float
    """Bytes a second that it sends to its neighbours (NVLink, ICI), all links, one direction."""
    source: str
    """Where the figures come from."""
    gpu: Gpu | None = None
    """An NVIDIA chip's further facts."""
    tpu: str | None = None
    """A TPU's generation as libtpu's topologies name it."""

    @property
    def platform(self) -> str:
        """As JAX calls it: gpu or tpu."""
        return "gpu" if self.tpu is None else "tpu"


_A100 = "NVIDIA A100 80GB data sheet, 2021: BFLOAT16 Tensor Core 312 TFLOPS dense"
_H100 = "NVIDIA H100 data sheet, 2023, with sparsity halved"
_H200 = "NVIDIA H200 data sheet, 2024, with sparsity halved"
_B200 = "NVIDIA HGX B200 data sheet, 2025, an eighth of the board, with sparsity halved"
_CLOUD = "Google Cloud TPU documentation, system architecture"
_SM80 = Gpu("8.0", 108, 1.41, 1.41, 256, 167936, 41943040)
_SM90 = Gpu("9.0", 132, 1.98, 1.83, 512, 233472, 52428800)
_SM100 = Gpu("10.0", 148, 1.965, 1.835, 1024, 233472, 132644864)

# Whole-name patterns: a MIG slice ("… MIG 3g.40gb") or another board of the same chip has another
# peak, and no figure is better than a wrong one.
DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device(
            "a100_40", (r"NVIDIA A100-SXM4-40GB", r"NVIDIA A100-PCI[Ee]-40GB"),
            "NVIDIA A100-SXM4-40GB", 312e12, 40e9, 1.555e12, 300e9, _A100, _SM80,
        ),
        Device(
            "a100_80",
            (r"NVIDIA A100-SXM4-80GB", r"NVIDIA A100-PCI[Ee]-80GB", r"NVIDIA A100 80GB PCIe"),
            "NVIDIA A100-SXM4-80GB", 312e12, 80e9, 2.039e12, 300e9, f"{_A100}; SXM", _SM80,
        ),
        Device(
            "h100", (r"NVIDIA H100 80GB HBM3",), "NVIDIA H100 80GB HBM3",
            989e12, 80e9, 3.35e12, 450e9, f"{_H100}: SXM 1,979", _SM90,
        ),
        Device(
            "h100_pcie", (r"NVIDIA H100 PCIe",), "NVIDIA H100 PCIe",
            756e12, 80e9, 2.0e12, 64e9, f"{_H100}: PCIe 1,513",
            Gpu("9.0", 114, 1.755, 1.62, 512, 233472, 52428800),
        ),
        Device(
            "h100_nvl", (r"NVIDIA H100 NVL",), "NVIDIA H100 NVL",
            835e12, 94e9, 3.9e12, 300e9, f"{_H100}: NVL 1,671", _SM90,
        ),
        Device(
            "h200", (r"NVIDIA H200",), "NVIDIA H200",
            989e12, 141e9, 4.8e12, 450e9, f"{_H200}: SXM 1,979", _SM90,
        ),
        Device(
            "h200_nvl", (r"NVIDIA H200 NVL",), "NVIDIA H200 NVL",
            835e12, 141e9, 4.8e12, 450e9, f"{_H200}: NVL 1,671", _SM90,
        ),
        Device(
            "b200", (r"NVIDIA B200",), "NVIDIA B200",
            2250e12, 180e9, 7.7e12, 900e9, f"{_B200}: 36 PFLOPS", _SM100,
        ),
        # On v4 and v5p JAX shows one device a chip (both cores together); v5e and v6e have one.
        Device(
            "tpu_v4", (r"TPU v4",), "TPU v4",
            275e12, 32e9, 1.228e12, 300e9, f"{_CLOUD}: v4", tpu="v4",
        ),
        Device(
            "tpu_v5e", (r"TPU v5 lite", r"TPU v5e"), "TPU v5 lite",
            197e12, 16e9, 819e9, 200e9, f"{_CLOUD}: v5e", tpu="v5e",
        ),
        Device(
            "tpu_v5p", (r"TPU v5", r"TPU v5p"), "TPU v5",
            459e12, 95e9, 2.765e12, 600e9, f"{_CLOUD}: v5p", tpu="v5p",
        ),
        Device(
            "tpu_v6e", (r"TPU v6 lite", r"TPU v6e"), "TPU v6 lite",
            918e12, 32e9, 1.64e12, 448e9, f"{_CLOUD}: v6e", tpu="v6e",
        ),
    )
}  # fmt: skip


class HasKind(Protocol):
    """A jax.Device, as far as it matters here."""

    @property
    def device_kind(self) -> str:
        """What its maker calls it."""
        ...


def device_of(device: HasKind) -> Device | None:
    """What is known of a jax.Device; None for one whose peak we do not know, a CPU among them."""
    for known in DEVICES.values():
        if any(re.fullmatch(kind, device.device_kind) for kind in known.kinds):
            return known
    return None


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
