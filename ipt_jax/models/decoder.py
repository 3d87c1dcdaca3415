"""The Llama/Mistral decoder in Flax NNX: mathematics only.

Blocks are stacked along a leading axis L and run by `lax.scan`, so that compile time does not
grow with depth. Query, key and value projections are one matrix laid out by key-value head
([D, K, G + 2, h]: the group's G query heads, then key, then value), gate and up another
([D, 2, F]), so that each splits over devices along K and F without moving data.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import CustomVJPPrimal

from ipt_jax.attention.backends import attention
from ipt_jax.attention.spec import AttentionSpec, key_ranges
from ipt_jax.chips.devices import target
from ipt_jax.models.config import DecoderConfig, Params, RopeScaling
from ipt_jax.models.lora import FACTORS, LoraConfig

INITIAL_DEVIATION = 0.02
GOLDEN_RATIO = 0x9E3779B9  # of 2^32, odd: its multiples are far apart


def project(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Contract x [B, T, …] with weight […, out…] along all but B and T: [B, T, out…].

    Rows are flattened to [B·T, …] first: XLA's CPU backend runs the weight gradient of a
    three-dimensional product 1.6 to 1.9 times slower than that of a matrix product.
    """
    rows = x.reshape(-1, *x.shape[2:])
    axes = x.ndim - 2
    return jnp.tensordot(rows, weight, axes).reshape(*x.shape[:2], *weight.shape[axes:])


def project_parts(x: jax.Array, weight: jax.Array, sizes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """`project` of x [B, T, in] cut along the last axis but one into parts of these sizes.

    One product forwards, one for each part backwards, whose gradients are not put together first:
    that was 3% of a GPU's train step (docs/results/gpu.md).
    """
    parts: tuple[jax.Array, ...] = _project_parts(sizes, x, weight)
    return parts


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _project_parts(
    sizes: tuple[int, ...], x: jax.Array, weight: jax.Array
) -> tuple[jax.Array, ...]:
    return _cut(project(x, weight), sizes)


def _project_parts_forward(
    sizes: tuple[int, ...], x: CustomVJPPrimal, weight: CustomVJPPrimal
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array | None, jax.Array]]:
    # Only the weight's gradient needs x, and a frozen weight has none.
    saved = x.value if weight.perturbed else None
    return _project_parts(sizes, x.value, weight.value), (saved, weight.value)


def _project_parts_backward(
    sizes: tuple[int, ...],
    saved: tuple[jax.Array | None, jax.Array],
    gradients: tuple[Any, ...],  # arrays, or SymbolicZero where nothing depends on a part
) -> tuple[jax.Array, jax.Array | None]:
    x, weight = saved
    of_x, of_weight = [], []
    for gradient, part in zip(gradients, _cut(weight, sizes), strict=True):
        here = isinstance(gradient, jax.Array)
        y = gradient if here else jnp.zeros(gradient.shape, gradient.dtype)
        y = y.reshape(-1, *y.shape[2:])
        outputs = tuple(range(1, y.ndim))
        of_x.append(jnp.tensordot(y, part, (outputs, outputs)))
        if x is not None:
            of_weight.append(jnp.tensordot(x.reshape(-1, x.shape[-1]), y, (0, 0)))
    shape = (*gradients[0].shape[:2], weight.shape[0])
    whole = jnp.concatenate(of_weight, -2) if of_weight else None
    return functools.reduce(jnp.add, of_x).reshape(shape), whole


_project_parts.defvjp(_project_parts_forward, _project_parts_backward, symbolic_zeros=True)


