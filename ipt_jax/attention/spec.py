"""What attention is asked to do, and which backend does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax

from ipt_jax.attention.reference import reference_attention


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

    def __post_init__(self) -> None:
        if self.window is not None and (self.window < 1 or not self.causal):
            raise ValueError(
                f"AttentionSpec: window={self.window} needs causal=True and at least 1 token."
            )


# An explicit table: a backend that is not in it does not exist, and none falls back to another.
BACKENDS: dict[str, Callable[..., jax.Array]] = {"reference": reference_attention}
AUTOMATIC: dict[str, str] = {"cpu": "reference", "gpu": "reference", "tpu": "reference"}


def choose_backend(backend: str, platform: str | None = None) -> str:
    """The name of the backend that `attention` will use; `auto` goes by device platform.

    Raises:
      ValueError: no such backend.
    """
    if backend == "auto":
        return AUTOMATIC[platform or jax.default_backend()]
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r}: known are auto, {', '.join(BACKENDS)}.")
    return backend


def attention(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    spec: AttentionSpec,
    segment_ids: jax.Array | None = None,
    backend: str = "auto",
) -> jax.Array:
    """Softmax attention; query heads share key heads in groups of H / K.

    Args:
      q_BTHh: queries.
      k_BTKh: keys.
      v_BTKh: values.
      spec: mask and scale.
      segment_ids: int32 [B, T], equal ids contiguous; needed if and only if `spec.segments`.
      backend: `auto` or a name from BACKENDS.

    Returns:
      [B, T, H, h] in the dtype of the queries.

    Raises:
      ValueError: shapes or segment ids that do not fit the spec, an unknown backend.
    """
    heads, kv_heads = q_BTHh.shape[2], k_BTKh.shape[2]
    if heads % kv_heads or k_BTKh.shape != v_BTKh.shape or k_BTKh.shape[1] != q_BTHh.shape[1]:
        raise ValueError(
            f"attention: queries {q_BTHh.shape}, keys {k_BTKh.shape} and values {v_BTKh.shape} "
            "do not fit: the number of query heads must be a multiple of the key heads, and all "
            "lengths equal."
        )
    if spec.segments != (segment_ids is not None):
        raise ValueError("attention: segment_ids must come exactly when spec.segments is set.")
    return BACKENDS[choose_backend(backend)](q_BTHh, k_BTKh, v_BTKh, spec, segment_ids)
