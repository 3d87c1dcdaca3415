"""Attention of packed rows by cuDNN: every segment a sequence of its own, forward and backward.

cuDNN's packed layout takes a list of sequences by length and offset into one run of tokens. A
segment of any row is one such sequence, runs of padding too, for cuDNN writes no token outside of
them. The list has a fixed number of slots for all rows of a device together, so that only their
sum counts, not the fullest row. A device whose rows have more segments than slots computes that
batch with the kernel of `ipt_jax.attention.pallas_gpu`, which takes any number of them.

JAX has the two cuDNN calls as private primitives (`jax._src.cudnn`, 0.11.2). They are bound here
without JAX's own splitting over devices, which splits rows and leaves offsets of all rows: wrong
numbers without an error. `over_devices` works the list out on each device from its own rows.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.ad_checkpoint import checkpoint_name

from ipt_jax.attention import pallas_gpu
from ipt_jax.attention.partition import over_devices
from ipt_jax.attention.spec import PADDING, AttentionSpec, KeyRanges, key_ranges

# Axes as in `partition`: b rows, t tokens, k key heads, g query heads of a group, h head width.
_GIVEN = "b t k g h, b t k h, b t k h, b t"
_FORWARD_RULE = f"{_GIVEN} -> b t k g h, b t k g"
_BACKWARD_RULE = f"{_GIVEN}, b t k g h, b t k g, b t k g h -> b t k g h, b t k h, b t k h"
SLOTS_PER_ROW = 16
"""Segments a row, on average over a device's rows, that the list has room for."""


@dataclass(frozen=True)
class PackedConfig:
    """What is fixed when the calls are compiled."""

    scale: float
    """Factor on the products of queries and keys."""
    causal: bool
    """A query sees no key after itself."""
    window: int | None
    """A query sees itself and the `window - 1` keys before it."""
    slots_per_row: int
    """Slots of the list, divided by the rows of a device."""
    kernels: pallas_gpu.Kernels
    """Forward, dq, and dk with dv, for more segments than slots."""


def cudnn_packed_attention(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    spec: AttentionSpec,
    segment_ids_BT: jax.Array,
    slots_per_row: int | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """See `ipt_jax.attention.backends.attention`, which refuses what cuDNN does not do.

    `interpret` is for the kernel that steps in, to run it without a GPU.
    """
    B, T, H, h = q_BTHh.shape
    K = k_BTKh.shape[2]
    scale = spec.scale if spec.scale is not None else h**-0.5
    kernels = pallas_gpu.kernels(spec, h, q_BTHh.dtype.itemsize, T, interpret)
    slots = min(slots_per_row or SLOTS_PER_ROW, T)
    setting = PackedConfig(scale, spec.causal, spec.window, slots, kernels)
    q_BTKGh = q_BTHh.reshape(B, T, K, H // K, h)
    out_BTKGh: jax.Array = _attention(setting, q_BTKGh, k_BTKh, v_BTKh, segment_ids_BT)
    real = (segment_ids_BT != PADDING)[..., None, None]
    return jnp.where(real, out_BTKGh.reshape(q_BTHh.shape), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    setting: PackedConfig, q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array
) -> jax.Array:
    return _attention_forward(setting, q, k, v, ids)[0]


def _attention_forward(
    setting: PackedConfig, q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array
) -> tuple[jax.Array, Any]:
    run = over_devices(functools.partial(forward, setting), _FORWARD_RULE, "t")
    # Named where the backward pass takes them from, as in the reference.
    out, log_sum = checkpoint_name(run(q, k, v, ids), "attention")
    return out, (q, k, v, ids, out, log_sum)


def _attention_backward(setting: PackedConfig, residuals: Any, d_out: jax.Array) -> tuple:
    run = over_devices(functools.partial(backward, setting), _BACKWARD_RULE, "t")
    return *run(*residuals, d_out), None


_attention.defvjp(_attention_forward, _attention_backward)


@dataclass(frozen=True)
class Sequences:
    """The segments of B rows of T tokens as cuDNN's list; S = slots_per_row · B."""

    lengths: jax.Array
    """int32 [B, S / B], in order; 0 in slots without a segment."""
    offsets: jax.Array
    """int32 [B, S / B + 1]: first token, counted over all rows; B · T where there is none."""
    slot_BT: jax.Array
    """int32 [B, T]: the slot of each token's segment."""
    place_BT: jax.Array
    """int32 [B, T]: the token's place in its segment."""
    count: jax.Array
    """int32: the segments of all rows."""


def sequences(segment_ids_BT: jax.Array, slots_per_row: int) -> Sequences:
    """The list; `count` may be larger than its slots."""
    B, T = segment_ids_BT.shape
    begins = jnp.pad(segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1], ((0, 0), (1, 0)))
    begins = begins.at[:, 0].set(True).reshape(-1)
    token = jnp.arange(B * T, dtype=jnp.int32)
    (starts,) = jnp.nonzero(begins, size=B * (slots_per_row + 1), fill_value=B * T)
    starts = starts.astype(jnp.int32)
    slots = B * slots_per_row
    slot = jnp.cumsum(begins, dtype=jnp.int32) - 1
    return Sequences(
        (starts[1 : slots + 1] - starts[:slots]).reshape(B, slots_per_row),
        starts.reshape(B, slots_per_row + 1),
        slot.reshape(B, T),
        (token - lax.cummax(jnp.where(begins, token, 0))).reshape(B, T),
        slot[-1] + 1,
    )


def crowded_lists(segment_ids_BT: jax.Array, devices: int, pieces: int) -> jax.Array:
    """How many of a batch's lists have more segments than slots, int32.

    Args:
      segment_ids_BT: of the batch, rows split over `devices` in order.
      devices: that share the rows.
      pieces: in which a batch is worked off; each device takes every `pieces`-th of its rows.
    """
    changes = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    segments_B = 1 + jnp.sum(changes, 1, dtype=jnp.int32)
    lists = jnp.sum(segments_B.reshape(devices, -1, pieces), 1)
    rows = segments_B.size // (devices * pieces)
    slots = min(SLOTS_PER_ROW, segment_ids_BT.shape[1])
    return jnp.sum(lists > slots * rows, dtype=jnp.int32)


def _arguments(setting: PackedConfig) -> dict[str, Any]:
    masks = cudnn.MaskType
    return {
        "scale": setting.scale,
        "seed": 42,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),
        "mask_type": masks.PADDING_CAUSAL if setting.causal else masks.PADDING,
        "layout": cudnn.AttentionLayout.BTNH.value,
        "sliding_window_length": setting.window,
    }


