"""The train step: a pure function (state, batch) -> (state, metrics)."""

from __future__ import annotations

import functools
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
from ipt_jax.training.state import TrainState, abstract_state, init_state

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@dataclass(frozen=True)
class TrainSetup:
    """What a training consists of; the dry run compiles what the loop runs."""

    decoder: DecoderConfig
    mesh: Mesh
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    source_count: int
    """Tasks whose tokens are counted."""
    accumulation_steps: int = 1
    """Micro-batches of a batch."""
    z_loss: float = 0.0
    """Weight of the squared log-normaliser in the loss."""
    attention: Choice = Choice("auto")  # noqa: RUF009 - frozen
    """The backend of the blocks' attention."""
    adapter: LoraConfig | None = None
    """What is trained where the decoder's weights are frozen; None: they are trained."""
    guard: GuardConfig = GuardConfig()  # noqa: RUF009 - frozen
    """When a batch changes nothing."""

    @functools.cached_property
    def abstract(self) -> TrainState:
        """Shapes, dtypes and shardings of the state."""
        return abstract_state(self.decoder, self.optimizer, self.mesh, self.adapter, self.guard)

    @functools.cached_property
    def step_function(self) -> jax.stages.Wrapped:
        """The jitted step; `lower` it with `abstract` and an abstract batch to compile ahead.

        The state keeps its shardings, and its buffers are reused.
        """
        state = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        return jax.jit(
            make_train_step(self),
            in_shardings=(state, NamedSharding(self.mesh, BATCH)),
            out_shardings=(state, NamedSharding(self.mesh, PartitionSpec())),
            donate_argnums=0,
        )

    def init_state(self, seed: int, params: Params | None = None) -> TrainState:
        """A state before the first step; host arrays `params` replace the decoder's random ones."""
        return init_state(
            self.decoder, self.optimizer, self.mesh, seed, params, self.adapter, self.guard
        )

    def flops_per_token(self, row_tokens: int) -> tuple[float, float]:
        """Training FLOPs a token, attention counted for causality, and in full."""
        lora = self.adapter
        added = 0 if lora is None else 6 * adapter_count(self.decoder, lora)
        causal, full = (
            self.decoder.flops_per_token(row_tokens, causal=causal, frozen=lora is not None)
            for causal in (True, False)
        )
        return causal + added, full + added


def make_setup(config: TrainConfig, mesh: Mesh, source_count: int) -> TrainSetup:
    """Put the training of `config` together for a mesh; nothing is allocated.

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
    try:
        attention = choose_backend(
            config.attention_backend, attention_spec(decoder, segments=True), call
        )
    except ValueError as error:
        raise UserError(f"attention_backend: {error}") from error
    return TrainSetup(
        decoder,
        mesh,
        make_optimizer(config.optimizer, config.base_steps, extensions),
        make_schedule(config.optimizer, config.base_steps, extensions),
        source_count,
        accumulation_steps=config.pieces,
        z_loss=config.optimizer.z_loss,
        attention=attention,
        adapter=config.adapter,
        guard=config.guard,
    )


def summed_loss(
    setup: TrainSetup,
    trained: Params,
    frozen: Params,
    batch: Batch,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The summed loss over the batch's weighted tokens and, beside it, the cross-entropy alone."""
    lora, mesh = setup.adapter, setup.mesh
    model = module_of(setup.decoder, trained if lora is None else frozen)
    hidden_BTD = model(
        batch["tokens"],
        batch["positions"],
        batch["segment_ids"],
        dropout_key=dropout_key,
        backend=setup.attention.name,
        place=constrain_activations(mesh),
        adapters=None if lora is None else trained,
        lora=lora,
    )
    return summed_cross_entropy(
        hidden_BTD,
        model.unembedding(),
        batch["targets"],
        batch["loss_weights"],
        setup.z_loss,
        batch_shards(mesh),
    )


def make_train_step(setup: TrainSetup) -> StepFunction:
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
    decoder, lora, accumulation_steps = setup.decoder, setup.adapter, setup.accumulation_steps
    use_dropout = decoder.dropout > 0 or (lora is not None and lora.dropout > 0)
    chip = Target.of(setup.mesh)

    def gradients(state: TrainState, batch: Batch, key: jax.Array) -> tuple[jax.Array, Params]:
        def loss(trained: Params) -> tuple[jax.Array, jax.Array]:
            dropout_key = key if use_dropout else None
            return summed_loss(setup, trained, state.frozen, batch, dropout_key)

        (_, entropy), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        return entropy, gradient

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
                if chip.platform == "gpu" and setup.mesh.size > 1:
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
        accepted, guarded = accept_update(setup.guard, state.guard, loss, norm)

        def update(before: tuple[Params, optax.OptState]) -> tuple[Params, optax.OptState]:
            updates, optimizer_state = setup.optimizer.update(gradient, before[1], before[0])
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
        sources = batch["source_ids"][None] == jnp.arange(setup.source_count)[:, None, None]
        crowded = {}
        if setup.attention.name == "cudnn_packed":
            from ipt_jax.attention.cudnn_packed import crowded_lists

            ids, shards = batch["segment_ids"], batch_shards(setup.mesh)
            crowded["crowded_lists"] = crowded_lists(ids, shards, accumulation_steps)
        return new_state, crowded | {
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": jnp.asarray(setup.schedule(state.step)),
            "weight": weight,
            "source_tokens": jnp.sum(sources, (1, 2), dtype=jnp.int32),
            "learnt_tokens": jnp.sum(sources & learnt, (1, 2), dtype=jnp.int32),
            "skipped": ~accepted,
            "skipped_total": guarded.skipped,
            "skipped_in_a_row": guarded.in_a_row,
        }

    return train_step
