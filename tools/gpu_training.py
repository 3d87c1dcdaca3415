"""The training parts of tools/bench_gpu.py; run by it, each in a process of its own.

Ours is the step that `launch/train.py` runs. Beside it stands a plain one: Flax linen, one matrix
a projection, cuDNN attention, all logits at once, optax's AdamW. Both scan over their blocks, keep
float32 parameters, compute in bfloat16, and have no dropout.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen
from gpu_attention import segment_ids  # beside this file

from ipt_jax.attention.backends import Choice
from ipt_jax.chips.devices import device_of
from ipt_jax.models.config import PRESETS, DecoderConfig
from ipt_jax.models.decoder import rotary, rotate
from ipt_jax.models.sharding import MeshConfig, make_mesh
from ipt_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from ipt_jax.training.step import TrainSetup

Emit = Callable[..., None]
STEPS = 1000  # of the schedule; few of them are run


@dataclass(frozen=True)
class Training:
    """One model on one GPU."""

    preset: str
    """A name from ipt_jax.models.config.PRESETS."""
    row_tokens: int
    """Tokens a row."""
    rows: int
    """Rows a step."""
    remat: str = "none"
    """As DecoderConfig.remat, for both contestants."""
    half_moments: bool = False
    """AdamW's moments in bfloat16, for both: with float32 ones 8B does not fit in 141 GB."""

    def decoder(self) -> DecoderConfig:
        """The model."""
        return dataclasses.replace(PRESETS[self.preset], remat=self.remat, dropout=0.0)


TRAININGS = {
    "ipt_500m": Training("ipt_500m", 2048, 16),
    "ipt_1_3b": Training("ipt_1_3b", 2048, 8),
    "llama3_8b": Training("llama3_8b", 4096, 4, "full", True),
    "tiny": Training("tiny", 64, 2),
}


@dataclass
class Contestant:
    """A compiled step and its state."""

    step: Callable[[Any, Any], tuple[Any, Any]]
    state: Any
    last: Any = None

    def run(self, batch: Any, steps: int) -> float:
        """Seconds a step."""
        begin = time.perf_counter()
        for _ in range(steps):
            self.state, self.last = self.step(self.state, batch)
        jax.block_until_ready(self.last)
        return (time.perf_counter() - begin) / steps


def batch_of(training: Training, packed: bool) -> dict[str, jax.Array]:
    """A batch as the pipeline makes it, of random tokens."""
    shape = (training.rows, training.row_tokens)
    mean = 512 if training.row_tokens > 512 else 16
    ids = segment_ids(*shape, mean) if packed else np.ones(shape, np.int32)
    position = np.arange(shape[1], dtype=np.int32)[None]
    begins = np.pad(ids[:, 1:] != ids[:, :-1], ((0, 0), (1, 0)))
    start = np.maximum.accumulate(np.where(begins, position, 0), axis=1)
    tokens = np.random.default_rng(0).integers(0, training.decoder().vocabulary_size, shape)
    arrays = {
        "tokens": tokens.astype(np.int32),
        "targets": np.roll(tokens, -1, 1).astype(np.int32),
        "segment_ids": ids,
        "positions": (position - start).astype(np.int32),
        "source_ids": np.zeros(shape, np.int32),
        "loss_weights": np.ones(shape, np.float32),
    }
    return {name: jnp.asarray(x) for name, x in arrays.items()}


def optimizer_of(training: Training) -> optax.GradientTransformation:
    """AdamW of Instruction Pre-Training's Table 14."""
    kept = "bfloat16" if training.half_moments else "float32"
    return make_optimizer(OptimizerConfig(moments_dtype=kept), STEPS)


def ours(training: Training, backend: str, batch: Any) -> tuple[Contestant, Any]:
    """The step of launch/train.py, compiled, and what the compiler says of its memory."""
    decoder, mesh, optimizer = training.decoder(), make_mesh(MeshConfig()), optimizer_of(training)
    schedule = make_schedule(OptimizerConfig(), STEPS)
    setup = TrainSetup(decoder, mesh, optimizer, schedule, 1, attention=Choice(backend))
    compiled = setup.step_function.lower(setup.abstract, batch).compile()
    return Contestant(compiled, setup.init_state(0)), compiled.memory_analysis()


