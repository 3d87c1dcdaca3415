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
    hidden_BTD: jax.Array,
    unembedding_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    z_loss: float = 0.0,
    batch_shards: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sums over all tokens, float32: the loss to minimise and the plain cross-entropy.

    The first adds `z_loss` · log²Z a token to the second; only the first has a gradient. Divide
    by the sum of weights for a mean. `batch_shards` is how many devices split the rows; a chunk
    holds CHUNK_TOKENS tokens on each of them.
    """
    rows, length = targets_BT.shape
    chunks = max(1, -(-rows * length // (CHUNK_TOKENS * batch_shards)))
    return _loss(z_loss, min(chunks, length), hidden_BTD, unembedding_VD, targets_BT, weights_BT)


def _chunked(chunks: int, arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Cut [B, T, ...] along T into [chunks, B, size, ...]; the last is padded with 0.

    Rows stay whole on the devices that hold them: chunks of rows would move between devices.
    """

    def cut(x: jax.Array) -> jax.Array:
        rows, length = x.shape[:2]
        size = -(-length // chunks)
        padding = [(0, 0), (0, chunks * size - length)] + [(0, 0)] * (x.ndim - 2)
        return jnp.moveaxis(jnp.pad(x, padding).reshape(rows, chunks, size, *x.shape[2:]), 1, 0)

    return tuple(map(cut, arrays))


def _flat(chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """[B, size, ...] as [B · size, ...], for matrix products."""
    return tuple(x.reshape(-1, *x.shape[2:]) for x in chunk)


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss(
    z_loss: float,
    chunks: int,
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    low = table.astype(hidden.dtype)

    def add(total: tuple, chunk: tuple) -> tuple[tuple, None]:
        x, y, w = _flat(chunk)
        loss, entropy, *_ = _chunk(z_loss, x, low, y, w)
        return (total[0] + loss, total[1] + entropy), None

    zero = jnp.zeros((), jnp.float32)
    return jax.lax.scan(add, (zero, zero), _chunked(chunks, (hidden, targets, weights)))[0]


def _forward(
    z_loss: float,
    chunks: int,
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    low = table.astype(hidden.dtype)

    def add(total: tuple, chunk: tuple) -> tuple[tuple, jax.Array]:
        loss, entropy, d_table = total
        x, y, w = _flat(chunk)
        one, plain, exponentials, partition, log_z = _chunk(z_loss, x, low, y, w)
        factor = w * (1 + 2 * z_loss * log_z)
        d_logits = exponentials * (factor[:, None] / partition)
        hit = y[:, None] == jnp.arange(table.shape[0])
        d_logits = (d_logits - jnp.where(hit, w[:, None], 0)).astype(x.dtype)
        d_table += jnp.einsum("nd,nv->dv", x, d_logits, preferred_element_type=jnp.float32)
        return (loss + one, entropy + plain, d_table), (d_logits @ low).reshape(chunk[0].shape)

    zero = jnp.zeros((), jnp.float32)
    start = (zero, zero, jnp.zeros(table.shape[::-1], jnp.float32))
    total, d_hidden = jax.lax.scan(add, start, _chunked(chunks, (hidden, targets, weights)))
    loss, entropy, d_table = total
    rows, length, width = hidden.shape
    d_hidden = jnp.moveaxis(d_hidden, 0, 1).reshape(rows, -1, width)[:, :length]
    return (loss, entropy), (d_hidden, d_table.T)


def _backward(
    z_loss: float, chunks: int, residuals: Any, cotangents: tuple[jax.Array, jax.Array]
) -> tuple:
    d_hidden, d_table = residuals
    scale = cotangents[0]
    return (d_hidden * scale.astype(d_hidden.dtype), d_table * scale, None, None)


_loss.defvjp(_forward, _backward)
