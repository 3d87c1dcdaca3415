"""The Hopper kernels: simulated on the host, lowered for CUDA, refused elsewhere. None ran."""

import functools
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipt_jax.attention import pallas_hopper
from ipt_jax.attention.hopper_machine import in_range
from ipt_jax.attention.pallas_hopper import Tiles, Tuning, fits, pallas_hopper_attention
from ipt_jax.attention.spec import AttentionSpec, KeyRanges, key_ranges
from tests.attention_by_definition import by_definition, mask_of

SMALL = Tuning(Tiles(64, 3, True), Tiles(64, 2), Tiles(64, 2))
IN_PLACE = Tuning(*(replace(x, in_place=True) for x in (SMALL.forward, SMALL.dq, SMALL.dkv)))


def _arrays(
    shape: tuple[int, int, int, int, int], dtype: str = "bfloat16"
) -> tuple[jax.Array, ...]:
    B, T, H, K, h = shape
    generator = np.random.default_rng(0)
    heads = (H, K, K, H)
    return tuple(jnp.asarray(generator.normal(size=(B, T, n, h)), dtype) for n in heads)


def _distance(found: jax.Array, expected: np.ndarray) -> float:
    found64 = np.asarray(found, np.float64)
    assert np.isfinite(found64).all()
    return float(np.linalg.norm(found64 - expected) / np.linalg.norm(expected))


def _races() -> bool:
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    return interpret_pallas_call.get_races().races_found


@pytest.mark.parametrize("tuning", [SMALL, IN_PLACE], ids=["beside", "in place"])
def test_packed_windowed_rows_equal_the_definition_and_no_memory_is_raced_for(tuning):
    """All at once: GQA, segments, window, padding, a length that fits no tile, several turns."""
    arrays = _arrays((1, 136, 2, 1, 64))
    ids = np.repeat(np.array([1, 2, 3, 4, 0], np.int32), [3, 62, 1, 54, 16])[None]
    spec = AttentionSpec(segments=True, window=50, scale=0.2)
    ranges = key_ranges(spec, jnp.asarray(ids), 136)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return pallas_hopper_attention(
            q, k, v, spec, ranges, blocks=3, tuning=tuning, interpret=True
        )

    out, backward = jax.vjp(attend, *arrays[:3])
    found = (out, *backward(arrays[3]))
    expected = by_definition(*arrays, mask_of(spec, ids, 1, 136), 0.2)
    distances = [_distance(*pair) for pair in zip(found, expected, strict=True)]
    # bfloat16 has 8 bits: 2⁻⁹ = 0.002 of rounding in the output, more where products are rounded.
    assert max(distances) < 0.005, distances
    for x in found:
        assert not np.asarray(x, np.float32)[:, 120:].any(), (
            "padding gets nothing and gives nothing"
        )
    assert not _races()


def test_a_tile_larger_than_the_row_and_unmasked_tiles_of_float16():
    arrays = _arrays((1, 128, 1, 1, 64), "float16")[:3]
    spec = AttentionSpec(causal=False)
    tuning = Tuning(forward=Tiles(64, 2, False))
    ranges = key_ranges(spec, None, 128)
    out = pallas_hopper_attention(*arrays, spec, ranges, blocks=1, tuning=tuning, interpret=True)
    assert out.dtype == jnp.float16
    expected = by_definition(*arrays, arrays[0], mask_of(spec, None, 1, 128), 1 / 8)[0]
    assert _distance(out, expected) < 0.0006  # float16 has 11 bits


