"""AdamW with a warmed-up schedule, from optax, and the guard: bad batches change nothing.

The guard decides on the device, inside the step, so that the host never waits for it. As in OLMo's
training, a spike is judged against the mean and deviation of the losses just before it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax

from ipt_jax.core.bounds import Above, Amount, Config, Fraction, NotNegative, Positive, Share
from ipt_jax.core.errors import UserError


@dataclass(frozen=True)
class OptimizerConfig(Config):
    """AdamW and its schedule; defaults are Instruction Pre-Training's Table 14."""

    peak_learning_rate: Amount = 3e-4
    """Learning rate after warm-up."""
    warmup_steps: NotNegative = 2000
    """Steps of linear rise from 0; at most half the run is warm-up."""
    warmup_fraction: Fraction | None = None
    """Share of the steps that is warm-up, in place of warmup_steps; null: warmup_steps holds."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """cosine, linear, wsd (warm-up, stable, decay) or constant."""
    final_fraction: Share = 0.1
    """Learning rate at the last step over the peak."""
    decay_fraction: Share = 0.1
    """wsd: the share of the steps in which the rate falls."""
    beta1: Fraction = 0.9
    """Decay of the first moment."""
    beta2: Fraction = 0.95
    """Decay of the second moment."""
    epsilon: Amount = 1e-8
    """Added to the root of the second moment."""
    moments_dtype: Literal["float32", "bfloat16"] = "float32"
    """What both moments lie in between updates; bfloat16 halves them, and needs beta2 <= 0.99."""
    weight_decay: Amount = 0.1
    """Decoupled weight decay; not on norms."""
    clip_norm: Annotated[float, Above(0)] = 1.0
    """Largest global gradient norm."""
    z_loss: Amount = 0.0
    """Factor on the squared log-partition added to the loss."""

    def check_together(self) -> None:
        # A second moment that changes by 0.1% a step stands still where numbers are 0.8% apart.
        if self.moments_dtype == "bfloat16" and self.beta2 > 0.99:
            raise UserError(
                f"beta2={self.beta2} with moments_dtype=bfloat16: its steps would be lost in "
                "rounding",
                key="beta2",
                advice="beta2 must be at most 0.99, or moments_dtype float32",
            )


@dataclass(frozen=True)
class ExtensionConfig(Config):
    """More tokens than a run was planned for, with a schedule of their own."""

    tokens: Positive
    """So many more."""
    schedule: Literal["constant", "linear", "cosine"]
    """Of the learning rate from where the run was to end: constant, linear or cosine."""
    peak_learning_rate: Amount | None = None
    """Rate to rise to; null: the one that the updates before end with."""
    warmup_steps: NotNegative = 0
    """Steps of linear rise from the rate before to the peak; at most half of the extension."""
    final_fraction: Share = 0.1
    """linear and cosine: the learning rate at the last step over the peak."""


# Each with the updates that it makes.
Extensions = Sequence[tuple[ExtensionConfig, int]]


def warmup_steps(config: OptimizerConfig, steps: int) -> int:
    """Steps of warm-up in a run of `steps`."""
    fraction = config.warmup_fraction
    if fraction is None:
        return min(config.warmup_steps, steps // 2)
    return round(fraction * steps)


def make_schedule(
    config: OptimizerConfig, steps: int, extensions: Extensions = ()
) -> optax.Schedule:
    """Learning rate by update count: that of a run of `steps`, then of each extension.

    Raises:
      UserError: shares of warm-up and decay that overlap.
    """
    schedule = _planned_schedule(config, steps)
    for extension, more in extensions:
        begin = float(jnp.asarray(schedule(steps)))
        peak = extension.peak_learning_rate
        peak = begin if peak is None else peak
        warmup = min(extension.warmup_steps, more // 2)
        if extension.schedule == "constant":
            after = optax.constant_schedule(peak)
        elif extension.schedule == "linear":
            after = optax.linear_schedule(peak, peak * extension.final_fraction, more - warmup)
        else:
            after = optax.cosine_decay_schedule(peak, more - warmup, extension.final_fraction)
        rise = optax.linear_schedule(begin, peak, warmup)
        schedule = optax.join_schedules([schedule, rise, after], [steps, steps + warmup])
        steps += more
    return schedule


def _planned_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    warmup = warmup_steps(config, steps)
    peak, final = config.peak_learning_rate, config.peak_learning_rate * config.final_fraction
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1), final)
    rise = optax.linear_schedule(0.0, peak, warmup)
    if config.schedule == "constant":
        return optax.join_schedules([rise, optax.constant_schedule(peak)], [warmup])
    if config.schedule == "linear":
        fall = optax.linear_schedule(peak, final, max(steps - warmup, 1))
        return optax.join_schedules([rise, fall], [warmup])
    decay = max(1, round(steps * config.decay_fraction))
    if warmup + decay > steps:
        raise UserError(
            f"optimizer.decay_fraction={config.decay_fraction}: {decay} steps of decay and "
            f"{warmup} of warm-up are more than the run's {steps}",
            key="optimizer.decay_fraction",
            advice="lower one of them",
        )
    fall = optax.linear_schedule(peak, final, decay)
    pieces = [rise, optax.constant_schedule(peak), fall]
    return optax.join_schedules(pieces, [warmup, steps - decay])


def make_optimizer(
    config: OptimizerConfig, steps: int, extensions: Extensions = ()
) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; weight decay on matrices and embeddings only."""
    adamw = optax.adamw(
        make_schedule(config, steps, extensions),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=_decayed,
    )
    if config.moments_dtype == "bfloat16":
        adamw = _moments_in_bfloat16(adamw)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def _moments_in_bfloat16(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same updates, with the state rounded to bfloat16 between them."""

    def cast(tree: Any, before: Any, after: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(after) if x.dtype == before else x, tree)

    def init(params: Any) -> Any:
        return cast(inner.init(params), jnp.float32, jnp.bfloat16)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(updates, cast(state, jnp.bfloat16, jnp.float32), params)
        return updates, cast(state, jnp.float32, jnp.bfloat16)

    return optax.GradientTransformation(init, update)


def _decayed(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "norm" not in jax.tree_util.keystr(path), params
    )


@dataclass(frozen=True)
class GuardConfig(Config):
    """What counts as out of bounds, and when a run gives up."""

    spike_deviations: Amount = 6.0
    """A loss that lies this many standard deviations over the recent mean is a spike; 0: none."""
    window_steps: Positive = 128
    """How many accepted losses mean and deviation are of; spikes are judged from half on."""
    stop_after: Positive = 10
    """Skipped batches in a row after which the run saves and stops."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["losses", "accepted", "skipped", "in_a_row"],
    meta_fields=[],
)
@dataclass(frozen=True)
class GuardState:
    """The guard's memory; part of the train state."""

    losses: jax.Array
    """Float32 [window_steps]: accepted losses, the newest at (accepted - 1) modulo the window."""
    accepted: jax.Array
    """int32: losses taken in so far."""
    skipped: jax.Array
    """int32: batches skipped so far."""
    in_a_row: jax.Array
    """int32: batches skipped since the last accepted one."""


