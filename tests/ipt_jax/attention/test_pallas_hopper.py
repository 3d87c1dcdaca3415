"""The Hopper kernels: simulated on the host, lowered for CUDA, refused elsewhere. None ran."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipt_jax.attention import pallas_hopper
from ipt_jax.attention.pallas_hopper import Tiles, Tuning, pallas_hopper_attention
from ipt_jax.attention.ranges import key_ranges
from ipt_jax.attention.spec import AttentionSpec

SMALL = Tuning(Tiles(32, 3, True), Tiles(32, 2), Tiles(32, 2))


def _arrays(
    shape: tuple[int, int, int, int, int], dtype: str = "bfloat16"
) -> tuple[jax.Array, ...]:
    B, T, H, K, h = shape
    generator = np.random.default_rng(0)
    heads = (H, K, K, H)
    return tuple(jnp.asarray(generator.normal(size=(B, T, n, h)), dtype) for n in heads)


def _by_definition(
    arrays: tuple[jax.Array, ...], spec: AttentionSpec, ids: np.ndarray | None
) -> list[np.ndarray]:
    """Output and the three gradients in float64."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in arrays)
    B, T, H, h = q.shape
    G = H // k.shape[2]
    k, v = (np.repeat(x, G, 2) for x in (k, v))
    t, s = np.arange(T)[:, None], np.arange(T)[None]
    seen = np.ones((B, T, T), bool)
    if spec.causal:
        seen &= s <= t
    if spec.window is not None:
        seen &= s > t - spec.window
    if ids is not None:
        seen &= (ids[:, :, None] == ids[:, None]) & (ids[:, :, None] > 0)
    scale = spec.scale or h**-0.5
    scores = np.where(seen[:, None], np.einsum("bthc,bshc->bhts", q, k) * scale, -np.inf)
    top = np.max(scores, -1, keepdims=True, initial=-1e30)
    weights = np.exp(scores - top)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    out = np.einsum("bhts,bshc->bthc", weights, v)
    d_weights = np.einsum("bthc,bshc->bhts", d_out, v)
    delta = np.einsum("bthc,bthc->bht", out, d_out)[..., None]
    d_scores = weights * (d_weights - delta) * scale
    d_k, d_v = (
        np.einsum("bhts,bthc->bshc", x, y).reshape(B, T, H // G, G, h).sum(3)
        for x, y in ((d_scores, q), (weights, d_out))
    )
    return [out, np.einsum("bhts,bshc->bthc", d_scores, k), d_k, d_v]


def _distance(found: jax.Array, expected: np.ndarray) -> float:
    found64 = np.asarray(found, np.float64)
    assert np.isfinite(found64).all()
    return float(np.linalg.norm(found64 - expected) / np.linalg.norm(expected))


def _races() -> bool:
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    return interpret_pallas_call.get_races().races_found


def test_packed_windowed_rows_equal_the_definition_and_no_memory_is_raced_for() -> None:
    """All at once: GQA, segments, window, padding, a length that fits no tile, several turns."""
    arrays = _arrays((1, 200, 2, 1, 64))
    ids = np.repeat(np.array([1, 2, 3, 4, 0], np.int32), [3, 110, 1, 70, 16])[None]
    spec = AttentionSpec(segments=True, window=50, scale=0.2)
    ranges = key_ranges(spec, jnp.asarray(ids), 200)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return pallas_hopper_attention(
            q, k, v, spec, ranges, blocks=3, tuning=SMALL, interpret=True
        )

    out, backward = jax.vjp(attend, *arrays[:3])
    found = (out, *backward(arrays[3]))
    expected = _by_definition(arrays, spec, ids)
    distances = [_distance(*pair) for pair in zip(found, expected, strict=True)]
    # bfloat16 has 8 bits: 2⁻⁹ = 0.002 of rounding in the output, more where products are rounded.
    assert max(distances) < 0.005, distances
    for x in found:
        assert not np.asarray(x, np.float32)[:, 184:].any(), (
            "padding gets nothing and gives nothing"
        )
    assert not _races()


def test_a_tile_larger_than_the_row_and_unmasked_tiles_of_float16() -> None:
    arrays = _arrays((1, 128, 1, 1, 64), "float16")[:3]
    spec = AttentionSpec(causal=False)
    tuning = Tuning(forward=Tiles(64, 2, False))
    ranges = key_ranges(spec, None, 128)
    out = pallas_hopper_attention(*arrays, spec, ranges, blocks=1, tuning=tuning, interpret=True)
    assert out.dtype == jnp.float16
    expected = _by_definition((*arrays, arrays[0]), spec, None)[0]
    assert _distance(out, expected) < 0.0006  # float16 has 11 bits


@pytest.mark.parametrize("head_width", pallas_hopper.HEAD_WIDTHS)
def test_all_three_kernels_lower_for_cuda_with_the_sizes_of_the_table(head_width: int) -> None:
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


def test_tiles_that_do_not_fit_in_shared_memory_are_refused_when_lowered() -> None:
    arrays = _arrays((1, 512, 1, 1, 128))[:3]
    ranges = key_ranges(AttentionSpec(), None, 512)

    def attend(*arrays: jax.Array) -> jax.Array:
        tuning = Tuning(forward=Tiles(128, 4))
        return pallas_hopper_attention(*arrays, AttentionSpec(), ranges, blocks=132, tuning=tuning)

    with pytest.raises(ValueError, match="exceeds available shared memory"):
        jax.jit(attend).trace(*arrays).lower(lowering_platforms=("cuda",))


@pytest.mark.parametrize(
    ("width", "dtype", "spec", "reason"),
    [
        (80, "bfloat16", AttentionSpec(), "head width 80 is none of 64, 96, 128"),
        (64, "float32", AttentionSpec(), "float32, float32, float32 are not all bfloat16"),
        (64, "bfloat16", AttentionSpec(softcap=30.0), "softcap is not built in"),
        (64, "bfloat16", AttentionSpec(scale=-1.0), r"scale -1\.0 is not above 0"),
    ],
)
def test_what_the_kernels_cannot_do_is_refused_with_the_reason(
    width: int, dtype: str, spec: AttentionSpec, reason: str
) -> None:
    arrays = _arrays((1, 64, 1, 1, width), dtype)[:3]
    with pytest.raises(ValueError, match=reason):
        pallas_hopper_attention(*arrays, spec, key_ranges(spec, None, 64), blocks=1)


def test_only_hopper_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_the_assembler_that_miscompiles_masks_is_refused(
    version: int, bad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jax._src import lib

    device = SimpleNamespace(compute_capability="9.0", platform="gpu", core_count=7)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    versions = SimpleNamespace(cuda_runtime_get_version=lambda: version)
    monkeypatch.setattr(lib, "cuda_versions", versions)
    if bad:
        with pytest.raises(ValueError, match="miscompiles"):
            pallas_hopper.multiprocessors()
    else:
        assert pallas_hopper.multiprocessors() == 7
