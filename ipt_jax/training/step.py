"""The train step, a pure function (state, batch) -> (state, metrics), and the loss it lowers.

Of cross-entropy, logits of one chunk of tokens exist at a time, never [B, T, V]. Their gradient is
formed while they are there, so that the backward pass has no projection to repeat.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ipt_jax.attention.backends import CallShape, Choice, choose_backend
from ipt_jax.chips.devices import Target, compiling_for
from ipt_jax.core.errors import UserError
from ipt_jax.models.config import DecoderConfig
from ipt_jax.models.decoder import Params, attention_spec, module_of
from ipt_jax.models.lora import LoraConfig, adapter_count
from ipt_jax.models.sharding import BATCH, batch_shards, constrain_activations, shardings
from ipt_jax.training.config import TrainConfig, check_division
from ipt_jax.training.optimizer import GuardConfig, accept_update, make_optimizer, make_schedule
from ipt_jax.training.state import TrainState, new_state, place_params

CHUNK_TOKENS = 1024


def summed_cross_entropy(
    hidden_BTD: jax.Array,
    unembedding_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    z_loss: float = 0.0,
    batch_shards: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sums over all tokens, float32: the loss to minimise and the plain cross-entropy.

    The first adds `z_loss` · log²Z a token to the second; only the first has a gradient. Divide
    by the sum of weights for a mean. `batch_shards` is how many devices split the rows; a chunk
    holds CHUNK_TOKENS tokens on each of them.
    """
    rows, length = targets_BT.shape
    chunks = max(1, -(-rows * length // (CHUNK_TOKENS * batch_shards)))
    return _loss(z_loss, min(chunks, length), hidden_BTD, unembedding_VD, targets_BT, weights_BT)


def _chunked(chunks: int, arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Cut [B, T, ...] along T into [chunks, B, size, ...]; the last is padded with 0.

    Rows stay whole on the devices that hold them: chunks of rows would move between devices.
    """

    def cut(x: jax.Array) -> jax.Array:
        rows, length = x.shape[:2]
        size = -(-length // chunks)
        padding = [(0, 0), (0, chunks * size - length)] + [(0, 0)] * (x.ndim - 2)
        return jnp.moveaxis(jnp.pad(x, padding).reshape(rows, chunks, size, *x.shape[2:]), 1, 0)

    return tuple(map(cut, arrays))


def _flat(chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """[B, size, ...] as [B · size, ...], for matrix products."""
    return tuple(x.reshape(-1, *x.shape[2:]) for x in chunk)


def _chunk(
    z_loss: float, x: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    logits = jnp.einsum("nd,vd->nv", x, table, preferred_element_type=jnp.float32)
    top = jnp.max(logits, -1, keepdims=True)
    exponentials = jnp.exp(logits - top)
    total = jnp.sum(exponentials, -1, keepdims=True)
    log_z = (top + jnp.log(total))[:, 0]
    at_target = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
    entropy = jnp.sum(weights * (log_z - at_target))
    loss = entropy + z_loss * jnp.sum(weights * jnp.square(log_z))
    return loss, entropy, exponentials, total, log_z


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss(
    z_loss: float,
    chunks: int,
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    low = table.astype(hidden.dtype)

    def add(total: tuple, chunk: tuple) -> tuple[tuple, None]:
        x, y, w = _flat(chunk)
        loss, entropy, *_ = _chunk(z_loss, x, low, y, w)
        return (total[0] + loss, total[1] + entropy), None

    zero = jnp.zeros((), jnp.float32)
    return jax.lax.scan(add, (zero, zero), _chunked(chunks, (hidden, targets, weights)))[0]


def _forward(
    z_loss: float,
    chunks: int,
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    low = table.astype(hidden.dtype)

    def add(total: tuple, chunk: tuple) -> tuple[tuple, jax.Array]:
        loss, entropy, d_table = total
        x, y, w = _flat(chunk)
        one, plain, exponentials, partition, log_z = _chunk(z_loss, x, low, y, w)
        factor = w * (1 + 2 * z_loss * log_z)
        d_logits = exponentials * (factor[:, None] / partition)
        hit = y[:, None] == jnp.arange(table.shape[0])
        d_logits = (d_logits - jnp.where(hit, w[:, None], 0)).astype(x.dtype)
        d_table += jnp.einsum("nd,nv->dv", x, d_logits, preferred_element_type=jnp.float32)
        return (loss + one, entropy + plain, d_table), (d_logits @ low).reshape(chunk[0].shape)

    zero = jnp.zeros((), jnp.float32)
    start = (zero, zero, jnp.zeros(table.shape[::-1], jnp.float32))
    total, d_hidden = jax.lax.scan(add, start, _chunked(chunks, (hidden, targets, weights)))
    loss, entropy, d_table = total
    rows, length, width = hidden.shape
    d_hidden = jnp.moveaxis(d_hidden, 0, 1).reshape(rows, -1, width)[:, :length]
    return (loss, entropy), (d_hidden, d_table.T)


def _backward(
    z_loss: float, chunks: int, residuals: Any, cotangents: tuple[jax.Array, jax.Array]
) -> tuple:
    d_hidden, d_table = residuals
    scale = cotangents[0]
    return (d_hidden * scale.astype(d_hidden.dtype), d_table * scale, None, None)


_loss.defvjp(_forward, _backward)


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
        shapes = jax.eval_shape(lambda: self._new_state(0, None))
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            shardings(shapes, self.mesh),
        )

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
        """A state before the first step, made where it will live.

        Host arrays `params` replace the decoder's random ones.
        """
        out = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        if params is None:
            return jax.jit(lambda: self._new_state(seed, None), out_shardings=out)()
        make = functools.partial(self._new_state, seed)
        base = self.abstract.params if self.adapter is None else self.abstract.frozen
        return jax.jit(make, out_shardings=out, donate_argnums=0)(place_params(base, params))

    def _new_state(self, seed: int, base: Params | None) -> TrainState:
        return new_state(self.decoder, self.optimizer, self.adapter, self.guard, seed, base)

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
        raise UserError(f"attention_backend: {error}", key="attention_backend") from error
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
    if lora is None:
        model = module_of(setup.decoder, trained)
    else:
        model = module_of(setup.decoder, frozen, trained, lora)
    hidden_BTD = model(
        batch["tokens"],
        batch["positions"],
        batch["segment_ids"],
        dropout_key=dropout_key,
        backend=setup.attention.name,
        place=constrain_activations(mesh),
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
