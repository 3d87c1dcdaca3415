"""Attention for GPUs in portable Pallas: forward, dq, and dk with dv.

Each program holds one tile of queries (keys, for dk and dv) and loops over the tiles of the other
side that the key ranges reach: what causality, window and segments leave out is never loaded, in
any of the three. Tiles that everyone sees whole are not masked. Query heads of a group read the
same keys, which are never repeated; dk and dv of a group are summed by one program in a fixed
order, so that two runs give the same bits. Between the passes only the log-sum-exp is kept
(FlashAttention-2, arXiv 2307.08691).

On JAX 0.11 this lowers through Pallas' Triton backend, which is deprecated; the Mosaic GPU backend
that follows it has no matrix product for an A100.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ipt_jax.attention.block_sizes import BlockSizes, Tile, block_sizes
from ipt_jax.attention.partition import on_devices
from ipt_jax.attention.spec import AttentionSpec, KeyRanges, tile_bounds
from ipt_jax.chips.devices import target

LOG2_E = math.log2(math.e)
# Scores are in base 2. A masked one lies so far below every running maximum that its weight is 0
# even before a query has seen a key; both are finite, so nothing becomes NaN.
MASKED, LOWEST = -1e30, -1e29


@dataclass(frozen=True)
class KernelConfig:
    """What is fixed when a kernel is compiled."""

    scale: float
    """Factor on the products of queries and keys."""
    softcap: float | None
    """Scores s become softcap · tanh(s / softcap); None: they stay."""
    tile: Tile
    """Tile sizes and launch settings."""
    interpret: bool = False
    """Run the kernel as plain JAX, on any device."""


Kernels = tuple[KernelConfig, KernelConfig, KernelConfig]  # forward, dq, and dk with dv


def pallas_attention(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    spec: AttentionSpec,
    ranges: KeyRanges,
    *,
    interpret: bool = False,
    sizes: BlockSizes | None = None,
) -> jax.Array:
    """See `ipt_jax.attention.backends.attention`; softmax and sums of products are float32."""
    B, T, H, h = q_BTHh.shape
    K = k_BTKh.shape[2]
    how = kernels(spec, h, q_BTHh.dtype.itemsize, T, interpret, sizes)
    ranges = jax.tree.map(lambda x: jnp.broadcast_to(x, (B, T)), ranges)
    q_BTKGh = q_BTHh.reshape(B, T, K, H // K, h)
    out_BTKGh: jax.Array = _attention(how, q_BTKGh, k_BTKh, v_BTKh, ranges)
    return out_BTKGh.reshape(q_BTHh.shape)


def kernels(
    spec: AttentionSpec,
    head_width: int,
    bytes_a_number: int,
    length: int,
    interpret: bool = False,
    sizes: BlockSizes | None = None,
) -> Kernels:
    """Forward, dq, and dk with dv for the target; `sizes` None: those of the table."""
    if sizes is None:
        sizes = block_sizes(head_width, bytes_a_number, length, target().kind)
    scale = spec.scale if spec.scale is not None else head_width**-0.5
    first, second, third = (
        KernelConfig(scale, spec.softcap, tile, interpret)
        for tile in (sizes.forward, sizes.d_query, sizes.d_key_value)
    )
    return first, second, third


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    how: Kernels, q: jax.Array, k: jax.Array, v: jax.Array, ranges: KeyRanges
) -> jax.Array:
    return _attention_forward(how, q, k, v, ranges)[0]


def _attention_forward(
    how: Kernels, q: jax.Array, k: jax.Array, v: jax.Array, ranges: KeyRanges
) -> tuple[jax.Array, Any]:
    out = on_devices(forward, how[0])(q, k, v, ranges.key_start, ranges.key_stop)
    # Named here, where the backward pass takes them from, so that a rematerialisation policy which
    # keeps "attention" keeps both and runs nothing of this again.
    out, log_sum = checkpoint_name(out, "attention")
    return out, (q, k, v, ranges, out, log_sum)


def _attention_backward(
    how: Kernels, residuals: Any, d_out: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    return *gradients(how, residuals, d_out, on_devices), None


_attention.defvjp(_attention_forward, _attention_backward)


def gradients(
    how: Kernels,
    residuals: Any,
    d_out: jax.Array,
    over_devices: Callable[..., Callable[..., Any]] = functools.partial,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """dq, dk, dv from q, k, v, their ranges, the output and its log-sums."""
    q, k, v, ranges, out, log_sum = residuals
    delta = jnp.einsum("btkgh,btkgh->bkgt", out, d_out, preferred_element_type=jnp.float32)
    given = q, k, v, d_out, log_sum, delta
    d_q = over_devices(d_query, how[1])(*given, ranges.key_start, ranges.key_stop)
    d_k, d_v = over_devices(d_key_value, how[2])(*given, ranges.query_start, ranges.query_stop)
    return d_q, d_k, d_v


def forward(
    how: KernelConfig, q: jax.Array, k: jax.Array, v: jax.Array, starts: jax.Array, stops: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The output [B, T, K, G, h] and each query's base-2 log-sum-exp [B, K, G, T], float32.

    `starts` and `stops` [B, T] are each query's keys. Queries and keys may differ in number.
    """
    length, tile = q.shape[1], how.tile
    q, starts, stops = (_whole_tiles(x, 1, tile.queries) for x in (q, starts, stops))
    k, v = (_whole_tiles(x, 1, tile.keys) for x in (k, v))
    B, T, K, G, h = q.shape
    blocks = _blocks_by_query(tile.queries, k.shape[1], G, h)
    out, log_sum = pl.pallas_call(
        functools.partial(_forward_kernel, how, h),
        grid=(T // tile.queries, K * G, B),
        in_specs=[blocks.queries, blocks.keys, blocks.keys, blocks.ranges, blocks.ranges],
        out_specs=[blocks.queries, blocks.sums],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((B, K, G, T), jnp.float32),
        ],
        **_launch(how, "attention_forward"),
    )(q, k, v, starts, stops)
    return out[:, :length], log_sum[..., :length]


