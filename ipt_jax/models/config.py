"""The shape of a Llama or Mistral decoder, and the shapes the papers train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ipt_jax.core.bounds import Above, Amount, Config, Fraction, OneOf, Positive, config_of
from ipt_jax.core.errors import UserError, require

Params = dict[str, Any]  # parameters as a nested dict, by attribute name
# What a block can keep for the backward pass -> what it then need not recompute.
SAVEABLE: dict[str, str] = {
    "query_key_value": "three projections and their rotary embedding",
    "attention": "attention itself; its log-sum-exp is kept beside it",
    "attention_output": "the projection back into the residual stream",
    "gate_up": "the MLP's first two projections, the largest of all",
}


@dataclass(frozen=True)
class RopeScaling(Config):
    """Llama 3.1's stretching of slow rotary frequencies for longer contexts."""

    factor: float = 8.0
    """How much slower the slowest frequencies turn."""
    low_frequency_factor: float = 1.0
    """Wavelengths longer than original_positions / this are stretched in full."""
    high_frequency_factor: float = 4.0
    """Wavelengths shorter than original_positions / this stay as they are."""
    original_positions: int = 8192
    """The context the model was first trained with, in tokens."""


@dataclass(frozen=True)
class DecoderConfig(Config):
    """One decoder: sizes, rotary embedding, attention window, numerics."""

    vocabulary_size: Positive
    """Rows of the embedding, V."""
    width: Positive
    """Residual width, D."""
    mlp_width: Positive
    """Inner width of the SwiGLU, F."""
    layers: Positive
    """Number of blocks, L."""
    heads: Positive
    """Query heads, H."""
    kv_heads: Positive
    """Key-value heads, K; H is a multiple of it."""
    head_width: Positive
    """Width of one head, h."""
    max_positions: Positive
    """Longest row the model is made for, in tokens."""
    family: Literal["mistral", "llama"] = "mistral"
    """Which Hugging Face architecture the weights export to: mistral or llama."""
    rope_theta: Annotated[float, Above(0)] = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Llama 3.1's long-context scaling, or None."""
    window: Positive | None = None
    """Sliding attention window in tokens, or None for all earlier tokens."""
    tied_embeddings: bool = False
    """Whether the output projection is the embedding itself."""
    norm_epsilon: Amount = 1e-5
    """Added to the mean square in RMSNorm."""
    dropout: Fraction = 0.0
    """Rate on embeddings, attention output and MLP output while training."""
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """float32 or bfloat16 for activations; parameters stay float32."""
    remat: Literal["auto", "none", "dots", "names", "full"] = "auto"
    """What the backward pass recomputes: none, dots (all but matrix products), names (all but what
    remat_save names), full, or auto: none on a CPU; on GPU and TPU names, all of SAVEABLE."""
    remat_save: tuple[Annotated[str, OneOf(SAVEABLE)], ...] = ()
    """With remat names: what each block keeps, from ipt_jax.models.config.SAVEABLE."""

    def check_together(self) -> None:
        heads, groups, width = self.heads, self.kv_heads, self.head_width
        require("heads", heads, heads % groups == 0, f"a multiple of kv_heads={groups}")
        require("head_width", width, width % 2 == 0, "even (rotary pairs)")
        if self.window is not None and self.family == "llama":
            raise UserError(
                f"window={self.window}: Hugging Face's Llama has no sliding window",
                key="window",
                advice="set the family to mistral, or the window to null",
            )
        if (self.remat == "names") != bool(self.remat_save):
            raise UserError(
                f"remat={self.remat!r} with remat_save={list(self.remat_save)}: remat: names and a "
                f"list of what is kept ({', '.join(SAVEABLE)}) need each other.",
                key="remat",
            )

    def remat_on(self, platform: str) -> tuple[str, tuple[str, ...]]:
        """`remat` with auto resolved, and the names that are kept.

        What a block stores in a scan is written, cleared and read again: on an H200 keeping the
        names alone is 1.09 times as fast as keeping everything, with less than half of the memory.
        """
        if self.remat != "auto":
            return self.remat, self.remat_save
        return ("none", ()) if platform == "cpu" else ("names", tuple(SAVEABLE))

    def parameter_count(self) -> int:
        """Number of parameters, embeddings included."""
        attention = self.width * self.head_width * (2 * self.heads + 2 * self.kv_heads)
        block = attention + 3 * self.width * self.mlp_width + 2 * self.width
        tables = self.vocabulary_size * self.width * (1 if self.tied_embeddings else 2)
        return self.layers * block + tables + self.width

    def flops_per_token(
        self, row_tokens: int, *, causal: bool = True, frozen: bool = False
    ) -> float:
        """Training FLOPs a token: six a matrix parameter, and attention's score products.

        With `causal`, attention is counted for the half of the scores that are seen; without,
        for all of them (both conventions are in use for MFU). With `frozen`, four a matrix
        parameter: its gradient is not made.
        """
        embedding = 0 if self.tied_embeddings else self.vocabulary_size * self.width
        matrices = self.parameter_count() - embedding
        seen = min(row_tokens, self.window or row_tokens)
        attention = 12 * self.layers * self.heads * self.head_width * seen
        return (4 if frozen else 6) * matrices + (attention / 2 if causal else attention)


