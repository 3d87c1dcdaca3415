"""The train step: a pure function (state, batch) -> (state, metrics)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ipt_jax.attention.backends import CallShape, Choice, choose_backend
from ipt_jax.chips.target import Target, compiling_for
from ipt_jax.core.errors import UserError
from ipt_jax.models.config import DecoderConfig
from ipt_jax.models.decoder import Params, attention_spec, module_of
from ipt_jax.models.lora import LoraConfig, adapter_count
from ipt_jax.models.sharding import BATCH, batch_shards, constrain_activations
from ipt_jax.training.accumulation import check_division
from ipt_jax.training.config import TrainConfig
from ipt_jax.training.guard import GuardConfig, accept_update
from ipt_jax.training.loss import summed_cross_entropy
from ipt_jax.training.optimizer import make_optimizer, make_schedule
from ipt_jax.training.state import TrainState, abstract_state

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@dataclass(frozen=True)
class Built:
    """What a config's run consists of; the dry run compiles what the loop runs."""

    decoder: DecoderConfig
    mesh: Mesh
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    abstract: TrainState
    """Shapes, dtypes and shardings of the state."""
    step_function: jax.stages.Wrapped
    """The jitted step; `lower` it with `abstract` and an abstract batch to compile ahead."""
    flops_per_token: tuple[float, float]
    """Training FLOPs a token, attention counted for causality, and in full."""
    attention: Choice
    """The backend of the blocks' attention."""


def build(config: TrainConfig, mesh: Mesh, source_count: int) -> Built:
    """Put the run of `config` together for a mesh; nothing is allocated.

    Raises:
      UserError: rows, tokens or weights that do not divide among the mesh's devices, or an
        attention backend that cannot do this on them.
    """
    decoder = config.model.decoder()
    check_division(config, decoder, mesh)
    extensions = config.extension_steps
    call = CallShape(
        Target.of(mesh), decoder.compute_dtype, config.data.row_tokens, decoder.head_width
    )
    spec = attention_spec(decoder, segments=True)
    try:
        choice = choose_backend(config.attention_backend, spec, call)
    except ValueError as error:
        raise UserError(f"attention_backend: {error}") from error
    optimizer = make_optimizer(config.optimizer, config.base_steps, extensions)
    schedule = make_schedule(config.optimizer, config.base_steps, extensions)
    abstract = abstract_state(decoder, optimizer, mesh, config.adapter, config.guard)
    step = make_train_step(
        decoder,
        optimizer,
        schedule,
        source_count=source_count,
        accumulation_steps=config.pieces,
        z_loss=config.optimizer.z_loss,
        backend=choice.name,
        mesh=mesh,
        adapter=config.adapter,
        guard=config.guard,
    )
    lora, T = config.adapter, config.data.row_tokens
    causal, full = (
        decoder.flops_per_token(T, causal=causal, frozen=lora is not None)
        + (0 if lora is None else 6 * adapter_count(decoder, lora))
        for causal in (True, False)
    )
    step_function = jit_train_step(step, mesh, abstract)
    return Built(
        decoder,
        mesh,
        optimizer,
        schedule,
        abstract,
        step_function,
        (causal, full),
        choice,
    )