def d_query(how: KernelConfig, *arrays: jax.Array) -> jax.Array:
    """The gradient of the queries; `starts` and `stops` are each query's keys."""
    q, k, v, d_out, log_sum, delta, starts, stops = arrays
    length, tile = q.shape[1], how.tile
    q, d_out, starts, stops = (_whole_tiles(x, 1, tile.queries) for x in (q, d_out, starts, stops))
    k, v = (_whole_tiles(x, 1, tile.keys) for x in (k, v))
    log_sum, delta = (_whole_tiles(x, 3, tile.queries) for x in (log_sum, delta))
    B, T, K, G, h = q.shape
    blocks = _blocks_by_query(tile.queries, k.shape[1], G, h)
    d_q = pl.pallas_call(
        functools.partial(_d_query_kernel, how, h),
        grid=(T // tile.queries, K * G, B),
        in_specs=[
            *(blocks.queries, blocks.keys, blocks.keys, blocks.queries),
            *(blocks.sums, blocks.sums, blocks.ranges, blocks.ranges),
        ],
        out_specs=blocks.queries,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        **_launch(how, "attention_d_query"),
    )(q, k, v, d_out, log_sum, delta, starts, stops)
    return d_q[:, :length]


def d_key_value(how: KernelConfig, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradients of keys and values; `starts` and `stops` are each key's queries."""
    q, k, v, d_out, log_sum, delta, starts, stops = arrays
    length, tile = k.shape[1], how.tile
    q, d_out = (_whole_tiles(x, 1, tile.queries) for x in (q, d_out))
    log_sum, delta = (_whole_tiles(x, 3, tile.queries) for x in (log_sum, delta))
    k, v, starts, stops = (_whole_tiles(x, 1, tile.keys) for x in (k, v, starts, stops))
    B, T, K, G, h = q.shape
    blocks = _blocks_by_key(tile.keys, T, G, h)
    d_k, d_v = pl.pallas_call(
        functools.partial(_d_key_value_kernel, how, h, G),
        grid=(k.shape[1] // tile.keys, K, B),
        in_specs=[
            *(blocks.queries, blocks.keys, blocks.keys, blocks.queries),
            *(blocks.sums, blocks.sums, blocks.ranges, blocks.ranges),
        ],
        out_specs=[blocks.keys, blocks.keys],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
        **_launch(how, "attention_d_key_value"),
    )(q, k, v, d_out, log_sum, delta, starts, stops)
    return d_k[:, :length], d_v[:, :length]


def _forward_kernel(
    how: KernelConfig, width: int, q_ref, k_ref, v_ref, start_ref, stop_ref, out_ref, sum_ref
) -> None:
    size = how.tile.keys
    q = _load(q_ref, width)
    starts, stops = start_ref[...], stop_ref[...]

    def visit(masked: bool, number: jax.Array, carry: tuple) -> tuple:
        out, top, total = carry
        here = pl.ds(number * size, size)
        k, v = _load(k_ref.at[here, :], width), _load(v_ref.at[here, :], width)
        scores, _ = _scores(how, q, k)
        if masked:
            scores = jnp.where(_seen(starts, stops, number, size), scores, MASKED)
        new_top = jnp.maximum(top, jnp.max(scores, 1))
        kept = jnp.exp2(top - new_top)
        weights = jnp.exp2(scores - new_top[:, None])
        out = out * kept[:, None] + _product(weights.astype(v.dtype), v, 1, 0)
        return out, new_top, total * kept + jnp.sum(weights, 1)

    rows = q.shape[0]
    nothing = jnp.zeros(q.shape, jnp.float32)
    carry = nothing, jnp.full((rows,), LOWEST, jnp.float32), jnp.zeros((rows,), jnp.float32)
    out, top, total = _over_tiles(tile_bounds(starts, stops, size), visit, carry)
    total = jnp.where(total > 0, total, 1.0)  # a query that saw nothing: its output stays 0
    _store(out_ref, out / total[:, None], width)
    sum_ref[...] = top + jnp.log2(total)


def _d_query_kernel(
    how: KernelConfig,
    width: int,
    *refs,
) -> None:
    q_ref, k_ref, v_ref, d_out_ref, sum_ref, delta_ref, start_ref, stop_ref, d_q_ref = refs
    size = how.tile.keys
    q, d_out = _load(q_ref, width), _load(d_out_ref, width)
    log_sum, delta = sum_ref[...], delta_ref[...]
    starts, stops = start_ref[...], stop_ref[...]

    def visit(masked: bool, number: jax.Array, d_q: jax.Array) -> jax.Array:
        here = pl.ds(number * size, size)
        k, v = _load(k_ref.at[here, :], width), _load(v_ref.at[here, :], width)
        scores, slope = _scores(how, q, k)
        if masked:
            scores = jnp.where(_seen(starts, stops, number, size), scores, MASKED)
        weights = jnp.exp2(scores - log_sum[:, None])
        d_weights = _product(d_out, v, 1, 1)
        d_scores = weights * (d_weights - delta[:, None]) * slope
        return d_q + _product(d_scores.astype(k.dtype), k, 1, 0)

    d_q = _over_tiles(tile_bounds(starts, stops, size), visit, jnp.zeros(q.shape, jnp.float32))
    _store(d_q_ref, d_q * how.scale, width)


def _d_key_value_kernel(how: KernelConfig, width: int, group: int, *refs) -> None:
    q_ref, k_ref, v_ref, d_out_ref, sum_ref, delta_ref, start_ref, stop_ref, *out_refs = refs
    size = how.tile.queries
    k, v = _load(k_ref, width), _load(v_ref, width)
    starts, stops = start_ref[...], stop_ref[...]
    bounds = tile_bounds(starts, stops, size)

    def visit(member: jax.Array, masked: bool, number: jax.Array, carry: tuple) -> tuple:
        d_k, d_v = carry
        here = pl.ds(number * size, size)
        q = _load(q_ref.at[here, member, :], width)
        d_out = _load(d_out_ref.at[here, member, :], width)
        log_sum, delta = sum_ref[member, here], delta_ref[member, here]
        # Keys lie along the first axis, so that no product waits for a transposed one.
        scores, slope = _scores(how, k, q)
        if masked:
            scores = jnp.where(_seen(starts, stops, number, size), scores, MASKED)
        weights = jnp.exp2(scores - log_sum[None])
        d_v += _product(weights.astype(d_out.dtype), d_out, 1, 0)
        d_weights = _product(v, d_out, 1, 1)
        d_scores = weights * (d_weights - delta[None]) * slope
        d_k += _product(d_scores.astype(q.dtype), q, 1, 0)
        return d_k, d_v

    def visit_member(member: jax.Array, carry: tuple) -> tuple:
        return _over_tiles(bounds, functools.partial(visit, member), carry)

    nothing = jnp.zeros(k.shape, jnp.float32)
    d_k, d_v = lax.fori_loop(0, group, visit_member, (nothing, nothing))
    for ref, gradient in zip(out_refs, (d_k * how.scale, d_v), strict=True):
        _store(ref, gradient, width)


def _over_tiles(bounds: tuple[jax.Array, ...], visit: Callable[..., Any], carry: Any) -> Any:
    """`visit(masked, number, carry)` on every tile within the bounds, in ascending order."""
    first, full_first, full_last, last = bounds
    carry = lax.fori_loop(first, full_first, functools.partial(visit, True), carry)
    carry = lax.fori_loop(full_first, full_last, functools.partial(visit, False), carry)
    return lax.fori_loop(full_last, last, functools.partial(visit, True), carry)


def _seen(starts: jax.Array, stops: jax.Array, number: jax.Array, size: int) -> jax.Array:
    """Which of the tile's `size` tokens lie in each range, [ranges, size]."""
    other = (number * size + lax.iota(jnp.int32, size))[None]
    return (starts[:, None] <= other) & (other < stops[:, None])


def _scores(how: KernelConfig, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array | float]:
    """Base-2 scores before masking, and how they grow with the scaled products (softcap)."""
    product = _product(a, b, 1, 1)
    if how.softcap is None:
        return product * (how.scale * LOG2_E), 1.0
    capped = jnp.tanh(product * (how.scale / how.softcap))
    return capped * (how.softcap * LOG2_E), 1 - capped * capped


def _product(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    # Float32 is asked for so that it is compared with: a GPU would otherwise round it to TF32.
    exact = a.dtype == jnp.float32
    return lax.dot_general(
        a,
        b,
        (((a_axis,), (b_axis,)), ((), ())),
        precision=lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.float32,
    )


def _inside(ref: Any, width: int) -> jax.Array | None:
    """Which columns of a tile, whose width is a power of 2, the array has; None: all."""
    rows, columns = ref.shape
    if columns == width:
        return None
    return jnp.broadcast_to((lax.iota(jnp.int32, columns) < width)[None], (rows, columns))


def _load(ref: Any, width: int) -> jax.Array:
    mask = _inside(ref, width)
    return triton.load(ref, mask=mask, other=None if mask is None else 0.0)


def _store(ref: Any, value: jax.Array, width: int) -> None:
    triton.store(ref, value.astype(ref.dtype), mask=_inside(ref, width))


@dataclass(frozen=True)
class _BlockSpecs:
    """Which piece of each array a program is given."""

    queries: pl.BlockSpec
    keys: pl.BlockSpec
    sums: pl.BlockSpec
    ranges: pl.BlockSpec


def _blocks_by_query(tile: int, keys: int, group: int, width: int) -> _BlockSpecs:
    """For programs (query tile, query head, row): all keys of the head's group."""
    columns = pl.next_power_of_2(width)

    def head(n):
        return lax.div(n, group), lax.rem(n, group)

    return _BlockSpecs(
        pl.BlockSpec((None, tile, None, None, columns), lambda i, n, b: (b, i, *head(n), 0)),
        pl.BlockSpec((None, keys, None, columns), lambda i, n, b: (b, 0, head(n)[0], 0)),
        pl.BlockSpec((None, None, None, tile), lambda i, n, b: (b, *head(n), i)),
        pl.BlockSpec((None, tile), lambda i, n, b: (b, i)),
    )


def _blocks_by_key(tile: int, queries: int, group: int, width: int) -> _BlockSpecs:
    """For programs (key tile, key head, row): all queries of the group."""
    columns = pl.next_power_of_2(width)
    return _BlockSpecs(
        pl.BlockSpec((None, queries, None, group, columns), lambda j, n, b: (b, 0, n, 0, 0)),
        pl.BlockSpec((None, tile, None, columns), lambda j, n, b: (b, j, n, 0)),
        pl.BlockSpec((None, None, group, queries), lambda j, n, b: (b, n, 0, 0)),
        pl.BlockSpec((None, tile), lambda j, n, b: (b, j)),
    )


def _launch(how: KernelConfig, name: str) -> dict[str, Any]:
    parameters = triton.CompilerParams(num_warps=how.tile.warps, num_stages=how.tile.stages)
    return {"compiler_params": parameters, "interpret": how.interpret, "name": name}


def _whole_tiles(x: jax.Array, axis: int, tile: int) -> jax.Array:
    """`x` with zeros up to a multiple of the tile: there ranges are empty."""
    missing = -x.shape[axis] % tile
    if not missing:
        return x
    return jnp.pad(x, [(0, missing if at == axis else 0) for at in range(x.ndim)])
