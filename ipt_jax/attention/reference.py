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
    from ipt_jax.attention.spec import AttentionSpec

QUERY_BLOCK = 128  # on CPU, 64 to 128 ran fastest: larger blocks compute more masked scores
MASKED = -1e30  # finite: a fully masked row stays free of NaN


def reference_attention(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    spec: AttentionSpec,
    segment_ids: jax.Array | None,
) -> jax.Array:
    """See `ipt_jax.attention.spec.attention`; scores and softmax are float32."""
    B, T, H, h = q_BTHh.shape
    K = k_BTKh.shape[2]
    scale = spec.scale if spec.scale is not None else h**-0.5
    q_BKGTh = jnp.moveaxis((q_BTHh * scale).reshape(B, T, K, H // K, h), 1, 3)
    k_BKTh, v_BKTh = jnp.moveaxis(k_BTKh, 1, 2), jnp.moveaxis(v_BTKh, 1, 2)
    out_BKGTh: jax.Array = _blocked(spec, q_BKGTh, k_BKTh, v_BKTh, segment_ids)
    return jnp.moveaxis(out_BKGTh, 3, 1).reshape(B, T, H, h)


def _key_range(spec: AttentionSpec, start: int, stop: int, length: int) -> tuple[int, int]:
    """The keys [first, last) that any query in [start, stop) may see."""
    first = 0 if spec.window is None else max(0, start - spec.window + 1)
    return first, (stop if spec.causal else length)


def _scores(
    spec: AttentionSpec,
    q: jax.Array,
    k: jax.Array,
    segment_ids: jax.Array | None,
    queries: tuple[int, int],
    keys: tuple[int, int],
) -> jax.Array:
    scores = jnp.einsum("bkgqh,bksh->bkgqs", q, k, preferred_element_type=jnp.float32)
    query_position = jnp.arange(*queries)[:, None]
    key_position = jnp.arange(*keys)[None, :]
    seen = jnp.ones((queries[1] - queries[0], keys[1] - keys[0]), bool)
    if spec.causal:
        seen &= key_position <= query_position
    if spec.window is not None:
        seen &= key_position > query_position - spec.window
    seen = seen[None]
    if segment_ids is not None:
        same = segment_ids[:, slice(*queries), None] == segment_ids[:, None, slice(*keys)]
        seen = seen & same
    return jnp.where(seen[:, None, None], scores, MASKED)


def _blocks(spec: AttentionSpec, length: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    starts = range(0, length, QUERY_BLOCK)
    queries = [(start, min(start + QUERY_BLOCK, length)) for start in starts]
    return [(block, _key_range(spec, *block, length)) for block in queries]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked(
    spec: AttentionSpec, q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None
) -> jax.Array:
    return _forward(spec, q, k, v, segment_ids)[0]


def _forward(
    spec: AttentionSpec, q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None
) -> tuple[jax.Array, Any]:
    outs, sums = [], []
    for queries, keys in _blocks(spec, q.shape[3]):
        kb, vb = k[:, :, slice(*keys)], v[:, :, slice(*keys)]
        scores = _scores(spec, q[:, :, :, slice(*queries)], kb, segment_ids, queries, keys)
        top = jnp.max(scores, -1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, -1, keepdims=True)
        out = jnp.einsum(
            "bkgqs,bksh->bkgqh", weights.astype(v.dtype), vb, preferred_element_type=jnp.float32
        )
        outs.append((out / total).astype(q.dtype))
        sums.append(top + jnp.log(total))
    # Named here, where the backward pass takes them from, so that a rematerialisation policy which
    # keeps "attention" keeps both and runs nothing of this again.
    out, log_sum = checkpoint_name(
        (jnp.concatenate(outs, 3), jnp.concatenate(sums, 3)), "attention"
    )
    return out, (q, k, v, segment_ids, out, log_sum)


def _backward(
    spec: AttentionSpec, residuals: Any, d_out: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, segment_ids, out, log_sum = residuals
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), -1, keepdims=True)
    d_qs = []
    # Held as [B, K, h, T]: as [B, K, T, h] each product would first transpose a block of scores.
    d_k = jnp.zeros((*k.shape[:2], k.shape[3], k.shape[2]), jnp.float32)
    d_v = jnp.zeros_like(d_k)
    for queries, keys in _blocks(spec, q.shape[3]):
        rows, columns = slice(*queries), slice(*keys)
        qb, kb, vb, d_ob = (
            q[:, :, :, rows],
            k[:, :, columns],
            v[:, :, columns],
            d_out[:, :, :, rows],
        )
        scores = _scores(spec, qb, kb, segment_ids, queries, keys)
        weights = jnp.exp(scores - log_sum[:, :, :, rows])
        d_weights = jnp.einsum("bkgqh,bksh->bkgqs", d_ob, vb, preferred_element_type=jnp.float32)
        d_scores = (weights * (d_weights - delta[:, :, :, rows])).astype(q.dtype)
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        d_qs.append(product("bkgqs,bksh->bkgqh", d_scores, kb).astype(q.dtype))
        d_k = d_k.at[..., columns].add(product("bkgqh,bkgqs->bkhs", qb, d_scores))
        d_v = d_v.at[..., columns].add(product("bkgqh,bkgqs->bkhs", d_ob, weights.astype(v.dtype)))
    d_k, d_v = jnp.swapaxes(d_k, 2, 3).astype(k.dtype), jnp.swapaxes(d_v, 2, 3).astype(v.dtype)
    return jnp.concatenate(d_qs, 3), d_k, d_v, None


_blocked.defvjp(_forward, _backward)
