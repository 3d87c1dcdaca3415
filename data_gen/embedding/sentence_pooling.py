"""Gaussian pooling as a module of sentence-transformers: it is saved and loaded with a model.

Apart from `pooling`, which needs torch alone.
"""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Module

from data_gen.embedding.pooling import GaussianPooling


class SentenceGaussianPooling(Module):
    """Token vectors to the concatenation of the global vector and those of the chunks (app. B).

    `SentenceTransformer(folder, trust_remote_code=True)` loads a saved model where this project is
    installed: the library asks for that flag whenever a class is not its own. `open_embedder` does
    without.
    """

    config_keys = ["embedding_dimension", "num_chunks", "sigma", "alpha"]  # noqa: RUF012 (theirs)

    def __init__(
        self,
        embedding_dimension: int,
        num_chunks: int = 5,
        sigma: float = 0.05,
        alpha: float = 1.0,
    ) -> None:
        """`embedding_dimension`: E of the token vectors; the others as `GaussianPooling`'s."""
        super().__init__()
        self.pooling = GaussianPooling(num_chunks, sigma, alpha)
        self.embedding_dimension = embedding_dimension
        self.num_chunks, self.sigma, self.alpha = num_chunks, sigma, alpha

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `sentence_embedding` [B, (C + 1) * E], not normalised.

        Raises:
          ValueError: the texts came in one row without padding, as flash attention takes them.
        """
        if "cu_seq_lens_q" in features:
            raise ValueError(
                "Gaussian pooling takes padded rows: set `unpad_inputs` of the model's first "
                "module to False"
            )
        pooled_BCE = self.pooling(features["token_embeddings"], features["attention_mask"])
        features["sentence_embedding"] = pooled_BCE.flatten(1)
        return features

    def get_embedding_dimension(self) -> int:
        """(C + 1) * E."""
        return (self.num_chunks + 1) * self.embedding_dimension

    def split(self, joined_BV: torch.Tensor) -> torch.Tensor:
        """The vectors of the concatenation apart, each normalised by itself: [B, C + 1, E].

        One that cannot be, because it is zero, becomes NaN.
        """
        apart_BCE = joined_BV.float().unflatten(1, (self.num_chunks + 1, self.embedding_dimension))
        return apart_BCE / apart_BCE.norm(dim=-1, keepdim=True)

    def save(self, output_path: str, *_: Any, safe_serialization: bool = True, **__: Any) -> None:
        """Write the settings; there are no weights."""
        self.save_config(output_path)
