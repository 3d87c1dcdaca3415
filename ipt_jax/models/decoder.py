"""The Llama/Mistral decoder in Flax NNX: mathematics only.

Blocks are stacked along a leading axis L and run by `lax.scan`, so that compile time does not
grow with depth. Query, key and value projections are one matrix laid out by key-value head
([D, K, G + 2, h]: the group's G query heads, then key, then value), gate and up another
([D, 2, F]), so that each splits over devices along K and F without moving data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ipt_jax.attention.spec import AttentionSpec, attention
from ipt_jax.models.config import DecoderConfig, RopeScaling

INITIAL_DEVIATION = 0.02

Params = dict[str, Any]  # a decoder's parameters as a nested dict, by attribute name


class Blocks(nnx.Module):
    """The parameters of all L blocks, stacked."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        c = config
        L, D, F, h, K = c.layers, c.width, c.mlp_width, c.head_width, c.kv_heads
        group = c.heads // K
        # Projections into the residual stream start smaller, so that its size at the last block
        # does not grow with depth (GPT-2's rule).
        inner = INITIAL_DEVIATION / math.sqrt(2 * L)
        self.attention_norm_LD = nnx.Param(jnp.ones((L, D)))
        self.query_key_value_LDKGh = _normal(rngs, (L, D, K, group + 2, h), INITIAL_DEVIATION)
        self.output_LHhD = _normal(rngs, (L, c.heads, h, D), inner)
        self.mlp_norm_LD = nnx.Param(jnp.ones((L, D)))
        self.gate_up_LD2F = _normal(rngs, (L, D, 2, F), INITIAL_DEVIATION)
        self.down_LFD = _normal(rngs, (L, F, D), inner)


class Decoder(nnx.Module):
    """Embedding, L blocks, final norm; `unembedding` gives the output projection."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        V, D = config.vocabulary_size, config.width
        self.embedding_VD = _normal(rngs, (V, D), INITIAL_DEVIATION)
        self.blocks = Blocks(config, rngs=rngs)
        self.final_norm_D = nnx.Param(jnp.ones((D,)))
        if not config.tied_embeddings:
            self.unembedding_VD = _normal(rngs, (V, D), INITIAL_DEVIATION)

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        *,
        dropout_key: jax.Array | None = None,
        backend: str = "auto",
        place: Callable[[jax.Array], jax.Array] = lambda x_BTD: x_BTD,
    ) -> jax.Array:
        """The residual stream after the final norm, [B, T, D] in the compute dtype.

        Args:
          tokens_BT: int32 token ids.
          positions_BT: int32 position of each token within its segment.
          segment_ids_BT: int32, tokens see only their own segment; None: one segment a row.
          dropout_key: random key while training with dropout; None: no dropout.
          backend: attention backend, see `ipt_jax.attention.spec`.
          place: pins the residual stream to its devices, see `ipt_jax.models.sharding.place_on`.
        """
        c = self.config
        dtype = jnp.dtype(c.compute_dtype)
        spec = AttentionSpec(causal=True, window=c.window, segments=segment_ids_BT is not None)
        rope = rotary(positions_BT, c.head_width, c.rope_theta, c.rope_scaling)
        use_dropout = dropout_key is not None and c.dropout > 0
        # Without dropout the keys are never looked at, but a scan needs something to scan over.
        root_key = dropout_key if dropout_key is not None else jax.random.key(0)
        keys = jax.random.split(root_key, (c.layers + 1, 2))

        def drop(x: jax.Array, key: jax.Array) -> jax.Array:
            if not use_dropout:
                return x
            kept = jax.random.bernoulli(key, 1 - c.dropout, x.shape)
            return jnp.where(kept, x / (1 - c.dropout), 0).astype(x.dtype)

        def block(x_BTD: jax.Array, scanned: tuple) -> tuple[jax.Array, None]:
            w, key = scanned
            w = jax.tree.map(lambda p: p.astype(dtype), w)
            y = rms_norm(x_BTD, w["attention_norm_LD"], c.norm_epsilon)
            qkv = project(y, w["query_key_value_LDKGh"])
            q, k, v = qkv[..., :-2, :], qkv[..., -2, :], qkv[..., -1, :]
            q = rotate(q.reshape(*q.shape[:2], c.heads, c.head_width), rope)
            out = attention(q, rotate(k, rope), v, spec, segment_ids_BT, backend)
            x_BTD = x_BTD + drop(project(out, w["output_LHhD"], axes=2), key[0])
            y = rms_norm(x_BTD, w["mlp_norm_LD"], c.norm_epsilon)
            gate_up = project(y, w["gate_up_LD2F"])
            y = jax.nn.silu(gate_up[..., 0, :]) * gate_up[..., 1, :]
            return place(x_BTD + drop(project(y, w["down_LFD"]), key[1])), None

        if c.remat != "none":
            policies = jax.checkpoint_policies
            policy = policies.dots_with_no_batch_dims_saveable if c.remat == "dots" else None
            block = jax.checkpoint(block, policy=policy)
        x_BTD = place(drop(self.embedding_VD[...][tokens_BT].astype(dtype), keys[-1, 0]))
        weights = nnx.to_pure_dict(nnx.state(self.blocks, nnx.Param))
        x_BTD, _ = jax.lax.scan(block, x_BTD, (weights, keys[:-1]))
        return rms_norm(x_BTD, self.final_norm_D[...].astype(dtype), c.norm_epsilon)

    def unembedding(self) -> jax.Array:
        """The output projection, [V, D] float32."""
        table = self.embedding_VD if self.config.tied_embeddings else self.unembedding_VD
        return table[...]

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Logits [B, T, V] in float32: for evaluation and parity checks, not for the loss."""
        table = self.unembedding().astype(x_BTD.dtype)
        return jnp.einsum("btd,vd->btv", x_BTD, table, preferred_element_type=jnp.float32)


