"""The portable kernel, interpreted: against the reference, float64, and itself."""

import functools
import itertools
import warnings
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from ipt_jax.attention import pallas_gpu
from ipt_jax.attention.backends import attention
from ipt_jax.attention.block_sizes import BlockSizes, Tile, block_sizes
from ipt_jax.attention.pallas_gpu import pallas_attention
from ipt_jax.attention.reference import reference_attention
from ipt_jax.attention.spec import AttentionSpec, KeyRanges, key_ranges
from tests.attention_by_definition import by_definition, mask_of

TILES = BlockSizes(Tile(32, 16), Tile(16, 32), Tile(32, 16))


@dataclass(frozen=True)
class Shape:
    """Two rows; everything that makes a kernel a new one."""

    length: int
    kv_heads: int
    group: int
    width: int
    softcap: float | None = None
    scale: float | None = None
    dtype: str = "float32"


@functools.cache
def results(backend: str, shape: Shape):
    """Output and all gradients, as one compiled function of arrays and ranges.

    Both mask by the ranges alone, so that one program serves every mask.
    """
    spec = AttentionSpec(causal=False, segments=True, scale=shape.scale, softcap=shape.softcap)

    def run(q, k, v, d_out, ranges: KeyRanges):
        def function(q, k, v):
            if backend == "reference":
                return reference_attention(q, k, v, spec, ranges)
            return pallas_attention(q, k, v, spec, ranges, interpret=True, sizes=TILES)

        out, backward = jax.vjp(function, q, k, v)
        return out, *backward(d_out)

    return jax.jit(run)


def arrays(shape: Shape, seed: int = 0) -> tuple[jax.Array, ...]:
    random = np.random.default_rng(seed)
    heads = shape.kv_heads * shape.group, shape.kv_heads, shape.kv_heads, None
    sizes = [(2, shape.length, n or heads[0], shape.width) for n in heads]
    return tuple(jnp.asarray(random.normal(size=size), shape.dtype) for size in sizes)


def both_rows(spec: AttentionSpec, ids: np.ndarray | None, length: int) -> KeyRanges:
    ranges = key_ranges(spec, ids, length)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (2, length)), ranges)


def relative(found, expected) -> float:
    """The largest error by the largest number, or by 1, the size of what came in.

    The gradients of a query that sees one key vanish: there only rounding is left.
    """
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert np.isfinite(found).all()
    return float(np.max(np.abs(found - expected)) / max(np.max(np.abs(expected)), 1.0))


def segments(length: int, *sizes: int) -> np.ndarray:
    """A row of segments of these sizes, then padding; the other row: one segment."""
    ids = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    ids = np.pad(ids, (0, length - len(ids)))
    return np.stack([ids, np.ones(length)]).astype(np.int32)


def masks(length: int) -> dict[str, tuple[AttentionSpec, np.ndarray | None]]:
    one_token = np.stack([np.arange(1, length + 1), np.arange(length)]).astype(np.int32)
    packed = segments(length, 7, 1, length - 20)
    return {
        "causal": (AttentionSpec(), None),
        "full": (AttentionSpec(causal=False), None),
        "window below a tile": (AttentionSpec(window=5), None),
        "window above a tile": (AttentionSpec(window=27), None),
        "one-token segments": (AttentionSpec(segments=True), one_token),
        "packed, padded": (AttentionSpec(segments=True), packed),
        "packed, window": (AttentionSpec(segments=True, window=11), packed),
        "packed, full": (AttentionSpec(segments=True, causal=False), packed),
        "padding alone": (AttentionSpec(segments=True), segments(length)),
    }


SHAPES = [
    Shape(70, kv_heads=2, group=1, width=64),
    Shape(64, kv_heads=1, group=3, width=96, scale=0.2),
    Shape(49, kv_heads=1, group=4, width=128, softcap=3.0),
    Shape(33, kv_heads=2, group=8, width=24),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference_in_value_and_gradients(shape):
    for name, (spec, ids) in masks(shape.length).items():
        given = *arrays(shape), both_rows(spec, ids, shape.length)
        ours, theirs = (results(backend, shape)(*given) for backend in ("pallas", "reference"))
        errors = [relative(our, their) for our, their in zip(ours, theirs, strict=True)]
        assert max(errors) <= 1e-5, (name, errors)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    rate=st.sampled_from([0.0, 0.03, 0.3, 1.0]),
    padding=st.integers(0, 70),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 6, 16, 33, 90]),
)
def test_equals_the_reference_on_drawn_rows(seed, rate, padding, causal, window):
    shape = SHAPES[0]
    random = np.random.default_rng(seed)
    ids = 1 + np.cumsum(random.random((2, 70)) < rate, 1).astype(np.int32)
    ids[0, 70 - padding :] = 0
    spec = AttentionSpec(causal, window if causal else None, segments=True)
    given = *arrays(shape, seed), both_rows(spec, ids, 70)
    for our, their in zip(
        results("pallas", shape)(*given), results("reference", shape)(*given), strict=True
    ):
        assert relative(our, their) <= 1e-5
    out, d_q, d_k, d_v = results("pallas", shape)(*given)
    for array in (out, d_q, d_k, d_v):
        assert not np.any(np.asarray(array)[0, 70 - padding :])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_as_near_to_float64_as_the_reference(dtype):
    shape = Shape(40, kv_heads=1, group=3, width=16, dtype=dtype)
    ids = segments(40, 9, 31)
    given = arrays(shape)
    spec = AttentionSpec(segments=True)
    exact = by_definition(*given, mask_of(spec, ids, 2, 40), 16**-0.5)
    ranges = both_rows(spec, ids, 40)
    ours, theirs = (results(backend, shape)(*given, ranges) for backend in ("pallas", "reference"))
    for our, their, expected in zip(ours, theirs, exact, strict=True):
        assert our.dtype == jnp.dtype(dtype)
        rounding = 0.5 * float(jnp.finfo(dtype).eps)
        assert relative(our, expected) <= 1.25 * relative(their, expected) + rounding