class PlainBlock(linen.Module):
    """One block, as a tutorial writes it."""

    config: DecoderConfig
    implementation: str

    @linen.compact
    def __call__(self, x: jax.Array, shared: tuple) -> tuple[jax.Array, None]:
        c = self.config
        rope, mask = shared
        norm = functools.partial(linen.RMSNorm, epsilon=c.norm_epsilon, dtype=c.compute_dtype)
        dense = functools.partial(linen.DenseGeneral, use_bias=False, dtype=c.compute_dtype)
        y = norm()(x)
        q, k, v = (dense((n, c.head_width))(y) for n in (c.heads, c.kv_heads, c.kv_heads))
        y = jax.nn.dot_product_attention(
            rotate(q, rope),
            rotate(k, rope),
            v,
            mask=mask,
            is_causal=True,
            implementation=self.implementation,  # type: ignore[arg-type]
        )
        x = x + dense(c.width, axis=(-2, -1))(y)
        y = norm()(x)
        y = jax.nn.silu(dense(c.mlp_width)(y)) * dense(c.mlp_width)(y)
        return x + dense(c.width)(y), None


class PlainDecoder(linen.Module):
    """Logits of a decoder of the same shape as ours."""

    config: DecoderConfig
    implementation: str

    @linen.compact
    def __call__(self, tokens: jax.Array, positions: jax.Array, mask: Any) -> jax.Array:
        c = self.config
        dtype = jnp.dtype(c.compute_dtype)
        x = linen.Embed(c.vocabulary_size, c.width, dtype=dtype)(tokens)
        rope = rotary(positions, c.head_width, c.rope_theta, c.rope_scaling)
        block = PlainBlock if c.remat == "none" else linen.remat(PlainBlock, prevent_cse=False)
        scanned = linen.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=linen.broadcast,  # type: ignore[arg-type]
            length=c.layers,
        )
        x, _ = scanned(c, self.implementation)(x, (rope, mask))
        x = linen.RMSNorm(epsilon=c.norm_epsilon, dtype=dtype)(x)
        small = linen.initializers.normal(0.02)  # as ours: the loss begins at log V
        return linen.Dense(c.vocabulary_size, use_bias=False, dtype=dtype, kernel_init=small)(x)


