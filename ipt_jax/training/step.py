"""The train step: a pure function (state, batch) -> (state, metrics)."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ipt_jax.models.config import DecoderConfig
from ipt_jax.models.decoder import Params, module_of
from ipt_jax.models.sharding import BATCH, batch_shards, place_on
from ipt_jax.training.loss import summed_cross_entropy
from ipt_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def summed_loss(
    config: DecoderConfig,
    params: Params,
    batch: Batch,
    *,
    dropout_key: jax.Array | None = None,
    z_loss: float = 0.0,
    backend: str = "auto",
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    """The summed loss over the batch's weighted tokens and, beside it, the cross-entropy alone."""
    model = module_of(config, params)
    hidden_BTD = model(
        batch["tokens"],
        batch["positions"],
        batch["segment_ids"],
        dropout_key=dropout_key,
        backend=backend,
        place=place_on(mesh),
    )
    return summed_cross_entropy(
        hidden_BTD,
        model.unembedding(),
        batch["targets"],
        batch["loss_weights"],
        z_loss,
        batch_shards(mesh),
    )


def make_train_step(
    config: DecoderConfig,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    source_count: int,
    accumulation_steps: int = 1,
    z_loss: float = 0.0,
    backend: str = "auto",
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Build the step for batches of int32/float32 arrays [B, T].

    Gradients are those of the token-weighted mean over the whole batch, also when it is worked
    off in `accumulation_steps` pieces of B / accumulation_steps rows: sums are accumulated and
    divided once.

    Metrics: `loss` (mean cross-entropy), `gradient_norm` before clipping, `learning_rate`,
    `weight` (sum of loss weights), `source_tokens` int32 [source_count].
    """

    def gradients(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Params]:
        dropout_key = key if config.dropout > 0 else None
        function = jax.value_and_grad(
            lambda p: summed_loss(
                config,
                p,
                batch,
                dropout_key=dropout_key,
                z_loss=z_loss,
                backend=backend,
                mesh=mesh,
            ),
            has_aux=True,
        )
        (_, entropy), gradient = function(params)
        return entropy, gradient

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.position)
        if accumulation_steps == 1:
            entropy, gradient = gradients(state.params, batch, key)
        else:
            # Every A-th row: each device cuts the rows that it holds, and none of them moves.
            pieces = jax.tree.map(
                lambda x: jnp.swapaxes(x.reshape(-1, accumulation_steps, *x.shape[1:]), 0, 1),
                batch,
            )
            keys = jax.random.split(key, accumulation_steps)

            def add(total: tuple, piece: tuple) -> tuple[tuple, None]:
                return jax.tree.map(jnp.add, total, gradients(state.params, *piece)), None

            zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
            (entropy, gradient), _ = jax.lax.scan(add, zeros, (pieces, keys))
        weight = jnp.sum(batch["loss_weights"])
        gradient = jax.tree.map(lambda g: g / jnp.maximum(weight, 1.0), gradient)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
        new_state = TrainState(
            step=state.step + 1,
            position=state.position + 1,
            params=cast(Params, optax.apply_updates(state.params, updates)),
            optimizer_state=optimizer_state,
            key=state.key,
        )
        sources = batch["source_ids"][None] == jnp.arange(source_count)[:, None, None]
        return new_state, {
            "loss": entropy / jnp.maximum(weight, 1.0),
            "gradient_norm": optax.global_norm(gradient),
            "learning_rate": jnp.asarray(schedule(state.step)),
            "weight": weight,
            "source_tokens": jnp.sum(sources, (1, 2), dtype=jnp.int32),
        }

    return train_step


def jit_train_step(
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    mesh: Mesh,
    abstract: TrainState,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compile for the mesh: the state keeps its shardings and its buffers are reused."""
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        step,
        in_shardings=(state_shardings, NamedSharding(mesh, BATCH)),
        out_shardings=(state_shardings, whole),
        donate_argnums=0,
    )
