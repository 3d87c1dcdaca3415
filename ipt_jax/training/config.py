"""A training run's whole configuration, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ipt_jax.data.pipeline import DataConfig
from ipt_jax.errors import UserError
from ipt_jax.models.config import ModelConfig
from ipt_jax.models.sharding import MeshConfig
from ipt_jax.training.checkpoints import CheckpointConfig
from ipt_jax.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class TrainConfig:
    """One training run: model, data, optimiser, devices, checkpoints."""

    run_folder: Path = Path("runs/train")
    """Where everything the run writes lies."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Preset and overrides."""
    data: DataConfig = field(default_factory=DataConfig)
    """Mixture, tokenizer, row length."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and its schedule."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """How devices are laid out."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When the state is saved."""
    batch_tokens: int = 524288
    """Tokens in one global batch."""
    train_tokens: int = 100_000_000_000
    """Tokens to train on; steps follow from it."""
    accumulation_steps: int = 1
    """Pieces that one batch is worked off in."""
    init_from: Path | None = None
    """Hugging Face folder whose weights training starts from; None: random ones."""
    attention_backend: str = "auto"
    """auto, or a name from ipt_jax.attention.spec.BACKENDS."""
    seed: int = 0
    """Seeds the parameters and dropout; data order has its own (data.seed)."""
    log_every_steps: int = 10
    """A line in metrics.jsonl every so many steps."""
    fresh: bool = False
    """Delete what the run folder holds and start over."""
    dry_run: bool = False
    """Compile the step for virtual devices, print what the run will need, and train nothing."""
    dry_run_devices: int = 8
    """Devices that the dry run pretends to have."""
    dry_run_device: str = "h100"
    """Whose memory and speed: a name from ipt_jax.training.plan.DEVICES."""
    dry_run_mfu: float = 0.4
    """Model FLOPs utilisation that the predicted hours assume."""

    @property
    def batch_rows(self) -> int:
        """Rows in one global batch."""
        return self.batch_tokens // self.data.row_tokens

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        return -(-self.train_tokens // self.batch_tokens)

    def check(self) -> None:
        """Refuse sizes that do not fit together, before anything is allocated.

        Raises:
          UserError: naming the key, its value and what is allowed.
        """
        T = self.data.row_tokens
        if self.batch_tokens < 1 or self.batch_tokens % T:
            below = max(self.batch_tokens // T, 1) * T
            raise UserError(
                f"batch_tokens={self.batch_tokens} is no multiple of data.row_tokens={T}; "
                f"{below} or {below + T} would be."
            )
        if self.accumulation_steps < 1 or self.batch_rows % self.accumulation_steps:
            raise UserError(
                f"accumulation_steps={self.accumulation_steps} does not divide the "
                f"{self.batch_rows} rows of a batch (batch_tokens / data.row_tokens)."
            )
        for key in ("train_tokens", "log_every_steps"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)}: must be at least 1.")
        decoder = self.model.decoder()
        if decoder.max_positions < T:
            raise UserError(
                f"data.row_tokens={T} is longer than the {decoder.max_positions} positions of "
                f"model.preset={self.model.preset!r}; shorten the rows or override "
                "model.overrides.max_positions."
            )
