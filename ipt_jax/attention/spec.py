"""What attention is asked to do, and which keys each query then sees, as ranges.

Ranges are worked out once per batch and shared by layers and passes. Segments lie in one piece, so
causal ∩ window ∩ segment is one run of keys for each query, and one run of queries for each key.
Kernels mask by these ranges alone and never ask for an absolute position of a query, so a piece of
a row's queries works as well as the whole row.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax


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
        """What `auto` goes by, see `ipt_jax.attention.backends.ORDER`."""
        asked = {
            "segments": self.segments,
            "softcap": self.softcap is not None,
            "window": self.window is not None,
            "causal": self.causal,
        }
        return next((kind for kind, holds in asked.items() if holds), "full")


PADDING = 0  # the segment id of padding: it sees nothing and nothing sees it


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeyRanges:
    """Half-open ranges, int32 [B, T], or [1, T] where all rows are alike; empty ones are 0, 0."""

    key_start: jax.Array
    """The first key that the query at this place sees."""
    key_stop: jax.Array
    """One past the last key that it sees."""
    query_start: jax.Array
    """The first query that sees the key at this place."""
    query_stop: jax.Array
    """One past the last query that sees it."""


def key_ranges(spec: AttentionSpec, segment_ids_BT: jax.Array | None, length: int) -> KeyRanges:
    """The ranges of every token of rows of `length` tokens.

    A new segment begins wherever the id changes; id 0 is padding.
    """
    position = jnp.arange(length, dtype=jnp.int32)[None]
    first, stop = jnp.zeros_like(position), jnp.full_like(position, length)
    real = jnp.ones_like(position, bool)
    if segment_ids_BT is not None:
        ids = jnp.asarray(segment_ids_BT)
        edge = jnp.ones_like(ids[:, :1], bool)
        changes = ids[:, 1:] != ids[:, :-1]
        begins = jnp.concatenate([edge, changes], 1)
        ends = jnp.concatenate([changes, edge], 1)
        first = lax.cummax(jnp.where(begins, position, 0), 1)
        stop = lax.cummin(jnp.where(ends, position + 1, length), 1, reverse=True)
        real = ids != PADDING
    reach = length if spec.window is None else spec.window
    after = position if spec.causal else first
    before = position + 1 if spec.causal else stop
    return KeyRanges(
        jnp.where(real, jnp.maximum(first, position - reach + 1) if spec.causal else first, 0),
        jnp.where(real, jnp.minimum(stop, before), 0),
        jnp.where(real, jnp.maximum(first, after), 0),
        jnp.where(real, jnp.minimum(stop, position + reach) if spec.causal else stop, 0),
    )


def tile_bounds(
    starts: jax.Array, stops: jax.Array, tile: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The tiles of the other side that one tile's ranges (last axis) touch.

    Tiles in [first, last) hold something that is seen: each of them does, unless padding lies
    between two segments. Those in [full_first, full_last) are seen whole by every one, so that
    nothing in them is masked.

    Returns:
      first, full_first, full_last, last: in this order never descending.
    """
    size = jnp.int32(tile)
    unseen = jnp.iinfo(jnp.int32).max // 2
    last = lax.div(jnp.max(stops, -1) + (size - 1), size)
    first = lax.div(jnp.min(jnp.where(stops > starts, starts, unseen), -1), size)
    first = jnp.minimum(first, last)
    full_first = lax.div(jnp.max(starts, -1) + (size - 1), size)
    full_first = jnp.maximum(first, jnp.minimum(full_first, last))
    full_last = jnp.maximum(lax.div(jnp.min(stops, -1), size), full_first)
    return first, full_first, full_last, last
