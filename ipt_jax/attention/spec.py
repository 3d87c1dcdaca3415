"""What attention is asked to do."""

from __future__ import annotations

from dataclasses import dataclass


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
