"""The guard: batches whose loss or gradient is out of bounds change nothing.

The decision is made on the device, inside the step, so that the host never waits for it. As in
OLMo's training, a spike is judged against the mean and deviation of the losses just before it.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ipt_jax.core.bounds import Amount, Config, Positive


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