def plain(training: Training, packed: bool, batch: Any, dry_run: bool) -> Contestant:
    """A plain Flax step, compiled; packed rows go to cuDNN as a mask."""
    model = PlainDecoder(training.decoder(), "xla" if dry_run else "cudnn")
    optimizer = optimizer_of(training)

    def mask_of(batch: Any) -> jax.Array | None:
        ids = batch["segment_ids"]
        return (ids[:, :, None] == ids[:, None])[:, None] if packed else None

    def loss(params: Any, batch: Any) -> jax.Array:
        logits = model.apply(params, batch["tokens"], batch["positions"], mask_of(batch))
        logits = jnp.asarray(logits, jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return jnp.sum(losses * batch["loss_weights"]) / jnp.sum(batch["loss_weights"])

    def step(state: tuple, batch: Any) -> tuple[tuple, jax.Array]:
        params, moments = state
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    def new(batch: Any) -> tuple:
        given = (batch["tokens"][:1], batch["positions"][:1])
        params = model.init(jax.random.key(0), *given, None)
        return params, optimizer.init(params)

    abstract = jax.eval_shape(new, batch)
    compiled = jax.jit(step, donate_argnums=0).lower(abstract, batch).compile()
    return Contestant(compiled, jax.jit(new)(batch))


def train(
    name: str,
    packed: bool,
    emit: Emit,
    *,
    backend: str,
    rounds: int,
    seconds: float,
    dry_run: bool,
    trace: Path | None,
) -> None:
    """Tokens a second and MFUs of one model, ours and plain."""
    until = time.monotonic() + seconds
    training = TRAININGS["tiny" if dry_run else name]
    batch = batch_of(training, packed)
    kind = "packed" if packed else "dense"
    about = {"model": name, "rows": f"{training.rows} × {training.row_tokens} {kind}"}
    makers: dict[str, Callable[[], Contestant]] = {
        f"ours, {backend}": lambda: _ours(training, backend, batch, emit, about),
        f"plain Flax, cudnn{' with mask' if packed else ''}": lambda: plain(
            training, packed, batch, dry_run
        ),
    }
    # Two states of 8B do not fit: there one contestant follows the other.
    together = not training.half_moments
    running: dict[str, Contestant] = {}
    found: dict[str, list[float]] = {}
    losses: dict[str, float] = {}
    for label, make in makers.items():
        try:
            running[label] = make()
            running[label].run(batch, 2)
            last = running[label].last
            losses[label] = float(last["loss"] if isinstance(last, dict) else last)
        except Exception as error:  # one contestant less; the table says why
            running.pop(label, None)
            first_line = (str(error).splitlines() or [""])[0]
            reason = f"{type(error).__name__}: {first_line[:200]}"
            emit("failed", contestant=label, reason=reason, **about)
            continue
        if trace is not None and label.startswith("ours"):
            with jax.profiler.trace(str(trace)):
                running[label].run(batch, 2)
            emit("trace", files=sum(1 for x in trace.rglob("*") if x.is_file()))
        if not together:
            found[label] = [running[label].run(batch, 1) for _ in range(rounds)]
            del running[label]
    steps = 1 if dry_run else 3
    for number in range(rounds if together else 0):
        labels = list(running)
        for label in labels[number % 2 :] + labels[: number % 2]:
            found.setdefault(label, []).append(running[label].run(batch, steps))
        if time.monotonic() > until and number:
            emit("skipped", what=f"{name} {kind}: rounds {number + 2} to {rounds}")
            break
    for label, times in found.items():
        _emit_training(training, label, times, emit, together, about | {"loss": losses[label]})


def _ours(
    training: Training, backend: str, batch: Any, emit: Emit, about: dict[str, Any]
) -> Contestant:
    contestant, memory = ours(training, backend, batch)
    contestant.run(batch, 1)
    stats = jax.local_devices()[0].memory_stats() or {}
    laid_out = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    emit(
        "memory",
        peak_bytes=stats.get("peak_bytes_in_use"),
        compiler_bytes=laid_out + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        **about,
    )
    return contestant


def _emit_training(
    training: Training,
    label: str,
    times: list[float],
    emit: Emit,
    together: bool,
    about: dict[str, Any],
) -> None:
    seconds = statistics.median(times)
    tokens = training.rows * training.row_tokens / seconds
    device = device_of(jax.local_devices()[0])
    shares: list[float | None] = [None, None]
    if device is not None:
        shares = [
            tokens
            * training.decoder().flops_per_token(training.row_tokens, causal=causal)
            / device.peak_flops
            for causal in (True, False)
        ]
    emit(
        "training",
        contestant=label,
        tokens_per_second=tokens,
        spread=[training.rows * training.row_tokens / t for t in (max(times), min(times))],
        mfu_causal=shares[0],
        mfu_full=shares[1],
        rounds=len(times),
        alternating=together,
        **about,
    )


def predict(name: str, emit: Emit, dry_run: bool) -> None:
    """Memory as the dry run lays it out, on a virtual device; needs no GPU and no data."""
    from ipt_jax.data.mixture import DataConfig
    from ipt_jax.models.config import ModelConfig
    from ipt_jax.training import dry_run as planning
    from ipt_jax.training.config import TrainConfig

    planning.use_virtual_devices(1)
    planning.USABLE = float("inf")  # what it needs is asked for, not whether it fits
    training = TRAININGS["tiny" if dry_run else name]
    config = TrainConfig(
        model=ModelConfig(training.preset, {"remat": training.remat, "dropout": 0.0}),
        data=DataConfig(
            mixture={"root": ".", "tasks": {"text": {"source": "text"}}},
            row_tokens=training.row_tokens,
        ),
        batch_tokens=training.rows * training.row_tokens,
        dry_run_devices=1,
        dry_run_device="h200",
    )
    plan = planning.estimate_memory(config)
    saved = plan.optimizer_bytes // 2 if training.half_moments else 0
    emit("prediction", model=name, bytes=plan.total_bytes - saved)
