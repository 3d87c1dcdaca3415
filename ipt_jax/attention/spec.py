"""What attention is asked to do, and which backend does it.

Importing this costs no backend: each is imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ipt_jax.attention.ranges import KeyRanges, key_ranges


@dataclass(frozen=True)
class AttentionSpec:
    """Which keys a query sees, and how scores are scaled."""

    causal: bool = True
    """A query sees no key after itself."""
    window: int | None = None
    """A query sees itself and the `window - 1` keys before it; None: all of them."""
    segments: bool = False
    """A query sees only keys of its own segment; segment ids come with the call."""
    scale: float | None = None
    """Factor on the scores; None: one over the square root of the head width."""
    softcap: float | None = None
    """Scores s become softcap · tanh(s / softcap); None: they stay."""

    def __post_init__(self) -> None:
        if self.window is not None and (self.window < 1 or not self.causal):
            raise ValueError(
                f"AttentionSpec: window={self.window} needs causal=True and at least 1 token."
            )
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"AttentionSpec: softcap={self.softcap} must be above 0.")

    @property
    def kind(self) -> str:
        """What `auto` goes by: the column of its table."""
        asked = {
            "segments": self.segments,
            "softcap": self.softcap is not None,
            "window": self.window is not None,
            "causal": self.causal,
        }
        return next((kind for kind, holds in asked.items() if holds), "full")


@dataclass(frozen=True)
class Call:
    """One call of a backend, as far as a backend may refuse it."""

    platform: str
    """Of the device: cpu, gpu or tpu."""
    dtype: str
    """Of queries, keys and values."""
    length: int
    """Tokens a row."""
    head_width: int


def _reference(q, k, v, spec, ids, ranges):
    from ipt_jax.attention.reference import reference_attention

    return reference_attention(q, k, v, spec, ranges)


def _cudnn(q, k, v, spec, ids, ranges):
    from ipt_jax.attention.cudnn import cudnn_attention

    return cudnn_attention(q, k, v, spec)


def _cudnn_packed(q, k, v, spec, ids, ranges):
    from ipt_jax.attention.cudnn_packed import cudnn_packed_attention

    return cudnn_packed_attention(q, k, v, spec, ids)


def _splash(q, k, v, spec, ids, ranges):
    from ipt_jax.attention.splash_tpu import splash_attention

    return splash_attention(q, k, v, spec, ids)


def _pallas(q, k, v, spec, ids, ranges):
    from ipt_jax.attention.pallas_gpu import pallas_attention

    return pallas_attention(q, k, v, spec, ranges)


def _pallas_interpret(q, k, v, spec, ids, ranges):
    from ipt_jax.attention.pallas_gpu import pallas_attention

    return pallas_attention(q, k, v, spec, ranges, interpret=True)


def _pallas_hopper(q, k, v, spec, ids, ranges):
    from ipt_jax.attention.pallas_hopper import pallas_hopper_attention

    return pallas_hopper_attention(q, k, v, spec, ranges)


# An explicit table: a backend that is not in it does not exist, and none falls back to another.
BACKENDS: dict[str, Callable[..., jax.Array]] = {
    "reference": _reference,
    "cudnn": _cudnn,
    "cudnn_packed": _cudnn_packed,
    "splash": _splash,
    "pallas": _pallas,
    "pallas_hopper": _pallas_hopper,
    "pallas_interpret": _pallas_interpret,  # the same kernel as plain JAX, slowly: for tests
}

# What `auto` takes, by device and by what the spec asks for: the first of these that holds. Our own
# kernel has not run on a GPU yet, nor splash in our hands on a TPU: until they are measured there,
# `auto` takes the reference, and the kernels are had by their names.
KINDS = ("segments", "softcap", "window", "causal", "full")
_REFERENCE: dict[str, str] = {kind: "reference" for kind in KINDS}
AUTOMATIC: dict[str, dict[str, str]] = {
    "cpu": _REFERENCE,
    "gpu": {**_REFERENCE, "window": "cudnn", "causal": "cudnn", "full": "cudnn"},
    "gpu float32": _REFERENCE,
    "tpu": _REFERENCE,
}


def automatic_table() -> str:
    """What `auto` takes, as text: a line per device, a column per kind of spec."""
    lines = [("device", *KINDS)]
    lines += [(device, *(row[kind] for kind in KINDS)) for device, row in AUTOMATIC.items()]
    return "\n".join("".join(f"{cell:<13}" for cell in line).rstrip() for line in lines)


def refusal(backend: str, spec: AttentionSpec, call: Call | None = None) -> str | None:
    """Why a backend cannot do this, or None; without a call, only what the spec decides.

    The limits of cudnn and splash are those of `jax.nn.dot_product_attention` and of
    `jax.experimental.pallas.ops.tpu.splash_attention` in JAX 0.11.2.
    """
    reasons: list[tuple[bool, str]] = []
    if backend == "cudnn":
        reasons += [
            (spec.segments, "takes no segment ids, and a mask of all pairs would grow with T²"),
            (spec.softcap is not None, "has no softcap"),
        ]
        if call is not None:
            halves = ("bfloat16", "float16")
            fits = call.head_width <= 128 and call.head_width % 8 == 0
            reasons += [
                (call.platform != "gpu", f"needs an NVIDIA GPU, and this is a {call.platform}"),
                (call.dtype not in halves, f"takes bfloat16 and float16, not {call.dtype}"),
                (not fits, f"takes head widths to 128 by eights, not {call.head_width}"),
            ]
    elif backend == "cudnn_packed":
        reasons += [
            (not spec.segments, "is for rows with segment ids; cudnn does the others"),
            (spec.softcap is not None, "has no softcap"),
        ]
        if call is not None:
            reasons += [
                (call.platform != "gpu", f"needs an H100 or newer, and this is a {call.platform}"),
                (
                    call.dtype not in ("bfloat16", "float16"),
                    f"takes bfloat16 and float16, not {call.dtype}",
                ),
                (
                    call.head_width > 128 or call.head_width % 8 != 0,
                    f"takes head widths to 128 by eights, not {call.head_width}",
                ),
            ]
    elif backend == "splash" and call is not None:
        reasons += [
            (call.platform != "tpu", f"needs a TPU, and this is a {call.platform}"),
            (call.length % 128 != 0, f"takes rows of whole 128 tokens, not {call.length}"),
        ]
    elif backend == "pallas_hopper":
        reasons += [(spec.softcap is not None, "has no softcap")]
        if call is not None:
            widths = (64, 96, 128)
            reasons += [
                (call.platform != "gpu", f"needs an H100 or H200, and this is a {call.platform}"),
                (
                    call.dtype not in ("bfloat16", "float16"),
                    f"takes bfloat16 and float16, not {call.dtype}",
                ),
                (
                    call.head_width not in widths,
                    f"takes the head widths {', '.join(map(str, widths))}, not {call.head_width}",
                ),
            ]
    elif backend in ("pallas", "pallas_interpret") and call is not None:
        kinds = ("bfloat16", "float16", "float32")
        reasons += [
            (
                backend == "pallas" and call.platform != "gpu",
                f"needs a GPU, and this is a {call.platform} (pallas_interpret runs the same "
                "kernel anywhere, slowly)",
            ),
            (call.dtype not in kinds, f"takes {', '.join(kinds)}, not {call.dtype}"),
            (call.head_width > 128, f"takes head widths to 128, not {call.head_width}"),
        ]
    return next((reason for holds, reason in reasons if holds), None)


def choose_backend(
    backend: str,
    platform: str | None = None,
    spec: AttentionSpec | None = None,
    dtype: str = "bfloat16",
) -> str:
    """The name of the backend that `attention` will use; `auto` goes by device, dtype and spec.

    Raises:
      ValueError: no such backend, or it cannot do what the spec asks for.
    """
    if backend == "auto":
        device = platform or jax.default_backend()
        exact = f"{device} {dtype}"
        return AUTOMATIC[exact if exact in AUTOMATIC else device][(spec or AttentionSpec()).kind]
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r}: known are auto, {', '.join(BACKENDS)}.")
    reason = None if spec is None else refusal(backend, spec)
    if reason:
        raise ValueError(_refused(backend, reason))
    return backend


def attention(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    spec: AttentionSpec,
    segment_ids: jax.Array | None = None,
    backend: str = "auto",
    *,
    ranges: KeyRanges | None = None,
) -> jax.Array:
    """Softmax attention; query heads share key heads in groups of H / K.

    Args:
      q_BTHh: queries.
      k_BTKh: keys.
      v_BTKh: values.
      spec: mask and scale.
      segment_ids: int32 [B, T], equal ids contiguous, 0 for padding; needed if and only if
        `spec.segments`.
      backend: `auto` or a name from BACKENDS.
      ranges: `key_ranges` of the same spec and ids, where several calls share them; None: they
        are worked out here.

    Returns:
      [B, T, H, h] in the dtype of the queries; zeros where a query sees nothing (padding).

    Raises:
      ValueError: shapes or segment ids that do not fit the spec, an unknown backend, one that
        cannot do this.
    """
    heads, kv_heads = q_BTHh.shape[2], k_BTKh.shape[2]
    if (
        heads % kv_heads
        or k_BTKh.shape != v_BTKh.shape
        or k_BTKh.shape[:2] != q_BTHh.shape[:2]
        or k_BTKh.shape[3] != q_BTHh.shape[3]
    ):
        raise ValueError(
            f"attention: queries {q_BTHh.shape}, keys {k_BTKh.shape} and values {v_BTKh.shape} "
            "do not fit: the number of query heads must be a multiple of the key heads, and all "
            "rows, lengths and head widths equal."
        )
    if not q_BTHh.dtype == k_BTKh.dtype == v_BTKh.dtype:
        raise ValueError(
            f"attention: queries {q_BTHh.dtype}, keys {k_BTKh.dtype} and values {v_BTKh.dtype} "
            "must be of one dtype."
        )
    if spec.segments != (segment_ids is not None):
        raise ValueError("attention: segment_ids must come exactly when spec.segments is set.")
    platform, dtype = jax.default_backend(), jnp.dtype(q_BTHh.dtype).name
    name = choose_backend(backend, platform, spec, dtype)
    length, width = q_BTHh.shape[1], q_BTHh.shape[3]
    call = Call(platform, dtype, length, width)
    reason = refusal(name, spec, call)
    if reason:
        raise ValueError(_refused(name, reason))
    if ranges is None:
        ranges = key_ranges(spec, segment_ids, length)
    return BACKENDS[name](q_BTHh, k_BTKh, v_BTKh, spec, segment_ids, ranges)


def _refused(backend: str, reason: str) -> str:
    return f"attention backend {backend}: {reason}. Name another, or auto:\n{automatic_table()}"
