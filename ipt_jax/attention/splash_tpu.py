"""Attention for TPUs by JAX's splash kernel, each device for its own rows and heads."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from ipt_jax.attention.partition import over_devices
from ipt_jax.attention.spec import PADDING, AttentionSpec

LANES = 128  # rows are whole multiples of it
TILES = (512, 256, 128)  # the first that divides the row; JAX takes 128; not measured on a TPU
# As in `ipt_jax.attention.partition`; the query heads of k key heads lie together.
RULE = "b t k h, b t k h, b t k h"


def splash_attention(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    spec: AttentionSpec,
    segment_ids: jax.Array | None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """See `ipt_jax.attention.backends.attention`; rows are padded to whole tiles.

    `interpret` runs the kernel on any device.
    """
    B, T = q_BTHh.shape[:2]
    short = -T % LANES
    ids = segment_ids
    if ids is None and short:
        ids = jnp.ones((B, T), jnp.int32)  # or keys that are not there would be seen
    arrays = (q_BTHh, k_BTKh, v_BTKh) if ids is None else (q_BTHh, k_BTKh, v_BTKh, ids)
    if short:
        arrays = tuple(jnp.pad(x, ((0, 0), (0, short), *((0, 0),) * (x.ndim - 2))) for x in arrays)
    rule = f"{RULE}{', b t' * (len(arrays) - 3)} -> b t k h"
    run = over_devices(functools.partial(_on_a_device, spec, interpret), rule, "t")
    return run(*arrays)[:, :T]


def _on_a_device(
    spec: AttentionSpec,
    interpret: bool,
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    segment_ids: jax.Array | None = None,
) -> jax.Array:
    T, H, h = q_BTHh.shape[1:]
    scale = spec.scale if spec.scale is not None else h**-0.5
    tile = next(size for size in TILES if T % size == 0)
    if spec.window is not None:
        mask = splash.LocalMask((T, T), (spec.window - 1, 0), 0)
    else:
        mask = splash.CausalMask((T, T)) if spec.causal else splash.FullMask((T, T))
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * H),
        block_sizes=splash.BlockSizes(
            block_q=tile,
            block_kv=tile,
            block_q_dkv=tile,
            block_kv_dkv=tile,
            block_q_dq=tile,
            block_kv_dq=tile,
        ),
        attn_logits_soft_cap=spec.softcap,
        # What a rematerialisation policy that keeps "attention" keeps.
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
    q_BHTh = jnp.moveaxis(q_BTHh * scale, 1, 2)
    k_BKTh, v_BKTh = jnp.moveaxis(k_BTKh, 1, 2), jnp.moveaxis(v_BTKh, 1, 2)
    segments = None if segment_ids is None else splash.SegmentIds(segment_ids, segment_ids)
    out_BHTh: Any = jax.vmap(kernel)(q_BHTh, k_BKTh, v_BKTh, segments)
    out_BTHh = jnp.moveaxis(out_BHTh, 1, 2)
    if segment_ids is None:
        return out_BTHh
    # Splash lets padding see padding.
    return jnp.where((segment_ids != PADDING)[:, :, None, None], out_BTHh, 0)
