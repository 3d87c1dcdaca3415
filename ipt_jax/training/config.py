"""A training run's whole configuration, what follows from it, and whether a mesh can do it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from jax.sharding import Mesh

from ipt_jax.attention.backends import BACKENDS, check_backend
from ipt_jax.attention.spec import AttentionSpec
from ipt_jax.chips.devices import DEVICES
from ipt_jax.core.bounds import Above, AtMost, Config, OneOf, Positive
from ipt_jax.core.errors import UserError, require
from ipt_jax.data.pipeline import DataConfig, OpenMixture
from ipt_jax.data.rows import MixtureRows
from ipt_jax.data.tasks import NATURAL
from ipt_jax.models.config import DecoderConfig, ModelConfig
from ipt_jax.models.lora import LoraConfig
from ipt_jax.models.sharding import MESH_AXIS_OF, MeshConfig, batch_shards
from ipt_jax.training.checkpoints import CheckpointConfig
from ipt_jax.training.hooks import ProfileConfig
from ipt_jax.training.metrics import SAVED_METRICS, MetricsConfig
from ipt_jax.training.optimizer import ExtensionConfig, GuardConfig, OptimizerConfig
from ipt_jax.training.processes import ProcessesConfig
from ipt_jax.training.watchdog import WatchdogConfig


@dataclass(frozen=True)
class TrainConfig(Config):
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
    guard: GuardConfig = field(default_factory=GuardConfig)
    """Which batches are skipped."""
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    """What is written down, and how often."""
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    """Which steps a profiler trace is taken of."""
    processes: ProcessesConfig = field(default_factory=ProcessesConfig)
    """How several processes find each other."""
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    """How long a process may be silent."""
    adapter: LoraConfig | None = None
    """Train LoRA adapters on frozen weights (needs init_from); null: all weights."""
    batch_tokens: Positive = 524288
    """Tokens in one global batch."""
    train_tokens: Positive = 100_000_000_000
    """Tokens to train on; steps follow from it."""
    extensions: tuple[ExtensionConfig, ...] = ()
    """Tokens to train on after those, a finished run too: `[{tokens: 1000000, schedule: linear}]`.
    More can be added to those that a run was started with."""
    epochs: Annotated[float, Above(0)] | None = None
    """Train on the mixture's records this often instead, rounded down to whole batches (needs
    natural rates by tokens); train_tokens is then what a dry run assumes."""
    rows_per_device: Positive | None = None
    """Most rows that a device works on at a time: a batch is worked off in as many pieces as that
    takes on the mesh. Null: all its rows at once."""
    accumulation_steps: Positive | None = None
    """Micro-batches that one batch is worked off in; null: as rows_per_device says."""
    init_from: Path | None = None
    """Hugging Face folder or run whose weights training starts from; null: random ones."""
    attention_backend: Annotated[str, OneOf(("auto", *BACKENDS))] = "auto"
    """auto, or a name from ipt_jax.attention.backends.BACKENDS."""
    seed: int = 0
    """Seeds the parameters and dropout; data order has its own (data.seed)."""
    resume: str = "auto"
    """auto: from the newest good checkpoint, if there is one; required: refuse to start without
    one; a number: from the checkpoint of that position."""
    fresh: bool = False
    """Delete what the run folder holds and start over."""
    xla_flags: Literal["auto", "none"] = "auto"
    """auto: the flags of ipt_jax.training.startup where a GPU is used; none: yours alone."""
    compilation_cache: Path | None = Path("~/.cache/ipt_jax/compiled")
    """Where compiled steps are kept for the next start; null: nowhere."""
    dry_run: bool = False
    """Compile the step for virtual devices, print what the run will need, and train nothing."""
    dry_run_devices: Positive = 8
    """Devices that the dry run pretends to have."""
    dry_run_device: Annotated[str, OneOf(DEVICES)] = "h100"
    """Whose memory and speed: a name from ipt_jax.chips.devices.DEVICES."""
    dry_run_mfu: Annotated[float, Above(0), AtMost(1)] = 0.4
    """Model FLOPs utilisation that the predicted hours assume."""

    @property
    def batch_rows(self) -> int:
        """Rows in one global batch."""
        return self.batch_tokens // self.data.row_tokens

    @property
    def pieces(self) -> int:
        """Micro-batches of a batch; before `accumulation.with_accumulation`, the fewest."""
        return 1 if self.accumulation_steps is None else self.accumulation_steps

    @property
    def base_steps(self) -> int:
        """Updates of the run without its extensions."""
        return -(-self.train_tokens // self.batch_tokens)

    @property
    def extension_steps(self) -> list[tuple[ExtensionConfig, int]]:
        """The extensions, each with its updates."""
        return [(more, -(-more.tokens // self.batch_tokens)) for more in self.extensions]

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        return self.base_steps + sum(steps for _, steps in self.extension_steps)

    def for_epochs(self, mixture: OpenMixture) -> TrainConfig:
        """The same config with `train_tokens` as `epochs`, if set, asks of this mixture.

        Raises:
          UserError: rates that are not the sources' own sizes, or less than one batch.
        """
        if self.epochs is None:
            return self
        if mixture.mixture.rates != NATURAL or mixture.mixture.by != "tokens":
            raise UserError(
                f"epochs={self.epochs:g}: the mixture {mixture.mixture.name!r} has rates of its "
                "own, so that an epoch of it is not defined",
                key="epochs",
                advice="set `rates: natural` and `by: tokens` there, or give train_tokens instead",
            )
        tokens = sum(mixture.epoch_tokens)
        if self.data.packing == "best_fit":  # its rows are not full, so that there are more
            T = self.data.row_tokens
            tokens = len(MixtureRows(mixture, row_tokens=T, seed=self.data.seed)) * T
        whole = int(self.epochs * tokens) // self.batch_tokens
        if whole < 1:
            raise UserError(
                f"epochs={self.epochs:g} of the mixture's {tokens:,} tokens are less than one "
                f"batch of batch_tokens={self.batch_tokens:,}",
                key="epochs",
                advice="lower batch_tokens",
            )
        return dataclasses.replace(self, train_tokens=whole * self.batch_tokens)

    def check(self) -> None:
        """Refuse sizes that do not fit together, before anything is allocated.

        Raises:
          UserError: naming the key, its value and what is allowed.
        """
        T = self.data.row_tokens
        if self.batch_tokens % T:
            below = max(self.batch_tokens // T, 1) * T
            raise UserError(
                f"batch_tokens={self.batch_tokens} is no multiple of data.row_tokens={T}; "
                f"{below} or {below + T} would be.",
                key="batch_tokens",
            )
        if self.batch_rows % self.pieces:
            raise UserError(
                f"accumulation_steps={self.accumulation_steps} does not divide the "
                f"{self.batch_rows} rows of a batch (batch_tokens / data.row_tokens).",
                key="accumulation_steps",
            )
        self.metrics.check()
        kept_by = self.checkpoints.best_metric
        right = not self.checkpoints.keep_best or kept_by in SAVED_METRICS
        require("checkpoints.best_metric", kept_by, right, f"one of {', '.join(SAVED_METRICS)}")
        right = self.resume in ("auto", "required") or self.resume.isdecimal()
        require("resume", self.resume, right, "auto, required, or a checkpoint's position")
        if self.adapter is not None and self.init_from is None:
            raise UserError(
                "adapter is set and init_from is not: adapters are trained on given weights",
                key="init_from",
                advice="name a Hugging Face folder or a run in init_from",
            )
        try:
            # Batches of the pipeline always come with segment ids.
            check_backend(self.attention_backend, AttentionSpec(segments=True))
        except ValueError as error:
            raise UserError(f"attention_backend: {error}", key="attention_backend") from error
        decoder = self.model.decoder()
        if decoder.max_positions < T:
            raise UserError(
                f"data.row_tokens={T} is longer than the {decoder.max_positions} positions of "
                f"model.preset={self.model.preset!r}",
                key="data.row_tokens",
                advice="shorten the rows or override model.overrides.max_positions",
            )


# Logical axis of a parameter -> the field of DecoderConfig that gives its size.
FIELD_OF: dict[str, str] = {
    "vocabulary": "vocabulary_size",
    "kv_heads": "kv_heads",
    "heads": "heads",
    "mlp": "mlp_width",
    "width": "width",
}


def with_accumulation(config: TrainConfig, mesh: Mesh) -> TrainConfig:
    """The config with the `accumulation_steps` that `rows_per_device` asks for on this mesh.

    They are the fewest equal pieces with no more rows a device.
    """
    if config.accumulation_steps is not None or config.rows_per_device is None:
        return config
    each = max(1, config.batch_rows // batch_shards(mesh))
    most = max(n for n in range(1, min(each, config.rows_per_device) + 1) if each % n == 0)
    return dataclasses.replace(config, accumulation_steps=each // most)


def check_division(config: TrainConfig, decoder: DecoderConfig, mesh: Mesh) -> None:
    """Refuse what would leave devices without equal shares.

    Raises:
      UserError: rows of a piece, tokens of a row or a weight's axis that do not divide; it names
        the key, its value and values that would do.
    """
    _check_rows(config, mesh)
    context = mesh.shape["context"]
    if config.data.row_tokens % context:
        raise UserError(
            f"data.row_tokens={config.data.row_tokens} does not divide among "
            f"mesh.context={context} devices",
            key="data.row_tokens",
            advice="change one of them",
        )
    for logical, axis in MESH_AXIS_OF.items():
        size, devices = getattr(decoder, FIELD_OF[logical]), mesh.shape[axis]
        if size % devices:
            smaller = max(n for n in range(1, devices) if size % n == 0)
            raise UserError(
                f"mesh.{axis}={devices} does not divide {FIELD_OF[logical]}={size} of "
                f"model.preset={config.model.preset!r}",
                key=f"mesh.{axis}",
                advice=f"mesh.{axis}={smaller} would",
            )


def _check_rows(config: TrainConfig, mesh: Mesh) -> None:
    rows, pieces, shards = config.batch_rows, config.pieces, batch_shards(mesh)
    if rows % (pieces * shards) == 0:
        return
    said = (
        f"batch_tokens={config.batch_tokens} is {rows} rows of data.row_tokens="
        f"{config.data.row_tokens}; in accumulation_steps={pieces} pieces they do not divide among "
        f"mesh.data × mesh.fsdp = {shards} devices"
    )
    if rows % shards == 0:
        each = rows // shards
        fewer = max(n for n in range(1, pieces + 1) if each % n == 0)
        raise UserError(said, key="batch_tokens", advice=f"accumulation_steps={fewer} would")
    most = max(n for n in range(1, min(rows, shards) + 1) if rows % n == 0 and shards % n == 0)
    fewer = max(n for n in range(1, pieces + 1) if rows // most % n == 0)
    raise UserError(
        said,
        key="batch_tokens",
        advice=(
            f"let {most} of them share the rows and {shards // most} split a row or the weights "
            f"(mesh.context or mesh.tensor = {shards // most}, accumulation_steps={fewer}), take "
            "another number of devices, or change batch_tokens"
        ),
    )
