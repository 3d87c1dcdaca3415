"""The Llama/Mistral decoder in Flax NNX: mathematics only.

Blocks are stacked along a leading axis L and run by `lax.scan`, so that compile time does not
grow with depth. Query, key and value projections are one matrix laid out by key-value head
([D, K, G + 2, h]: the group's G query heads, then key, then value), gate and up another
([D, 2, F]), so that each splits over devices along K and F without moving data.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ipt_jax.attention.backends import attention
from ipt_jax.attention.ranges import key_ranges
from ipt_jax.attention.spec import AttentionSpec
from ipt_jax.chips.target import target
from ipt_jax.models.config import DecoderConfig
from ipt_jax.models.layers import (
    Params,
    dropout,
    project,
    rms_norm,
    rotary,
    rotate,
    split,
)
from ipt_jax.models.lora import LoraConfig, add_low_rank

INITIAL_DEVIATION = 0.02
# The projections by their common input, in a block's order.
ADAPTED_INPUTS = (
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)


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
        adapters: Params | None = None,
        lora: LoraConfig | None = None,
    ) -> jax.Array:
        """The residual stream after the final norm, [B, T, D] in the compute dtype.

        Args:
          tokens_BT: int32 token ids.
          positions_BT: int32 position of each token within its segment.
          segment_ids_BT: int32, tokens see only their own segment, 0: padding, which sees nothing;
            None: one segment a row.
          dropout_key: random key while training with dropout; None: no dropout.
          backend: attention backend, see `ipt_jax.attention.backends`.
          place: pins the residual stream to its devices, see
            `ipt_jax.models.sharding.constrain_activations`.
          adapters: low-rank adapters, see `ipt_jax.models.lora.new_adapters`; None: none.
          lora: what the adapters are; given exactly when they are.

        Raises:
          ValueError: one of adapters and lora without the other.
        """
        if (adapters is None) != (lora is None):
            raise ValueError("Decoder: adapters and lora come together or not at all.")
        c = self.config
        dtype = jnp.dtype(c.compute_dtype)
        spec = attention_spec(c, segments=segment_ids_BT is not None)
        ranges = key_ranges(spec, segment_ids_BT, tokens_BT.shape[1])  # the same in every block
        rope = rotary(positions_BT, c.head_width, c.rope_theta, c.rope_scaling)
        use_dropout = dropout_key is not None and c.dropout > 0
        # Without dropout the keys are never looked at, but a scan needs something to scan over.
        root_key = dropout_key if dropout_key is not None else jax.random.key(0)
        keys = jax.random.split(root_key, (c.layers + 1, 2))
        adapter_keys = None
        if lora is not None and lora.dropout > 0 and dropout_key is not None:
            # Beside the decoder's own keys, whose draws stay what they are without adapters.
            root_key = jax.random.fold_in(dropout_key, 1)
            adapter_keys = jax.random.split(root_key, (c.layers, len(ADAPTED_INPUTS)))

        def drop(x: jax.Array, key: jax.Array) -> jax.Array:
            return dropout(x, key, c.dropout) if use_dropout else x

        def block(x_BTD: jax.Array, scanned: tuple) -> tuple[jax.Array, None]:
            w, key, factors, adapter_key = scanned
            w, factors = jax.tree.map(lambda p: p.astype(dtype), (w, factors))

            def adapt(number: int, x: jax.Array, *outputs: jax.Array) -> tuple[jax.Array, ...]:
                if lora is None:
                    return outputs
                one = None if adapter_key is None else adapter_key[number]
                return add_low_rank(outputs, x, ADAPTED_INPUTS[number], lora, factors, one)

            y = rms_norm(x_BTD, w["attention_norm_LD"], c.norm_epsilon)
            qkv = project(y, w["query_key_value_LDKGh"])
            q, k, v = split(qkv, (qkv.shape[-2] - 2, 1, 1), -2)
            q, k, v = adapt(0, y, q, k[..., 0, :], v[..., 0, :])
            q = rotate(q.reshape(*q.shape[:2], c.heads, c.head_width), rope)
            q, k, v = checkpoint_name((q, rotate(k, rope), v), "query_key_value")
            y = attention(q, k, v, spec, segment_ids_BT, backend, ranges=ranges)
            (out,) = adapt(1, y, project(y, w["output_LHhD"], axes=2))
            x_BTD = x_BTD + drop(checkpoint_name(out, "attention_output"), key[0])
            y = rms_norm(x_BTD, w["mlp_norm_LD"], c.norm_epsilon)
            gate, up = split(project(y, w["gate_up_LD2F"]), (1, 1), -2)
            gate_up = adapt(2, y, gate[..., 0, :], up[..., 0, :])
            gate, up = checkpoint_name(gate_up, "gate_up")
            y = jax.nn.silu(gate) * up
            (out,) = adapt(3, y, project(y, w["down_LFD"]))
            return place(x_BTD + drop(out, key[1])), None

        remat, kept = c.remat_on(target().platform)
        if remat != "none":
            policies = jax.checkpoint_policies
            policy = {
                "dots": policies.dots_with_no_batch_dims_saveable,
                "names": policies.save_only_these_names(*kept),
                "full": None,
            }[remat]
            # A scan's body needs no guard against common subexpressions.
            block = jax.checkpoint(block, policy=policy, prevent_cse=False)
        x_BTD = place(drop(self.embedding_VD[...][tokens_BT].astype(dtype), keys[-1, 0]))
        weights = nnx.to_pure_dict(nnx.state(self.blocks, nnx.Param))
        factors = None if adapters is None else adapters["blocks"]
        x_BTD, _ = jax.lax.scan(block, x_BTD, (weights, keys[:-1], factors, adapter_keys))
        return rms_norm(x_BTD, self.final_norm_D[...].astype(dtype), c.norm_epsilon)

    def unembedding(self) -> jax.Array:
        """The output projection, [V, D] in the parameters' dtype."""
        table = self.embedding_VD if self.config.tied_embeddings else self.unembedding_VD
        return table[...]

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Logits [B, T, V] in float32: for evaluation and parity checks, not for the loss."""
        table = self.unembedding().astype(x_BTD.dtype)
        return jnp.einsum("btd,vd->btv", x_BTD, table, preferred_element_type=jnp.float32)


def attention_spec(config: DecoderConfig, *, segments: bool) -> AttentionSpec:
    """What the decoder's blocks ask of attention, with or without segment ids."""
    return AttentionSpec(causal=True, window=config.window, segments=segments)


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