def _cut(x: jax.Array, sizes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """x along its last axis but one in parts of these sizes."""
    ends = itertools.accumulate(sizes)
    return tuple(
        jax.lax.slice_in_dim(x, end - size, end, axis=-2)
        for size, end in zip(sizes, ends, strict=True)
    )


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


def dropout(x: jax.Array, key: jax.Array, rate: float) -> jax.Array:
    """x with a share `rate` of its entries set to 0 and the others scaled by 1 / (1 - rate).

    What is kept is a hash of the key and the entry's place, the same however x is split over
    devices. JAX's own bits (Threefry) take many more instructions an entry: 3% of a GPU's train
    step at rate 0.1 (docs/results/gpu.md); nothing here needs their strength.
    """
    first, second = jax.random.bits(key, (2,))
    row = jnp.arange(math.prod(x.shape[:-1]), dtype=jnp.uint32).reshape(*x.shape[:-1], 1)
    column = jnp.arange(x.shape[-1], dtype=jnp.uint32) * jnp.uint32(GOLDEN_RATIO)
    draws = _mixed((_mixed(row ^ first) + column) ^ second)
    kept = draws < jnp.uint32(round((1 - rate) * 2**32))
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def _mixed(x: jax.Array) -> jax.Array:
    """A bijection of uint32 in which each bit of x turns every bit of the result in half of the
    cases: `lowbias32` of C. Wellons' hash-prospector (public domain)."""
    x = (x ^ x >> 16) * jnp.uint32(0x7FEB352D)
    x = (x ^ x >> 15) * jnp.uint32(0x846CA68B)
    return x ^ x >> 16


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["weight", "factors", "key"],
    meta_fields=["targets", "product", "scale", "rate"],
)
@dataclass(frozen=True)
class Projection:
    """One product of a common input for several projections, each with its adapter if it has one.

    All blocks' together, each array with a leading axis L, or one block's inside their scan.
    """

    weight: jax.Array
    """[…, out…]"""
    targets: tuple[str, ...]
    """The projections' names, see `ipt_jax.models.lora.TARGETS`."""
    product: Callable[[jax.Array, jax.Array], tuple[jax.Array, ...]]
    """Of x and the weight: [B, T, out…] of each target."""
    factors: Params
    """The adapters' factors by name, […, r] and [r, …]; none of a target without adapter."""
    key: jax.Array | None
    """Random key while training with dropout on the adapters' input; None: no dropout. One mask
    serves all targets, where PEFT draws one for each."""
    scale: float
    """Factor on the adapters' output."""
    rate: float
    """Of that dropout."""

    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """What each of `targets` makes of x, [B, T, in] or [B, T, H, h]: [B, T, …]."""
        outputs = self.product(x, self.weight)
        factors = [[self.factors.get(name) for name in FACTORS[target]] for target in self.targets]
        inner = [a for a, _ in factors if a is not None]
        if not inner:
            return outputs
        if self.key is not None:
            x = dropout(x, self.key, self.rate)
        # One product for all of them: x is the large array, and is read once.
        product = self.scale * project(x, jnp.concatenate(inner, -1))
        parts = iter(jnp.split(product, len(inner), -1))
        return tuple(
            out if b is None else out + project(next(parts), b)
            for out, (_, b) in zip(outputs, factors, strict=True)
        )


def _heads(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, ...]:
    """Queries [B, T, K, G, h], keys and values [B, T, K, h], of a weight [D, K, G + 2, h]."""
    q, k, v = project_parts(x, weight, (weight.shape[-2] - 2, 1, 1))
    return q, k[..., 0, :], v[..., 0, :]


def _gate_up(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, ...]:
    gate, up = project_parts(x, weight, (1, 1))
    return gate[..., 0, :], up[..., 0, :]


def _whole(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, ...]:
    return (project(x, weight),)


Product = Callable[[jax.Array, jax.Array], tuple[jax.Array, ...]]

