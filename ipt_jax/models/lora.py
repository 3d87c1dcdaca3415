"""Low-rank adapters (LoRA, Hu et al. 2021) on the decoder's projections.

A projection y = x · W of frozen W gains scale · dropout(x) · a · b, with a [in, r] and b [r, out]
(PEFT's lora_A and lora_B transposed; r is the rank). Both factors are applied to activations: no
array of W's size is made for them, in the forward pass or the backward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from ipt_jax.core.bounds import Config, Fraction, NotEmpty, OneOf, Positive
from ipt_jax.core.errors import require
from ipt_jax.models.config import DecoderConfig, Params

# What can be adapted, by Hugging Face's name, and the names of its factors a and b.
FACTORS: dict[str, tuple[str, str]] = {
    "q_proj": ("query_a_LDr", "query_b_LrKGh"),
    "k_proj": ("key_a_LDr", "key_b_LrKh"),
    "v_proj": ("value_a_LDr", "value_b_LrKh"),
    "o_proj": ("output_a_LHhr", "output_b_LrD"),
    "gate_proj": ("gate_a_LDr", "gate_b_LrF"),
    "up_proj": ("up_a_LDr", "up_b_LrF"),
    "down_proj": ("down_a_LFr", "down_b_LrD"),
}
TARGETS = tuple(FACTORS)
Target = Annotated[str, OneOf(FACTORS)]


@dataclass(frozen=True)
class LoraConfig(Config):
    """Adapters to train in place of the weights."""

    rank: Positive = 16
    """Inner width of the adapters, r."""
    alpha: float = 32.0
    """The adapters' output is multiplied by alpha / rank."""
    dropout: Fraction = 0.0
    """Rate on the adapters' input while training."""
    targets: Annotated[
        tuple[Annotated[str, OneOf(FACTORS)], ...], NotEmpty("name a projection")
    ] = TARGETS
    """Adapted projections: q_proj k_proj v_proj o_proj gate_proj up_proj down_proj."""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """float32 or bfloat16 for the frozen weights; the adapters are always float32."""

    def check_together(self) -> None:
        once = len(set(self.targets)) == len(self.targets)
        require("targets", list(self.targets), once, "each projection once")

    @property
    def scale(self) -> float:
        """Factor on the adapters' output."""
        return self.alpha / self.rank


def adapter_shapes(decoder: DecoderConfig, lora: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every factor that the targets have, stacked over blocks, in TARGETS' order."""
    c, L, r = decoder, decoder.layers, lora.rank
    into = {"o_proj": (c.heads, c.head_width), "down_proj": (c.mlp_width,)}
    out = {
        "q_proj": (c.kv_heads, c.heads // c.kv_heads, c.head_width),
        "k_proj": (c.kv_heads, c.head_width),
        "v_proj": (c.kv_heads, c.head_width),
        "gate_proj": (c.mlp_width,),
        "up_proj": (c.mlp_width,),
    }
    shapes = {}
    for target, (a, b) in FACTORS.items():
        if target in lora.targets:
            shapes[a] = (L, *into.get(target, (c.width,)), r)
            shapes[b] = (L, r, *out.get(target, (c.width,)))
    return shapes


def new_adapters(decoder: DecoderConfig, lora: LoraConfig, key: jax.Array) -> Params:
    """Fresh float32 adapters, {"blocks": {name: [L, …]}}; pure, so it can be traced.

    As in PEFT, a is uniform in ±1/√in (Kaiming's rule with a = √5) and b zero, so that the
    adapted decoder begins as its base.
    """
    shapes = adapter_shapes(decoder, lora)
    leaves = {}
    for number, (a, b) in enumerate(FACTORS.values()):
        if a not in shapes:
            continue
        bound = 1 / math.sqrt(math.prod(shapes[a][1:-1]))
        # A key by projection: what else is adapted changes nothing.
        one = jax.random.fold_in(key, number)
        leaves[a] = jax.random.uniform(one, shapes[a], jnp.float32, -bound, bound)
        leaves[b] = jnp.zeros(shapes[b], jnp.float32)
    return {"blocks": leaves}


def adapter_count(decoder: DecoderConfig, lora: LoraConfig) -> int:
    """Number of trained parameters."""
    return sum(math.prod(shape) for shape in adapter_shapes(decoder, lora).values())


def base_params(params: Params, lora: LoraConfig) -> Params:
    """The frozen weights in the dtype that `lora` keeps them in."""
    return jax.tree.map(lambda p: p.astype(lora.base_dtype), params)
