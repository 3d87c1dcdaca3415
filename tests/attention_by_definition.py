"""Attention by its definition, in numpy: which pairs are seen, the output and its gradients."""

import numpy as np

from ipt_jax.attention.spec import AttentionSpec


def mask_of(spec: AttentionSpec, ids: np.ndarray | None, rows: int, length: int) -> np.ndarray:
    """Which query sees which key, [B, T, T]."""
    query, key = np.arange(length)[:, None], np.arange(length)[None]
    seen = np.ones((rows, length, length), bool)
    if spec.causal:
        seen &= key <= query
    if spec.window is not None:
        seen &= query - key < spec.window
    if ids is not None:
        seen &= (ids[:, :, None] == ids[:, None, :]) & (ids > 0)[:, :, None]
    return seen


def by_definition(q, k, v, d_out, mask: np.ndarray, scale: float) -> list[np.ndarray]:
    """Output and the gradients of q [B, T, H, h], k and v [B, T, K, h] in float64.

    0 for a query that the mask [B, T, T] lets see nothing.
    """
    q, k, v, d_out = (np.asarray(x).astype(np.float64) for x in (q, k, v, d_out))
    group = q.shape[2] // k.shape[2]
    wide_k, wide_v = np.repeat(k, group, 2), np.repeat(v, group, 2)
    scores = np.einsum("bqnh,bsnh->bnqs", q, wide_k) * scale
    scores = np.where(mask[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-1e30))
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    d_weights = np.einsum("bqnh,bsnh->bnqs", d_out, wide_v)
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True)) * scale
    d_k, d_v = (
        np.einsum("bnqs,bqnh->bsnh", x, y).reshape(*k.shape[:3], group, -1).sum(3)
        for x, y in ((d_scores, q), (weights, d_out))
    )
    out = np.einsum("bnqs,bsnh->bqnh", weights, wide_v)
    return [out, np.einsum("bnqs,bsnh->bqnh", d_scores, wide_k), d_k, d_v]