def _operands(q: jax.Array, k: jax.Array, v: jax.Array, listed: Sequences) -> tuple:
    """Of both calls, in cuDNN's order: offsets count elements, not tokens."""
    B, T, K, G, h = q.shape
    unused = jnp.zeros(0, q.dtype)
    q_offsets, k_offsets = listed.offsets * (K * G * h), listed.offsets * (K * h)
    wide_q = q.reshape(B, T, K * G, h)
    lengths = listed.lengths
    return wide_q, k, v, unused, lengths, lengths, q_offsets, k_offsets, unused, unused


def forward(
    setting: PackedConfig, q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The output [B, T, K, G, h] and each query's log-sum-exp, float32 [B, T, K, G].

    Its base is that of the kernel which the backward pass takes too.
    """
    listed = sequences(ids, setting.slots_per_row)

    def by_cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        out, log_sum_SHT = cudnn._dot_product_attention_fwd_p.bind(
            *_operands(q, k, v, listed), is_training=True, **_arguments(setting)
        )
        # cuDNN's has a whole row for each slot; what is kept has one number a query.
        log_sum = log_sum_SHT[listed.slot_BT, :, listed.place_BT]
        return out.reshape(q.shape), log_sum.reshape(q.shape[:4])

    def by_kernel(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        ranges = _ranges(setting, ids)
        out, log_sum_BKGT = pallas_gpu.forward(
            setting.kernels[0], q, k, v, ranges.key_start, ranges.key_stop
        )
        return out, jnp.moveaxis(log_sum_BKGT, 3, 1)

    return lax.cond(listed.count > listed.lengths.size, by_kernel, by_cudnn, q, k, v)


def _ranges(setting: PackedConfig, ids: jax.Array) -> KeyRanges:
    spec = AttentionSpec(causal=setting.causal, window=setting.window, segments=True)
    return key_ranges(spec, ids, ids.shape[1])


def backward(
    setting: PackedConfig,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    ids: jax.Array,
    out: jax.Array,
    log_sum: jax.Array,
    d_out: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of queries, keys and values."""
    B, T, K, G, h = q.shape
    listed = sequences(ids, setting.slots_per_row)

    def by_cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
        place = (listed.slot_BT, slice(None), listed.place_BT)
        log_sum_SHT = jnp.zeros((B * setting.slots_per_row, K * G, T), jnp.float32)
        log_sum_SHT = log_sum_SHT.at[place].set(log_sum.reshape(B, T, K * G), unique_indices=True)
        wide = (x.reshape(B, T, K * G, h) for x in (out, d_out))
        d_q, d_k, d_v = cudnn._dot_product_attention_bwd_p.bind(
            *_operands(q, k, v, listed), log_sum_SHT, *wide, **_arguments(setting)
        )
        return d_q.reshape(q.shape), d_k, d_v

    def by_kernel(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
        ranges = _ranges(setting, ids)
        residuals = (q, k, v, ranges, out, jnp.moveaxis(log_sum, 1, 3))
        return pallas_gpu.gradients(setting.kernels, residuals, d_out)

    return lax.cond(listed.count > listed.lengths.size, by_kernel, by_cudnn, q, k, v)
