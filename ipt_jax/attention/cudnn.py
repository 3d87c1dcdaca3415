"""Attention by cuDNN, as JAX wraps it: dense rows, causal or not, with or without a window."""

from __future__ import annotations

from typing import Literal

import jax

from ipt_jax.attention.spec import AttentionSpec


def cudnn_attention(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    spec: AttentionSpec,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """See `ipt_jax.attention.backends.attention`, which refuses what cuDNN does not do.

    `implementation` is JAX's: `xla` computes the same without a GPU, all scores at once.
    """
    return jax.nn.dot_product_attention(
        q_BTHh,
        k_BTKh,
        v_BTKh,
        scale=spec.scale,
        is_causal=spec.causal,
        # JAX counts the keys before a query; our window counts the query itself too.
        local_window_size=None if spec.window is None else (spec.window - 1, 0),
        implementation=implementation,
    )
