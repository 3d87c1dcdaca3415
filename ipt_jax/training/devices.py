"""Accelerators whose peak speed and memory we know, found again by JAX's `device_kind`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Device:
    """One accelerator as its maker's data sheet describes it."""

    name: str
    """Its key in DEVICES, as configs write it."""
    kinds: tuple[str, ...]
    """Regular expressions; one of them matches the whole of `jax.Device.device_kind`."""
    peak_flops: float
    """Dense bfloat16 FLOP/s with float32 accumulation; sheets that count sparsity give twice it."""
    memory_bytes: float
    """Memory of one device."""
    source: str
    """Where both figures come from."""


_A100 = "NVIDIA A100 80GB data sheet, 2021: BFLOAT16 Tensor Core 312 TFLOPS dense"
_H100 = "NVIDIA H100 data sheet, 2023, with sparsity halved"
_H200 = "NVIDIA H200 data sheet, 2024, with sparsity halved"
_CLOUD = "Google Cloud TPU documentation, system architecture"

# Whole-name patterns: a MIG slice ("… MIG 3g.40gb") or another board of the same chip has another
# peak, and no figure is better than a wrong one.
DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device(
            "a100_40",
            (r"NVIDIA A100-SXM4-40GB", r"NVIDIA A100-PCI[Ee]-40GB"),
            312e12,
            40e9,
            _A100,
        ),
        Device(
            "a100_80",
            (r"NVIDIA A100-SXM4-80GB", r"NVIDIA A100-PCI[Ee]-80GB", r"NVIDIA A100 80GB PCIe"),
            312e12,
            80e9,
            _A100,
        ),
        Device("h100", (r"NVIDIA H100 80GB HBM3",), 989e12, 80e9, f"{_H100}: SXM 1,979"),
        Device("h100_pcie", (r"NVIDIA H100 PCIe",), 756e12, 80e9, f"{_H100}: PCIe 1,513"),
        Device("h100_nvl", (r"NVIDIA H100 NVL",), 835e12, 94e9, f"{_H100}: NVL 1,671"),
        Device("h200", (r"NVIDIA H200",), 989e12, 141e9, f"{_H200}: SXM 1,979"),
        Device("h200_nvl", (r"NVIDIA H200 NVL",), 835e12, 141e9, f"{_H200}: NVL 1,671"),
        # On v4 and v5p JAX shows one device a chip (both cores together); v5e and v6e have one.
        Device("tpu_v4", (r"TPU v4",), 275e12, 32e9, f"{_CLOUD}: v4"),
        Device("tpu_v5e", (r"TPU v5 lite", r"TPU v5e"), 197e12, 16e9, f"{_CLOUD}: v5e"),
        Device("tpu_v5p", (r"TPU v5", r"TPU v5p"), 459e12, 95e9, f"{_CLOUD}: v5p"),
        Device("tpu_v6e", (r"TPU v6 lite", r"TPU v6e"), 918e12, 32e9, f"{_CLOUD}: v6e"),
    )
}


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