def summed_loss(
    config: DecoderConfig,
    params: Params,
    batch: Batch,
    *,
    dropout_key: jax.Array | None = None,
    z_loss: float = 0.0,
    backend: str = "auto",
    mesh: Mesh,
    adapters: Params | None = None,
    lora: LoraConfig | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The summed loss over the batch's weighted tokens and, beside it, the cross-entropy alone."""
    model = module_of(config, params)
    hidden_BTD = model(
        batch["tokens"],
        batch["positions"],
        batch["segment_ids"],
        dropout_key=dropout_key,
        backend=backend,
        place=constrain_activations(mesh),
        adapters=adapters,
        lora=lora,
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
    adapter: LoraConfig | None = None,
    guard: GuardConfig = GuardConfig(),  # noqa: B008 - frozen
) -> StepFunction:
    """Build the step for batches of int32/float32 arrays [B, T].

    Gradients are those of the token-weighted mean over the whole batch, also when it is worked
    off in `accumulation_steps` pieces of B / accumulation_steps rows: sums are accumulated and
    divided once. Where the guard refuses the batch, parameters, optimiser state and `step` stay
    as they were.

    Metrics: `loss` (mean cross-entropy), `gradient_norm` before clipping, `learning_rate`,
    `weight` (sum of loss weights), `source_tokens` int32 [source_count] and of these
    `learnt_tokens`, whose loss weight is not 0, `skipped` (bool), `skipped_total` and
    `skipped_in_a_row` int32, and with the backend cudnn_packed `crowded_lists`.
    """
    use_dropout = config.dropout > 0 or (adapter is not None and adapter.dropout > 0)

    def gradients(state: TrainState, batch: Batch, key: jax.Array) -> tuple[jax.Array, Params]:
        def loss(trained: Params) -> tuple[jax.Array, jax.Array]:
            return summed_loss(
                config,
                trained if adapter is None else state.frozen,
                batch,
                dropout_key=key if use_dropout else None,
                z_loss=z_loss,
                backend=backend,
                mesh=mesh,
                adapters=None if adapter is None else trained,
                lora=adapter,
            )

        (_, entropy), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        return entropy, gradient

    chip = Target.of(mesh)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with compiling_for(chip):
            return traced(state, batch)

    def traced(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.position)
        if accumulation_steps == 1:
            entropy, gradient = gradients(state, batch, key)
        else:
            # Every A-th row: each device cuts the rows that it holds, and none of them moves.
            pieces = jax.tree.map(
                lambda x: jnp.swapaxes(x.reshape(-1, accumulation_steps, *x.shape[1:]), 0, 1),
                batch,
            )
            keys = jax.random.split(key, accumulation_steps)

            def add(total: tuple, piece: tuple) -> tuple[tuple, None]:
                # XLA unrolls this loop for several GPUs: the next piece would begin beside this
                # one, and what both store would be there at once.
                if chip.platform == "gpu" and mesh.size > 1:
                    total, piece = jax.lax.optimization_barrier((total, piece))
                return jax.tree.map(jnp.add, total, gradients(state, *piece)), None

            zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
            (entropy, gradient), _ = jax.lax.scan(add, zeros, (pieces, keys))
        weight = jnp.sum(batch["loss_weights"])
        scale = 1 / jnp.maximum(weight, 1.0)
        gradient = jax.tree.map(lambda g: g * scale, gradient)
        learnt = batch["loss_weights"] != 0
        # A mean over no token is no number: the guard lets such a batch change nothing.
        loss = jnp.where(learnt.any(), entropy * scale, jnp.nan)
        norm = optax.global_norm(gradient)
        accepted, guarded = accept_update(guard, state.guard, loss, norm)

        def update(before: tuple[Params, optax.OptState]) -> tuple[Params, optax.OptState]:
            updates, optimizer_state = optimizer.update(gradient, before[1], before[0])
            return cast(Params, optax.apply_updates(before[0], updates)), optimizer_state

        # A branch and no selection between old and new: both would be in memory at once.
        before = (state.params, state.optimizer_state)
        params, optimizer_state = jax.lax.cond(accepted, update, lambda same: same, before)
        new_state = TrainState(
            step=state.step + accepted,
            position=state.position + 1,
            params=params,
            frozen=state.frozen,
            optimizer_state=optimizer_state,
            key=state.key,
            guard=guarded,
        )
        sources = batch["source_ids"][None] == jnp.arange(source_count)[:, None, None]
        crowded = {}
        if backend == "cudnn_packed":
            from ipt_jax.attention.cudnn_packed import crowded_lists

            ids, shards = batch["segment_ids"], batch_shards(mesh)
            crowded["crowded_lists"] = crowded_lists(ids, shards, accumulation_steps)
        return new_state, crowded | {
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": jnp.asarray(schedule(state.step)),
            "weight": weight,
            "source_tokens": jnp.sum(sources, (1, 2), dtype=jnp.int32),
            "learnt_tokens": jnp.sum(sources & learnt, (1, 2), dtype=jnp.int32),
            "skipped": ~accepted,
            "skipped_total": guarded.skipped,
            "skipped_in_a_row": guarded.in_a_row,
        }

    return train_step


def jit_train_step(step: StepFunction, mesh: Mesh, abstract: TrainState) -> jax.stages.Wrapped:
    """Compile for the mesh: the state keeps its shardings and its buffers are reused."""
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        step,
        in_shardings=(state_shardings, NamedSharding(mesh, BATCH)),
        out_shardings=(state_shardings, whole),
        donate_argnums=0,
    )
