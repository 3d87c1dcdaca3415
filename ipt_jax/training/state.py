"""Everything that training changes, as one tree."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ipt_jax.models.config import DecoderConfig
from ipt_jax.models.decoder import Params, new_params
from ipt_jax.models.sharding import shardings


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "position", "params", "optimizer_state", "key"],
    meta_fields=[],
)
@dataclass(frozen=True)
class TrainState:
    """A checkpoint holds exactly this."""

    step: jax.Array
    """int32: updates applied."""
    position: jax.Array
    """int32: the next global batch."""
    params: Params
    """Float32 master parameters, a nested dict."""
    optimizer_state: optax.OptState
    """Moments and counts."""
    key: jax.Array
    """Root random key; a step folds its number in."""


def abstract_state(
    config: DecoderConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of the state; nothing is allocated."""
    shapes = jax.eval_shape(lambda: _new_state(config, optimizer, 0, None))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(shapes, mesh),
    )


def init_state(
    config: DecoderConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    params: Params | None = None,
) -> TrainState:
    """A fresh state, made where it will live; `params` replace the random ones if given."""
    abstract = abstract_state(config, optimizer, mesh)
    out = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    if params is None:
        return jax.jit(lambda: _new_state(config, optimizer, seed, None), out_shardings=out)()
    return jax.jit(lambda p: _new_state(config, optimizer, seed, p), out_shardings=out)(params)


def _new_state(
    config: DecoderConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    params: Params | None,
) -> TrainState:
    # Two independent keys: one for parameters, one for the run.
    params_key, run_key = jax.random.split(jax.random.key(seed))
    params = new_params(config, params_key) if params is None else params
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, zero, params, optimizer.init(params), run_key)
