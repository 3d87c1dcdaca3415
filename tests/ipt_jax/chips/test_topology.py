"""Chips that are only described: what must be installed, and what cannot be described."""

import jax
import pytest

from ipt_jax.chips import topology
from ipt_jax.chips.devices import DEVICES, Target
from ipt_jax.chips.topology import compiled_for, described_devices, why_not
from ipt_jax.core.errors import UserError
from ipt_jax.models.sharding import MeshConfig, make_mesh


@pytest.mark.parametrize("name", [name for name, one in DEVICES.items() if one.gpu])
def test_every_gpu_has_a_description_with_its_facts(name):
    device = DEVICES[name]
    text = device.gpu.description(device)
    assert f"core_count: {device.gpu.cores}" in text and text.count("{") == text.count("}")
    assert f"memory_bandwidth: {int(device.bandwidth)}" in text
    assert text.count(f'"{device.described_kind}"') == 2
    # The tensor cores' figures are the sheet's peak: two operations a multiply-add.
    gpu = device.gpu
    peak = gpu.cores * 4 * gpu.matrix_operations * 2 * gpu.matrix_clock_ghz * 1e9
    assert peak == pytest.approx(device.peak_flops, rel=0.2)


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    for name, words in (("h200", r"ipt-jax\[cuda\]"), ("tpu_v5p", r"ipt-jax\[tpu\]")):
        assert why_not(DEVICES[name])
        with pytest.raises(UserError, match=f"compiling for 8 × {name}: .*{words}"):
            described_devices(DEVICES[name], 8)


def test_a_block_that_no_torus_has_is_refused(monkeypatch):
    monkeypatch.setattr(topology, "why_not", lambda device: None)
    with pytest.raises(UserError, match="12 × tpu_v5p: blocks of 4, 8, 16"):
        described_devices(DEVICES["tpu_v5p"], 12)


def test_a_description_that_xla_does_not_take_is_named(monkeypatch):
    monkeypatch.setattr(topology, "why_not", lambda device: None)

    def refuse(*_, **__):
        raise RuntimeError("Failed to parse GpuTargetConfigProto\nmore")

    monkeypatch.setattr(topology.topologies, "get_topology_desc", refuse)
    with pytest.raises(UserError, match="devices.py \\(Failed to parse GpuTargetConfigProto\\)"):
        described_devices(DEVICES["h200"], 8)


def test_hosts_and_blocks_are_what_the_count_makes(monkeypatch):
    monkeypatch.setattr(topology, "why_not", lambda device: None)
    asked = []

    class Found:
        devices = tuple(range(64))

    def note(name, platform, **more):
        asked.append((name, platform, more.get("topology")))
        return Found

    monkeypatch.setattr(topology.topologies, "get_topology_desc", note)
    for name, count in (("h200", 1), ("h200", 8), ("h200", 64), ("tpu_v5p", 1), ("tpu_v6e", 8)):
        assert len(described_devices(DEVICES[name], count)) == count
    assert asked == [
        ("h200", "cuda", "1x1x1"),
        ("h200", "cuda", "1x1x8"),
        ("h200", "cuda", "1x8x8"),
        ("v5p:2x2x1", "tpu", None),
        ("v6e:2x4", "tpu", None),
    ]


def test_a_target_is_read_off_a_device():
    class Described:
        platform, device_kind, compute_capability, core_count = "gpu", "NVIDIA H200", "9.0", 132

    found = Target.of(Described())  # type: ignore[arg-type]
    assert found == Target("gpu", "NVIDIA H200", "9.0", 132) and found.size("tensor") == 1
    assert found.known is DEVICES["h200"]


def test_products_without_a_first_candidate_are_compiled_with_autotuning(monkeypatch):
    tried = []

    class Lowered:
        def compile(self, options):
            tried.append(options)
            if "xla_gpu_autotune_level" in (options or {}):
                raise RuntimeError(said)
            return "compiled"

    class Function:
        def lower(self, *_):
            return Lowered()

    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    gpu = Target("gpu", "NVIDIA H200", "9.0", 132)
    monkeypatch.setattr(topology.Target, "of", staticmethod(lambda mesh: gpu))
    said = "INTERNAL: No supported config found for HLO: %gemm_fusion"
    assert compiled_for(mesh, Function(), options={"a": 1}) == "compiled"  # type: ignore[arg-type]
    assert tried == [{"a": 1, "xla_gpu_autotune_level": 0}, {"a": 1}]
    said = "RESOURCE_EXHAUSTED"
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        compiled_for(mesh, Function())  # type: ignore[arg-type]