def test_rows_that_see_nothing_among_rows_that_see_something():
    """A third sees nothing, some by ranges that end before they begin; a third sees one key."""
    arrays = _arrays((1, 128, 1, 1, 64))
    row = np.arange(128)
    start = np.where(row % 3 == 0, 70, row // 2)
    stop = np.choose(row % 3, [np.where(row % 2, 70, 3), start + 1, 128])
    ranges = KeyRanges(*(jnp.asarray(x, jnp.int32)[None] for x in (start, stop, start, stop)))
    out = pallas_hopper_attention(
        *arrays[:3], AttentionSpec(causal=False), ranges, blocks=1, tuning=SMALL, interpret=True
    )
    seen = (row >= start[:, None]) & (row < stop[:, None])
    q, k, v = (np.asarray(x, np.float64)[0, :, 0] for x in arrays[:3])
    weights = np.exp(q @ k.T / 8) * seen
    expected = weights @ v / np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    assert _distance(out[0, :, 0], expected) < 0.005
    assert not np.asarray(out, np.float32)[0, ::3].any()
    np.testing.assert_array_equal(out[0, 1::3, 0], arrays[2][0, start[1::3], 0])


def test_one_comparison_masks_as_two_do():
    edges = (-4096, -65, -64, -63, -1, 0, 1, 5, 6, 7, 63, 64, 65, 127, 128, 200, 4096)
    start, stop = (jnp.asarray(x, jnp.int32).reshape(-1, 1) for x in np.meshgrid(edges, edges))
    for columns in (64, 128):
        column = jnp.broadcast_to(jnp.arange(columns, dtype=jnp.int32), (len(start), columns))
        found = in_range(column, start, jnp.maximum(stop - start, 0))
        np.testing.assert_array_equal(found, (column >= start) & (column < stop))


@pytest.mark.parametrize("columns", [0, 32, 96, 160])
def test_tiles_are_multiples_of_64(columns):
    with pytest.raises(ValueError, match=f"^Tiles: columns={columns} is not a multiple of 64"):
        Tiles(columns)


@pytest.mark.parametrize("head_width", pallas_hopper.HEAD_WIDTHS)
def test_all_three_kernels_lower_for_cuda_with_the_sizes_of_the_table(head_width):
    """Register layouts and shared memory are checked then; the assembler comes on the GPU."""
    arrays = _arrays((2, 512, 4, 2, head_width))
    spec = AttentionSpec(window=300)
    ranges = key_ranges(spec, None, 512)

    def both(q: jax.Array, k: jax.Array, v: jax.Array, d_out: jax.Array) -> tuple:
        def attend(*arrays: jax.Array) -> jax.Array:
            return pallas_hopper_attention(*arrays, spec, ranges, blocks=132)

        out, backward = jax.vjp(attend, q, k, v)
        return out, *backward(d_out)

    text = jax.jit(both).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    kernels = [line for line in text.splitlines() if "custom_call @mosaic_gpu" in line]
    assert len(kernels) == 3
    for line in kernels:
        assert "wgmma.mma_async.sync.aligned" in line and "setmaxnreg" in line


@pytest.mark.parametrize(
    ("kernel", "width", "tiles", "good"),
    [
        ("forward", 128, Tiles(128, 3, in_place=True), False),
        ("forward", 96, Tiles(128, 4), False),
        ("forward", 96, Tiles(128, 4, in_place=True), True),
        ("dq", 128, Tiles(128, 2), False),
        ("dq", 128, Tiles(128, 2, in_place=True), True),
        ("dkv", 128, Tiles(64, 3), False),
        ("dkv", 128, Tiles(64, 4, in_place=True), True),
    ],
)
def test_what_fits_in_shared_memory_is_known_before_it_is_built(kernel, width, tiles, good):
    assert fits(kernel, width, tiles) == good
    tuning = replace(pallas_hopper.TUNINGS[width], **{kernel: tiles})
    setting = pallas_hopper.HopperConfig(0.1, tuning, blocks=132)
    q, k = _arrays((1, 512, 1, 1, width))[:2]
    q, sums = q[:, :, :, None], jnp.zeros((1, 1, 1, 512), jnp.float32)
    both = [jnp.zeros((1, 512), jnp.int32)] * 2
    function, given = {
        "forward": (pallas_hopper.forward, (q, k, k)),
        "dq": (pallas_hopper.d_query, (q, k, k, q, sums, sums)),
        "dkv": (pallas_hopper.d_key_value, (q, k, k, q, sums, sums)),
    }[kernel]
    traced = jax.jit(functools.partial(function, setting)).trace(*given, *both)
    if good:
        traced.lower(lowering_platforms=("cuda",))
    else:
        with pytest.raises(ValueError, match="exceeds available shared memory"):
            traced.lower(lowering_platforms=("cuda",))


def test_sizes_of_the_table_fit_and_more_registers_than_there_are_do_not():
    for width, tuning in pallas_hopper.TUNINGS.items():
        for kernel in ("forward", "dq", "dkv"):
            assert fits(kernel, width, getattr(tuning, kernel))
    assert not fits("dkv", 96, Tiles(128, 2)) and fits("dkv", 64, Tiles(128, 2))
    assert fits("forward", 96, Tiles(256, 2, in_place=True))
    assert not fits("dq", 64, Tiles(256, 2)) and not fits("forward", 64, Tiles(192, 2))


def test_a_scale_that_the_softmax_cannot_have_is_refused():
    arrays, spec = _arrays((1, 64, 1, 1, 64), "bfloat16")[:3], AttentionSpec(scale=-1.0)
    with pytest.raises(ValueError, match=r"scale -1\.0 is not above 0"):
        pallas_hopper_attention(*arrays, spec, key_ranges(spec, None, 64), blocks=1)


def test_only_hopper_will_do(monkeypatch):
    arrays = _arrays((1, 64, 1, 1, 64))[:3]
    ranges = key_ranges(AttentionSpec(), None, 64)
    with pytest.raises(ValueError, match=r"needs a Hopper GPU .* this is cpu \(cpu\)"):
        pallas_hopper_attention(*arrays, AttentionSpec(), ranges)

    def one(capability: str) -> list[SimpleNamespace]:
        kind = {"platform": "gpu", "device_kind": "NVIDIA X", "core_count": 132}
        return [SimpleNamespace(compute_capability=capability, **kind)]

    for capability in ("8.0", "10.0"):
        monkeypatch.setattr(jax, "local_devices", lambda c=capability: one(c))
        with pytest.raises(ValueError, match=f"NVIDIA X .*capability {capability}"):
            pallas_hopper.multiprocessors()
    monkeypatch.setattr(jax, "local_devices", lambda: one("9.0"))
    assert pallas_hopper.multiprocessors() == 132


@pytest.mark.parametrize(("version", "bad"), [(12070, False), (12080, True), (12091, False)])
def test_the_assembler_that_miscompiles_masks_is_refused(version, bad, monkeypatch):
    from jax._src import lib

    kind = {"platform": "gpu", "device_kind": "NVIDIA X", "core_count": 7}
    device = SimpleNamespace(compute_capability="9.0", **kind)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    versions = SimpleNamespace(cuda_runtime_get_version=lambda: version)
    monkeypatch.setattr(lib, "cuda_versions", versions)
    if bad:
        with pytest.raises(ValueError, match="miscompiles"):
            pallas_hopper.multiprocessors()
    else:
        assert pallas_hopper.multiprocessors() == 7
