"""Next-token cross-entropy whose gradients are made in the forward pass, chunk by chunk.

Logits of one chunk of tokens exist at a time, never [B, T, V]. Their gradient is formed while
they are there, so that the backward pass has no projection to repeat.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

CHUNK_TOKENS = 1024


def summed_cross_entropy(
    hidden_ND: jax.Array,
    unembedding_VD: jax.Array,
    targets_N: jax.Array,
    weights_N: jax.Array,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sums over N tokens, float32: the loss to minimise and the plain cross-entropy.

    The first adds `z_loss` · log²Z a token to the second; only the first has a gradient. Divide
    by the sum of weights for a mean.
    """
    return _loss(z_loss, hidden_ND, unembedding_VD, targets_N, weights_N)


def _chunked(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Cut the leading axis N into equal chunks, [chunks, size, ...]; the last is padded with 0."""
    count = len(arrays[0])
    chunks = max(1, -(-count // CHUNK_TOKENS))
    size = -(-count // chunks)

    def cut(x: jax.Array) -> jax.Array:
        padding = [(0, chunks * size - count)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(chunks, size, *x.shape[1:])

    return tuple(map(cut, arrays))


def _chunk(
    z_loss: float, x: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    logits = jnp.einsum("nd,vd->nv", x, table, preferred_element_type=jnp.float32)
    top = jnp.max(logits, -1, keepdims=True)
    exponentials = jnp.exp(logits - top)
    total = jnp.sum(exponentials, -1, keepdims=True)
    log_z = (top + jnp.log(total))[:, 0]
    at_target = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
    entropy = jnp.sum(weights * (log_z - at_target))
    loss = entropy + z_loss * jnp.sum(weights * jnp.square(log_z))
    return loss, entropy, exponentials, total, log_z


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    z_loss: float, hidden: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    low = table.astype(hidden.dtype)

    def add(total: tuple, chunk: tuple) -> tuple[tuple, None]:
        x, y, w = chunk
        loss, entropy, *_ = _chunk(z_loss, x, low, y, w)
        return (total[0] + loss, total[1] + entropy), None

    zero = jnp.zeros((), jnp.float32)
    return jax.lax.scan(add, (zero, zero), _chunked((hidden, targets, weights)))[0]


def _forward(
    z_loss: float, hidden: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    low = table.astype(hidden.dtype)

    def add(total: tuple, chunk: tuple) -> tuple[tuple, jax.Array]:
        loss, entropy, d_table = total
        x, y, w = chunk
        one, plain, exponentials, partition, log_z = _chunk(z_loss, x, low, y, w)
        factor = w * (1 + 2 * z_loss * log_z)
        d_logits = exponentials * (factor[:, None] / partition)
        d_logits = d_logits.at[jnp.arange(len(y)), y].add(-w).astype(x.dtype)
        d_table += jnp.einsum("nv,nd->vd", d_logits, x, preferred_element_type=jnp.float32)
        return (loss + one, entropy + plain, d_table), d_logits @ low

    zero = jnp.zeros((), jnp.float32)
    start = (zero, zero, jnp.zeros(table.shape, jnp.float32))
    total, d_hidden = jax.lax.scan(add, start, _chunked((hidden, targets, weights)))
    loss, entropy, d_table = total
    d_hidden = d_hidden.reshape(-1, hidden.shape[-1])[: len(hidden)]
    return (loss, entropy), (d_hidden, d_table)


def _backward(z_loss: float, residuals: Any, cotangents: tuple[jax.Array, jax.Array]) -> tuple:
    d_hidden, d_table = residuals
    scale = cotangents[0]
    return (d_hidden * scale.astype(d_hidden.dtype), d_table * scale, None, None)


_loss.defvjp(_forward, _backward)
