"""Gaussian pooling: one vector of a whole text and one of each of its chunks.

FineInstructions, section 3.2 and appendix B.
"""

from __future__ import annotations

import math

import torch
from torch import nn

HALF = math.sqrt(2 * math.log(2))
"""Standard deviations from the centre at which a Gaussian is half as high."""


class GaussianPooling(nn.Module):
    """Means of a text's token vectors: over all of it, and round each chunk's centre.

    Chunk k of C has its centre at k / (C + 1) of the text and the width `sigma` times its length.
    """

    def __init__(self, num_chunks: int = 5, sigma: float = 0.05, alpha: float = 1.0):
        """
        Args:
          num_chunks: C; 0: the global mean alone.
          sigma: standard deviation of a chunk's weights, in lengths of the text.
          alpha: share of the chunk's own mean in its vector; the rest is the global mean.

        Raises:
          ValueError: naming the argument and what is allowed.
        """
        super().__init__()
        for name, right, allowed in (
            ("num_chunks", num_chunks >= 0, "at least 0"),
            ("sigma", sigma > 0, "above 0"),
            ("alpha", 0 <= alpha <= 1, "0 to 1"),
        ):
            if not right:
                raise ValueError(f"{name} must be {allowed}")
        self.num_chunks, self.sigma, self.alpha = num_chunks, sigma, alpha

    def forward(self, hidden_BTE: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """The vectors [B, C + 1, E], the global one first, not normalised.

        Args:
          hidden_BTE: token vectors.
          mask_BT: whether a token belongs to the text, left or right of padding.

        Raises:
          ValueError: a row has no token.
        """
        weights_BCT = self.weights(mask_BT)
        return torch.bmm(weights_BCT.to(hidden_BTE.dtype), hidden_BTE)

    def weights(self, mask_BT: torch.Tensor) -> torch.Tensor:
        """Each token's share of each vector, float32 [B, C + 1, T]; rows of T sum to 1.

        Tokens are counted from 1 to the text's own length, so that padding moves no centre.
        """
        distance_BCT = self._distances(mask_BT)
        mean_BT = mask_BT.float() / mask_BT.sum(1, keepdim=True)
        # A softmax: in a short text the nearest token may be many widths away, its weight 0 / 0.
        own_BCT = (-0.5 * (distance_BCT / self.sigma) ** 2).softmax(-1)
        chunks_BCT = self.alpha * own_BCT + (1 - self.alpha) * mean_BT[:, None]
        return torch.cat([mean_BT[:, None], chunks_BCT], 1)

    def windows(self, mask_BT: torch.Tensor) -> torch.Tensor:
        """Which tokens each chunk is made of, bool [B, C, T]: a Gaussian of at least 0.5.

        |t - c| ≤ σ √(2 ln 2) · T; of the second round of tuning (section 3.2). In a text too
        short for that a chunk has the tokens nearest to its centre.
        """
        distance_BCT = self._distances(mask_BT)
        least_BC = distance_BCT.min(-1).values.clamp(min=self.sigma * HALF)
        return distance_BCT <= least_BC[..., None]

    def _distances(self, mask_BT: torch.Tensor) -> torch.Tensor:
        """From each token to each centre, in lengths of the text; infinite for padding."""
        mask_BT = mask_BT.bool()
        length_B = mask_BT.sum(1)
        if not bool((length_B > 0).all()):
            rows = (length_B == 0).nonzero().flatten().tolist()
            raise ValueError(f"rows {rows}: all is padding, and no token is left to pool")
        place_BT = mask_BT.cumsum(1) / length_B[:, None]
        chunk_C = torch.arange(1, self.num_chunks + 1, device=mask_BT.device)
        centre_C = chunk_C / (self.num_chunks + 1)
        distance_BCT = (place_BT[:, None] - centre_C[:, None]).abs()
        return distance_BCT.masked_fill(~mask_BT[:, None], torch.inf)