_LLAMA3 = dict(vocabulary_size=128256, family="llama", rope_theta=500000.0)
_MISTRAL = dict(vocabulary_size=32000, family="mistral", rope_theta=10000.0)


def _preset(base: Mapping[str, Any], **shape: Any) -> DecoderConfig:
    return DecoderConfig(**{**base, **shape})


PRESETS: dict[str, DecoderConfig] = {
    # Instruction Pre-Training, Table 14.
    "ipt_500m": _preset(
        _MISTRAL, width=1536, mlp_width=4320, layers=16, heads=24, kv_heads=24, head_width=64,
        max_positions=2048, dropout=0.1,
    ),
    "ipt_1_3b": _preset(
        _MISTRAL, width=2048, mlp_width=8192, layers=20, heads=32, kv_heads=8, head_width=64,
        max_positions=2048, dropout=0.1,
    ),
    "llama3_8b": _preset(
        _LLAMA3, width=4096, mlp_width=14336, layers=32, heads=32, kv_heads=8, head_width=128,
        max_positions=8192, dropout=0.1,
    ),
    # The published shapes of the models that the papers start from.
    "mistral_7b": _preset(
        _MISTRAL, width=4096, mlp_width=14336, layers=32, heads=32, kv_heads=8, head_width=128,
        max_positions=32768, window=4096, dropout=0.1,
    ),
    "llama3_2_1b": _preset(
        _LLAMA3, width=2048, mlp_width=8192, layers=16, heads=32, kv_heads=8, head_width=64,
        max_positions=131072, tied_embeddings=True, rope_scaling=RopeScaling(factor=32.0),
    ),
    "llama3_2_3b": _preset(
        _LLAMA3, width=3072, mlp_width=8192, layers=28, heads=24, kv_heads=8, head_width=128,
        max_positions=131072, tied_embeddings=True, rope_scaling=RopeScaling(factor=32.0),
    ),
    # FineInstructions, 4.2 and App. F, names sizes, the Llama 3 tokenizer and the Lingua library.
    # The shapes are ours: 1.8B and 7B are Lingua's 1B (2048 wide, 25 layers) and 7B (4096, 32) by
    # its rules: heads of 128, as many key-value heads, MLP 8/3 of the width up to a multiple of
    # 256, theta 10,000; with 128,256 tokens the first has 1.81B parameters, the paper's number.
    # 300M keeps the 1B's ratio of width to depth and ties its embeddings: two would be 263M.
    "fi_300m": _preset(
        _LLAMA3, rope_theta=10000.0, width=1024, mlp_width=2816, layers=13, heads=8, kv_heads=8,
        head_width=128, max_positions=4096, tied_embeddings=True,
    ),
    "fi_1_8b": _preset(
        _LLAMA3, rope_theta=10000.0, width=2048, mlp_width=5632, layers=25, heads=16, kv_heads=16,
        head_width=128, max_positions=4096,
    ),
    "fi_7b": _preset(
        _LLAMA3, rope_theta=10000.0, width=4096, mlp_width=11008, layers=32, heads=32, kv_heads=32,
        head_width=128, max_positions=4096,
    ),
    "smollm2_135m": _preset(
        _LLAMA3, vocabulary_size=49152, width=576, mlp_width=1536, layers=30, heads=9, kv_heads=3,
        head_width=64, max_positions=8192, tied_embeddings=True, rope_theta=100000.0,
    ),
    # Small enough for two processor cores: Mistral's vocabulary, a few million other weights.
    "quickstart": _preset(
        _MISTRAL, width=192, mlp_width=512, layers=6, heads=6, kv_heads=2, head_width=32,
        max_positions=1024, compute_dtype="float32",
    ),
    "tiny": _preset(
        _MISTRAL, vocabulary_size=256, width=32, mlp_width=64, layers=2, heads=4, kv_heads=2,
        head_width=8, max_positions=128, compute_dtype="float32",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ModelConfig(Config):
    """A preset and what to change in it."""

    preset: Annotated[str, OneOf(PRESETS)] = "quickstart"
    """A name from ipt_jax.models.config.PRESETS."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of DecoderConfig to set differently, by name."""

    def decoder(self) -> DecoderConfig:
        """The decoder's full shape.

        Raises:
          UserError: an unknown field, or a value that cannot be.
        """
        return config_of(
            DecoderConfig, vars(PRESETS[self.preset]) | self.overrides, "model.overrides."
        )