def new_guard(config: GuardConfig) -> GuardState:
    """Nothing seen yet."""
    zero = jnp.zeros((), jnp.int32)
    return GuardState(jnp.zeros((config.window_steps,), jnp.float32), zero, zero, zero)


def restarted(config: GuardConfig, state: GuardState) -> GuardState:
    """The guard of a checkpoint at which it stopped the run: it counts from 0 again."""
    if int(state.in_a_row) < config.stop_after:
        return state
    return dataclasses.replace(state, in_a_row=state.in_a_row * 0)


def accept_update(
    config: GuardConfig, state: GuardState, loss: jax.Array, gradient_norm: jax.Array
) -> tuple[jax.Array, GuardState]:
    """Whether a batch's update may be applied (bool), and the guard after it.

    `loss` is the mean over the batch's weighted tokens, NaN without any, `gradient_norm` that
    before clipping.
    """
    size = config.window_steps
    accepted = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    if config.spike_deviations > 0:
        seen = jnp.minimum(state.accepted, size)
        count = jnp.maximum(seen, 1)
        known = jnp.arange(size) < seen
        mean = jnp.sum(jnp.where(known, state.losses, 0)) / count
        variance = jnp.sum(jnp.where(known, jnp.square(state.losses - mean), 0)) / count
        limit = mean + config.spike_deviations * jnp.sqrt(variance)
        accepted &= (loss <= limit) | (seen < (size + 1) // 2)
    losses = state.losses.at[state.accepted % size].set(loss)
    one = accepted.astype(jnp.int32)
    return accepted, GuardState(
        losses=jnp.where(accepted, losses, state.losses),
        accepted=state.accepted + one,
        skipped=state.skipped + 1 - one,
        in_a_row=jnp.where(accepted, 0, state.in_a_row + 1),
    )