def test_each_segment_gets_what_it_would_get_alone():
    shape, sizes = SHAPES[0], (35, 35)
    given = arrays(shape)
    spec = AttentionSpec(segments=True)
    packed = results("pallas", shape)(*given, both_rows(spec, segments(70, *sizes), 70))
    first = 0
    for size in sizes:
        alone = Shape(size, shape.kv_heads, shape.group, shape.width)
        piece = slice(first, first + size)
        parts = tuple(x[:, piece] for x in given)
        expected = results("pallas", alone)(*parts, both_rows(AttentionSpec(), None, size))
        for whole, part in zip(packed, expected, strict=True):
            np.testing.assert_allclose(whole[0, piece], part[0], rtol=0, atol=1e-6)
        first += size


def poisoned(given: tuple, ranges: KeyRanges, place: slice, names: str) -> tuple:
    """Results with NaN at `place` of the arrays named by letters: q, k, v, d."""
    arrays = [
        x.at[:, place].set(jnp.nan) if name in names else x
        for name, x in zip("qkvd", given, strict=True)
    ]
    return results("pallas", SHAPES[0])(*arrays, ranges)


def test_what_nobody_sees_is_not_even_loaded():
    """Masking would let a NaN through (0 · NaN); a tile that is skipped does not."""
    given = arrays(SHAPES[0])
    spec = AttentionSpec(segments=True)
    ranges = both_rows(spec, np.tile(segments(70, 32, 38)[0], (2, 1)), 70)
    clean = results("pallas", SHAPES[0])(*given, ranges)
    second_gone = poisoned(given, ranges, slice(32, 70), "qkvd")
    first_gone = poisoned(given, ranges, slice(0, 32), "qkvd")
    for whole, first, second in zip(clean, second_gone, first_gone, strict=True):
        np.testing.assert_array_equal(whole[:, :32], first[:, :32])
        np.testing.assert_array_equal(whole[:, 32:], second[:, 32:])
    # Causal: later keys for earlier queries, earlier queries for later keys.
    ranges = both_rows(AttentionSpec(), None, 70)
    clean = results("pallas", SHAPES[0])(*given, ranges)
    out, d_q, _, _ = poisoned(given, ranges, slice(32, 70), "kv")
    np.testing.assert_array_equal(out[:, :32], clean[0][:, :32])
    np.testing.assert_array_equal(d_q[:, :32], clean[1][:, :32])
    _, _, d_k, d_v = poisoned(given, ranges, slice(0, 32), "qd")
    np.testing.assert_array_equal(d_k[:, 32:], clean[2][:, 32:])
    np.testing.assert_array_equal(d_v[:, 32:], clean[3][:, 32:])
    # A window: keys that have left it, queries that have moved on.
    ranges = both_rows(AttentionSpec(window=5), None, 70)
    clean = results("pallas", SHAPES[0])(*given, ranges)
    out, d_q, _, _ = poisoned(given, ranges, slice(0, 32), "kv")
    np.testing.assert_array_equal(out[:, 64:], clean[0][:, 64:])
    np.testing.assert_array_equal(d_q[:, 64:], clean[1][:, 64:])
    _, _, d_k, d_v = poisoned(given, ranges, slice(64, 70), "qd")
    np.testing.assert_array_equal(d_k[:, :32], clean[2][:, :32])
    np.testing.assert_array_equal(d_v[:, :32], clean[3][:, :32])


def lowered(kind: str, dtype: str, width: int, softcap: float | None) -> str:
    """The three kernels' programs for a GPU of this kind, made without one."""
    device = AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
    q = jax.ShapeDtypeStruct((2, 500, 2, 3, width), jnp.dtype(dtype))
    k = jax.ShapeDtypeStruct((2, 500, 2, width), jnp.dtype(dtype))
    sums = jax.ShapeDtypeStruct((2, 2, 3, 500), jnp.float32)
    ranges = [jax.ShapeDtypeStruct((2, 500), jnp.int32)] * 2
    back = q, k, k, q, sums, sums, *ranges
    sizes = block_sizes(width, jnp.dtype(dtype).itemsize, 500, kind)
    text = ""
    for kernel, tile, operands in (
        (pallas_gpu.forward, sizes.forward, (q, k, k, *ranges)),
        (pallas_gpu.d_query, sizes.d_query, back),
        (pallas_gpu.d_key_value, sizes.d_key_value, back),
    ):
        function = functools.partial(kernel, pallas_gpu.KernelConfig(0.1, softcap, tile))
        with (
            use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device)),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", DeprecationWarning)  # Pallas' Triton backend
            text += jax.jit(function).trace(*operands).lower(lowering_platforms=("cuda",)).as_text()
    return text


