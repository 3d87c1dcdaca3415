"""Attention in plain JAX, in blocks of queries that skip keys they cannot see.

The backward pass recomputes each block's probabilities from the saved log-sum-exp (as in
FlashAttention), so that memory stays linear in the row length.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

if TYPE_CHECKING:
    from ipt_jax.attention.spec import AttentionSpec, KeyRanges

QUERY_BLOCK = 128  # on CPU, 64 to 128 ran fastest: larger blocks compute more masked scores
MASKED = -1e30  # finite: a fully masked row stays free of NaN


def reference_attention(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    spec: AttentionSpec,
    ranges: KeyRanges,
) -> jax.Array:
    """See `ipt_jax.attention.backends.attention`; scores and softmax are float32."""
    B, T, H, h = q_BTHh.shape
    K = k_BTKh.shape[2]
    scale = spec.scale if spec.scale is not None else h**-0.5
    q_BKGTh = jnp.moveaxis((q_BTHh * scale).reshape(B, T, K, H // K, h), 1, 3)
    k_BKTh, v_BKTh = jnp.moveaxis(k_BTKh, 1, 2), jnp.moveaxis(v_BTKh, 1, 2)
    out_BKGTh: jax.Array = _blocked(spec, q_BKGTh, k_BKTh, v_BKTh, ranges)
    return jnp.moveaxis(out_BKGTh, 3, 1).reshape(B, T, H, h)


def _key_range(spec: AttentionSpec, start: int, stop: int, length: int) -> tuple[int, int]:
    """The keys [first, last) that any query in [start, stop) may see."""
    first = 0 if spec.window is None else max(0, start - spec.window + 1)
    return first, (stop if spec.causal else length)


def _scores(
    spec: AttentionSpec,
    q: jax.Array,
    k: jax.Array,
    ranges: KeyRanges,
    queries: tuple[int, int],
    keys: tuple[int, int],
) -> tuple[jax.Array, jax.Array | float]:
    """Masked scores, and how they grow with the products (softcap)."""
    scores = jnp.einsum("bkgqh,bksh->bkgqs", q, k, preferred_element_type=jnp.float32)
    slope = 1.0
    if spec.softcap is not None:
        capped = jnp.tanh(scores / spec.softcap)
        scores, slope = spec.softcap * capped, 1 - capped * capped
    rows = slice(*queries)
    key = jnp.arange(*keys)
    seen = (ranges.key_start[:, rows, None] <= key) & (key < ranges.key_stop[:, rows, None])
    return jnp.where(seen[:, None, None], scores, MASKED), slope


def _seeing(ranges: KeyRanges, queries: tuple[int, int]) -> jax.Array:
    """Which queries see anything at all, [B, 1, 1, q, 1]."""
    rows = slice(*queries)
    return (ranges.key_stop[:, rows] > ranges.key_start[:, rows])[:, None, None, :, None]


def _after(done: jax.Array | None, array: jax.Array) -> jax.Array:
    """The array, which waits for `done` (of its shape, or longer along the tokens).

    Blocks do not need each other: left to itself, the compiler begins them all and holds the scores
    of all of them, which grow with the square of the row's length. A barrier is taken away before
    it orders its work; a product with zero, it must compute.
    """
    return (
        array if done is None else array + (0 * done[..., : array.shape[-2], :]).astype(array.dtype)
    )


def _blocks(spec: AttentionSpec, length: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    starts = range(0, length, QUERY_BLOCK)
    queries = [(start, min(start + QUERY_BLOCK, length)) for start in starts]
    return [(block, _key_range(spec, *block, length)) for block in queries]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked(
    spec: AttentionSpec, q: jax.Array, k: jax.Array, v: jax.Array, ranges: KeyRanges
) -> jax.Array:
    return _forward(spec, q, k, v, ranges)[0]


def _forward(
    spec: AttentionSpec, q: jax.Array, k: jax.Array, v: jax.Array, ranges: KeyRanges
) -> tuple[jax.Array, Any]:
    out, outs, sums = None, [], []
    for queries, keys in _blocks(spec, q.shape[3]):
        kb, vb = k[:, :, slice(*keys)], v[:, :, slice(*keys)]
        qb = _after(out, q[:, :, :, slice(*queries)])
        scores, _ = _scores(spec, qb, kb, ranges, queries, keys)
        top = jnp.max(scores, -1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, -1, keepdims=True)
        out = jnp.einsum(
            "bkgqs,bksh->bkgqh", weights.astype(v.dtype), vb, preferred_element_type=jnp.float32
        )
        # Padding sees nothing: zeros, and a sum that gives it no weights in the backward pass.
        seeing = _seeing(ranges, queries) if spec.segments else True
        out = jnp.where(seeing, out / total, 0).astype(q.dtype)
        outs.append(out)
        sums.append(jnp.where(seeing, top + jnp.log(total), 0))
    # Named here, where the backward pass takes them from, so that a rematerialisation policy which
    # keeps "attention" keeps both and runs nothing of this again.
    out, log_sum = checkpoint_name(
        (jnp.concatenate(outs, 3), jnp.concatenate(sums, 3)), "attention"
    )
    return out, (q, k, v, ranges, out, log_sum)


def _backward(
    spec: AttentionSpec, residuals: Any, d_out: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, ranges, out, log_sum = residuals
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), -1, keepdims=True)
    d_qs = []
    # Held as [B, K, h, T]: as [B, K, T, h] each product would first transpose a block of scores.
    d_k = jnp.zeros((*k.shape[:2], k.shape[3], k.shape[2]), jnp.float32)
    d_v = jnp.zeros_like(d_k)
    for queries, keys in _blocks(spec, q.shape[3]):
        rows, columns = slice(*queries), slice(*keys)
        kb, vb = k[:, :, columns], v[:, :, columns]
        if d_qs:
            kb = _after(jnp.swapaxes(d_k[..., columns], 2, 3), kb)
            vb = _after(jnp.swapaxes(d_v[..., columns], 2, 3), vb)
        qb, d_ob = q[:, :, :, rows], d_out[:, :, :, rows]
        scores, slope = _scores(spec, qb, kb, ranges, queries, keys)
        weights = jnp.exp(scores - log_sum[:, :, :, rows])
        d_weights = jnp.einsum("bkgqh,bksh->bkgqs", d_ob, vb, preferred_element_type=jnp.float32)
        d_scores = (weights * (d_weights - delta[:, :, :, rows]) * slope).astype(q.dtype)
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        d_qs.append(product("bkgqs,bksh->bkgqh", d_scores, kb).astype(q.dtype))
        d_k = d_k.at[..., columns].add(product("bkgqh,bkgqs->bkhs", qb, d_scores))
        d_v = d_v.at[..., columns].add(product("bkgqh,bkgqs->bkhs", d_ob, weights.astype(v.dtype)))
    d_k, d_v = jnp.swapaxes(d_k, 2, 3).astype(k.dtype), jnp.swapaxes(d_v, 2, 3).astype(v.dtype)
    return jnp.concatenate(d_qs, 3), d_k, d_v, None


_blocked.defvjp(_forward, _backward)