# A block's projections in its order: the weight, the names that it holds, and their product.
PROJECTIONS: dict[str, tuple[tuple[str, ...], Product]] = {
    "query_key_value_LDKGh": (("q_proj", "k_proj", "v_proj"), _heads),
    "output_LHhD": (("o_proj",), _whole),
    "gate_up_LD2F": (("gate_proj", "up_proj"), _gate_up),
    "down_LFD": (("down_proj",), _whole),
}


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
        self.lora: LoraConfig | None = None
        self.adapters: Params = nnx.data({})

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
          segment_ids_BT: int32, tokens see only their own segment, 0: padding, which sees nothing;
            None: one segment a row.
          dropout_key: random key while training with dropout; None: no dropout.
          backend: attention backend, see `ipt_jax.attention.backends`.
          place: pins the residual stream to its devices, see
            `ipt_jax.models.sharding.constrain_activations`.
        """
        c = self.config
        dtype = jnp.dtype(c.compute_dtype)
        spec = attention_spec(c, segments=segment_ids_BT is not None)
        ranges = key_ranges(spec, segment_ids_BT, tokens_BT.shape[1])  # the same in every block
        rope = rotary(positions_BT, c.head_width, c.rope_theta, c.rope_scaling)
        use_dropout = dropout_key is not None and c.dropout > 0
        # Without dropout the keys are never looked at, but a scan needs something to scan over.
        root_key = dropout_key if dropout_key is not None else jax.random.key(0)
        keys = jax.random.split(root_key, (c.layers + 1, 2))

        def drop(x: jax.Array, key: jax.Array) -> jax.Array:
            return dropout(x, key, c.dropout) if use_dropout else x

        def cast(leaf: jax.Array) -> jax.Array:
            is_number = jnp.issubdtype(leaf.dtype, jnp.floating)  # and no key of dropout
            return leaf.astype(dtype) if is_number else leaf

        def block(x_BTD: jax.Array, scanned: tuple) -> tuple[jax.Array, None]:
            w, key = scanned
            w = jax.tree.map(cast, w)
            y = rms_norm(x_BTD, w["attention_norm_LD"], c.norm_epsilon)
            q, k, v = w["query_key_value_LDKGh"](y)
            q = rotate(q.reshape(*q.shape[:2], c.heads, c.head_width), rope)
            q, k, v = checkpoint_name((q, rotate(k, rope), v), "query_key_value")
            y = attention(q, k, v, spec, segment_ids_BT, backend, ranges=ranges)
            (out,) = w["output_LHhD"](y)
            x_BTD = x_BTD + drop(checkpoint_name(out, "attention_output"), key[0])
            y = rms_norm(x_BTD, w["mlp_norm_LD"], c.norm_epsilon)
            gate, up = checkpoint_name(w["gate_up_LD2F"](y), "gate_up")
            (out,) = w["down_LFD"](jax.nn.silu(gate) * up)
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
        x_BTD, _ = jax.lax.scan(block, x_BTD, (self._block_weights(dropout_key), keys[:-1]))
        return rms_norm(x_BTD, self.final_norm_D[...].astype(dtype), c.norm_epsilon)

    def _block_weights(self, dropout_key: jax.Array | None) -> Params:
        """The blocks' parameters by name, those of `PROJECTIONS` as such with their adapters."""
        weights, lora = nnx.to_pure_dict(nnx.state(self.blocks, nnx.Param)), self.lora
        keys = None
        if lora is not None and lora.dropout > 0 and dropout_key is not None:
            # Beside the decoder's own keys, whose draws stay what they are without adapters.
            root_key = jax.random.fold_in(dropout_key, 1)
            keys = jax.random.split(root_key, (self.config.layers, len(PROJECTIONS)))
        for number, (name, (targets, product)) in enumerate(PROJECTIONS.items()):
            adapted = [target for target in targets if lora and target in lora.targets]
            factors = {f: self.adapters["blocks"][f] for t in adapted for f in FACTORS[t]}
            key = keys[:, number] if keys is not None and adapted else None
            scale, rate = (lora.scale, lora.dropout) if lora else (1.0, 0.0)
            weights[name] = Projection(weights[name], targets, product, factors, key, scale, rate)
        return weights

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


def module_of(
    config: DecoderConfig,
    params: Params,
    adapters: Params | None = None,
    lora: LoraConfig | None = None,
) -> Decoder:
    """The decoder with these parameters (concrete, abstract or traced).

    Its projections have `adapters` (see `ipt_jax.models.lora.new_adapters`), which are what `lora`
    says, where these are given.

    Raises:
      ValueError: one of adapters and lora without the other.
    """
    if (adapters is None) != (lora is None):
        raise ValueError("Decoder: adapters and lora come together or not at all.")
    abstract = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(abstract, nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    model = nnx.merge(graph, state)
    model.lora, model.adapters = lora, nnx.data(adapters or {})
    return model


def new_params(config: DecoderConfig, key: jax.Array) -> Params:
    """Fresh parameters as a nested dict; pure, so it can be traced."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, rngs=nnx.Rngs(params=key)), nnx.Param))


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], deviation: float) -> nnx.Param:
    return nnx.Param(deviation * jax.random.normal(rngs.params(), shape, jnp.float32))