@pytest.mark.parametrize(
    ("kind", "dtype", "width", "softcap"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 128, None),
        ("NVIDIA A100-SXM4-80GB", "float32", 64, None),
        ("NVIDIA H100 80GB HBM3", "float16", 96, 30.0),
    ],
)
def test_lowers_for_gpus_without_one(kind, dtype, width, softcap):
    text = lowered(kind, dtype, width, softcap)
    assert text.count("@__gpu$xla.gpu.triton") == 3
    for name in ("_forward_kernel", "_d_query_kernel", "_d_key_value_kernel"):
        assert name in text
    assert "atomic" not in text  # sums of more than one program would come in any order


def test_two_backward_passes_give_the_same_bits():
    shape = SHAPES[1]
    given = *arrays(shape), both_rows(AttentionSpec(), None, shape.length)
    one, two = (results("pallas", shape)(*given) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_by_its_name_and_under_rematerialisation_that_keeps_it():
    shape = Shape(40, kv_heads=1, group=2, width=16)
    q, k, v, d_out = arrays(shape)
    spec, ids = AttentionSpec(segments=True, window=9), segments(40, 9, 25)

    def loss(backend, q, k, v):
        return jnp.vdot(attention(q, k, v, spec, ids, backend), d_out)

    expected = jax.grad(functools.partial(loss, "reference"), (0, 1, 2))(q, k, v)
    policy = jax.checkpoint_policies.save_only_these_names("attention")
    kept = jax.checkpoint(functools.partial(loss, "pallas_interpret"), policy=policy)
    gradient = jax.jit(jax.grad(kept, (0, 1, 2)))
    for our, their in zip(gradient(q, k, v), expected, strict=True):
        assert relative(our, their) <= 1e-5
    # Nothing of the forward kernel runs again: where it stands a second time nobody uses it.
    used = kernels_used(jax.make_jaxpr(gradient)(q, k, v).jaxpr)
    assert sorted(used) == ["attention_d_key_value", "attention_d_query", "attention_forward"]


def kernels_used(program) -> list[str]:
    """The kernels of a program and of those in it whose results somebody reads."""
    found: list[str] = []
    read = {id(v) for equation in program.eqns for v in equation.invars}
    read |= {id(v) for v in program.outvars}
    for equation in program.eqns:
        if equation.primitive.name == "pallas_call":
            if any(id(v) in read for v in equation.outvars):
                found.append(str(equation.params["name"]))
            continue
        for inner in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found += kernels_used(inner)
    return found


def test_tiles_of_the_table():
    kinds = ("NVIDIA A100-SXM4-80GB", "NVIDIA H200")
    shapes = ((64, 2), (96, 2), (128, 2), (64, 4), (128, 4))
    for kind, (width, bytes_a_number) in itertools.product(kinds, shapes):
        sizes = block_sizes(width, bytes_a_number, 4096, kind)
        assert sizes.measured == ""  # until somebody has timed them
        for tile in (sizes.forward, sizes.d_query, sizes.d_key_value):
            # Two tiles in flight of what the loop reads, beside what stays: an A100's 163 KiB.
            stays, moves = sorted((tile.queries, tile.keys), reverse=True)
            numbers = (2 * stays + 2 * tile.stages * moves) * 128
            assert numbers * bytes_a_number <= 163 * 1024
    # Others than an H100's would spill registers there.
    assert {block_sizes(width, 2, 4096, kinds[0]).forward.queries for width in (96, 128)} == {64}
    assert block_sizes(64, 2, 4096, kinds[0]).d_key_value == Tile(64, 32)
    short = block_sizes(64, 2, 20, "NVIDIA H200")
    assert (short.forward.queries, short.forward.keys) == (32, 32)
    assert block_sizes(64, 2, 3, "any").d_query.queries == 16
    with pytest.raises(ValueError, match="no row for heads 200 wide"):
        block_sizes(200, 2, 128, "NVIDIA A100")
    with pytest.raises(ValueError, match="48 is not a power of 2"):
        Tile(48, 16)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_a_gpu_it_equals_the_reference(shape):
    for spec, ids in masks(shape.length).values():
        q, k, v, d_out = arrays(shape)
        spec = AttentionSpec(
            spec.causal, spec.window, spec.segments, scale=shape.scale, softcap=shape.softcap
        )

        def run(backend):
            _, backward = jax.vjp(lambda *a: attention(*a, spec, ids, backend), q, k, v)  # noqa: B023
            return backward(d_out)  # noqa: B023

        with jax.default_matmul_precision("highest"):
            for our, their in zip(run("pallas"), run("reference"), strict=True):
                assert relative(our, their) <= 1e-5