def module_of(config: DecoderConfig, params: Params) -> Decoder:
    """The decoder with these parameters (concrete, abstract or traced)."""
    abstract = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(abstract, nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def new_params(config: DecoderConfig, key: jax.Array) -> Params:
    """Fresh parameters as a nested dict; pure, so it can be traced."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, rngs=nnx.Rngs(params=key)), nnx.Param))


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], deviation: float) -> nnx.Param:
    return nnx.Param(deviation * jax.random.normal(rngs.params(), shape, jnp.float32))


def project(x: jax.Array, weight: jax.Array, axes: int = 1) -> jax.Array:
    """Contract the last `axes` axes of x [B, T, …] with the first of weight; [B, T, …] again.

    Rows are flattened to [B·T, …] first: XLA's CPU backend runs the weight gradient of a
    three-dimensional product 1.6 to 1.9 times slower than that of a matrix product.
    """
    rows = x.reshape(-1, *x.shape[x.ndim - axes :])
    return jnp.tensordot(rows, weight, axes).reshape(*x.shape[:-axes], *weight.shape[axes:])


def rms_norm(x: jax.Array, weight_D: jax.Array, epsilon: float) -> jax.Array:
    """x / root mean square of its last axis, times the weight; computed in float32."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + epsilon)
    return (x32 * scale).astype(x.dtype) * weight_D


def rotary(
    positions_BT: jax.Array, head_width: int, theta: float, scaling: RopeScaling | None
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotary angles, each float32 [B, T, 1, h / 2]."""
    frequency = theta ** (-jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    if scaling is not None:
        frequency = _scaled(frequency, scaling)
    angle = positions_BT[..., None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def _scaled(frequency: jax.Array, scaling: RopeScaling) -> jax.Array:
    """Llama 3.1: slow frequencies are divided by the factor, those between blended."""
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_positions * frequency / (2 * jnp.pi)
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    return frequency * (kept + (1 - kept) / scaling.factor)


def rotate(x_BTHh: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary embedding in Hugging Face's layout: the pair of i is i + h / 2."""
    cosine, sine = rope
    first, second = jnp.split(x_BTHh.astype(jnp.float32), 2, -1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(turned, -1).astype(x_BTHh.dtype)
