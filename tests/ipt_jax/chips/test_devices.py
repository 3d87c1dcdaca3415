"""The table of devices, by the names that JAX gives them."""

from dataclasses import dataclass

import jax
import pytest

from ipt_jax.chips.devices import DEVICES, device_of


@dataclass
class Kind:
    device_kind: str


@pytest.mark.parametrize(
    ("kind", "name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "h100", 989e12),
        ("NVIDIA H100 PCIe", "h100_pcie", 756e12),
        ("NVIDIA H100 NVL", "h100_nvl", 835e12),
        ("NVIDIA H200", "h200", 989e12),
        ("NVIDIA H200 NVL", "h200_nvl", 835e12),
        ("NVIDIA A100-SXM4-80GB", "a100_80", 312e12),
        ("NVIDIA A100 80GB PCIe", "a100_80", 312e12),
        ("NVIDIA A100-SXM4-40GB", "a100_40", 312e12),
        ("NVIDIA A100-PCIE-40GB", "a100_40", 312e12),
        ("TPU v4", "tpu_v4", 275e12),
        ("TPU v5 lite", "tpu_v5e", 197e12),
        ("TPU v5e", "tpu_v5e", 197e12),
        ("TPU v5", "tpu_v5p", 459e12),
        ("TPU v5p", "tpu_v5p", 459e12),
        ("TPU v6 lite", "tpu_v6e", 918e12),
        ("TPU v6e", "tpu_v6e", 918e12),
    ],
)
def test_a_device_is_found_by_its_kind(kind, name, peak):
    found = device_of(Kind(kind))
    assert found is not None and (found.name, found.peak_flops) == (name, peak)
    assert found is DEVICES[name] and found.source


@pytest.mark.parametrize(
    "kind",
    [
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",  # a slice has a part of the peak
        "NVIDIA H100",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA H20",
        "NVIDIA GeForce RTX 4090",
        "TPU v4 lite",
        "TPU v3",
    ],
)
def test_a_device_that_only_looks_alike_is_unknown(kind):
    assert device_of(Kind(kind)) is None


def test_this_machine():
    known = device_of(jax.devices()[0])
    assert (known is None) == (jax.devices()[0].device_kind == "cpu")


def test_the_dry_runs_names_stay():
    old = "a100_40 a100_80 h100 h200 tpu_v4 tpu_v5e tpu_v5p tpu_v6e".split()
    assert set(old) <= set(DEVICES)
    assert (DEVICES["h100"].memory_bytes, DEVICES["h200"].memory_bytes) == (80e9, 141e9)
