"""The neighbours of attention in tools/bench_gpu.py: is there anything for a kernel to win?

RMSNorm, rotary embedding and SwiGLU move memory and compute little: what XLA makes of them is held
against a copy of as many bytes. Near 1 a kernel of our own has nothing to win; within the step,
where XLA joins them to what stands beside them, less still. Cross-entropy in chunks is held against
all logits at once.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from gpu_attention import alternate  # beside this file

from ipt_jax.models.config import PRESETS, DecoderConfig
from ipt_jax.models.decoder import rms_norm, rotary, rotate
from ipt_jax.training.step import summed_cross_entropy

Emit = Callable[..., None]
PRESET = "ipt_1_3b"
ROWS, ROW_TOKENS = 8, 2048


@dataclass(frozen=True)
class Neighbour:
    """A function of arrays that XLA is to make fast."""

    function: Callable[..., jax.Array]
    """Of the arrays alone."""
    arrays: tuple[jax.Array, ...]
    """Those that have gradients."""
    linear: bool = False
    """Its gradient does not look at the arrays."""


def moved_bytes(neighbour: Neighbour, passing: str) -> int:
    """Bytes that the pass must move at least: everything that goes in and out, once."""
    out = jax.eval_shape(neighbour.function, *neighbour.arrays)
    inputs = sum(x.nbytes for x in neighbour.arrays)
    output = out.size * out.dtype.itemsize
    return inputs + output if passing == "forward" or neighbour.linear else 2 * inputs + output


def neighbours(config: DecoderConfig, rows: int, tokens: int) -> dict[str, Neighbour]:
    """Norm, rotary embedding of the queries and SwiGLU of one block."""
    dtype = jnp.dtype(config.compute_dtype)

    def drawn(seed: int, *shape: int) -> jax.Array:
        return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)

    positions = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32), (rows, tokens))
    rope = rotary(positions, config.head_width, config.rope_theta, config.rope_scaling)
    epsilon = config.norm_epsilon
    wide = (rows, tokens, config.mlp_width)
    return {
        "RMSNorm": Neighbour(
            lambda x, weight: rms_norm(x, weight, epsilon),
            (drawn(0, rows, tokens, config.width), drawn(1, config.width)),
        ),
        "RoPE": Neighbour(
            lambda x: rotate(x, rope),
            (drawn(2, rows, tokens, config.heads, config.head_width),),
            linear=True,
        ),
        "SwiGLU": Neighbour(
            lambda gate, up: jax.nn.silu(gate) * up, (drawn(3, *wide), drawn(4, *wide))
        ),
    }


def passes_of(neighbour: Neighbour) -> dict[str, Callable[[], Any]]:
    """Forward and backward, compiled; the backward pass makes anew what it needs of the forward."""

    def backward(arrays: tuple[jax.Array, ...], d_out: jax.Array) -> Any:
        return jax.vjp(neighbour.function, *arrays)[1](d_out)

    d_out = jnp.ones_like(neighbour.function(*neighbour.arrays))
    return {
        "forward": functools.partial(jax.jit(neighbour.function), *neighbour.arrays),
        "backward": functools.partial(jax.jit(backward), neighbour.arrays, d_out),
    }


def copy_of(total_bytes: int) -> Callable[[], Any]:
    """Reads and writes `total_bytes` together."""
    x = jnp.ones(max(1, total_bytes // 4), jnp.bfloat16)
    return functools.partial(jax.jit(lambda x: -x), x)


def measure(emit: Emit, rounds: int, dry_run: bool) -> None:
    """Each neighbour in turns with its copy, then cross-entropy in chunks and at once."""
    config = PRESETS["tiny" if dry_run else PRESET]
    rows, tokens = (2, 64) if dry_run else (ROWS, ROW_TOKENS)
    for name, neighbour in neighbours(config, rows, tokens).items():
        for passing, work in passes_of(neighbour).items():
            moved = moved_bytes(neighbour, passing)
            times = alternate({"it": work, "copy": copy_of(moved)}, rounds)
            shares = [b / a for a, b in zip(times["it"], times["copy"], strict=True)]
            seconds = statistics.median(times["it"])
            emit(
                "neighbour",
                what=name,
                passing=passing,
                milliseconds=seconds * 1e3,
                gigabytes_per_second=moved / seconds / 1e9,
                of_copy=statistics.median(shares),
                spread=[min(shares), max(shares)],
            )
    _cross_entropy(config, rows, tokens, emit, rounds)


def _cross_entropy(config: DecoderConfig, rows: int, tokens: int, emit: Emit, rounds: int) -> None:
    key = jax.random.key(5)
    hidden = jax.random.normal(key, (rows, tokens, config.width)).astype(config.compute_dtype)
    table = 0.02 * jax.random.normal(key, (config.vocabulary_size, config.width))
    targets = jax.random.randint(key, (rows, tokens), 0, config.vocabulary_size)
    weights = jnp.ones((rows, tokens), jnp.float32)

    def chunked(hidden: jax.Array, table: jax.Array) -> jax.Array:
        return summed_cross_entropy(hidden, table, targets, weights)[0]

    def at_once(hidden: jax.Array, table: jax.Array) -> jax.Array:
        logits = jnp.einsum(
            "btd,vd->btv", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.sum(losses * weights)

    work, memory, found = {}, {}, {}
    for name, function in {"chunks": chunked, "at once": at_once}.items():
        both = jax.value_and_grad(function, (0, 1))
        compiled = jax.jit(both).lower(hidden, table).compile()
        analysis = compiled.memory_analysis()
        memory[name] = 0 if analysis is None else analysis.temp_size_in_bytes
        work[name] = functools.partial(compiled, hidden, table)
        found[name] = float(work[name]()[0])
    times = alternate(work, rounds)
    ratios = [a / b for a, b in zip(times["at once"], times["chunks"], strict=True)]
    emit(
        "cross_entropy",
        milliseconds=statistics.median(times["chunks"]) * 1e3,
        to_at_once=statistics.median(ratios),
        spread=[min(ratios), max(ratios)],
        bytes=memory["chunks"],
        bytes_at_once=memory["at once"],
        difference=abs(found["chunks"] / found["at once"] - 1),
    )
