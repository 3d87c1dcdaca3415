"""Everything that training changes, as one tree."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from ipt_jax.models.config import DecoderConfig
from ipt_jax.models.decoder import Params, new_params
from ipt_jax.models.lora import LoraConfig, base_params, new_adapters
from ipt_jax.training.optimizer import GuardConfig, GuardState, new_guard

PART_BYTES = 128 * 2**20  # of a weight on its way from host to device


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "position", "params", "frozen", "optimizer_state", "key", "guard"],
    meta_fields=[],
)
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes, and `frozen`, which never changes."""

    step: jax.Array
    """int32: updates applied."""
    position: jax.Array
    """int32: global batches taken; batches that the guard skipped count here and not in `step`."""
    params: Params
    """What is trained, float32: the decoder's parameters, or LoRA's."""
    frozen: Params
    """Under LoRA the decoder's parameters, else empty."""
    optimizer_state: optax.OptState
    """Moments and counts."""
    key: jax.Array
    """Root random key; a step folds its number in."""
    guard: GuardState
    """Recent losses and counts of skipped batches."""

    @property
    def saved(self) -> TrainState:
        """What a checkpoint holds of it."""
        return replace(self, frozen={})


def new_state(
    decoder: DecoderConfig,
    optimizer: optax.GradientTransformation,
    adapter: LoraConfig | None,
    guard: GuardConfig,
    seed: int,
    base: Params | None,
) -> TrainState:
    """A state before the first step; pure, so it can be traced.

    `base` replaces the decoder's random parameters.
    """
    # Two independent keys: one for parameters, one for the run.
    params_key, run_key = jax.random.split(jax.random.key(seed))
    base = new_params(decoder, params_key) if base is None else base
    params, frozen = base, {}
    if adapter is not None:
        params = new_adapters(decoder, adapter, jax.random.fold_in(params_key, 1))
        frozen = base_params(base, adapter)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        position=zero,
        params=params,
        frozen=frozen,
        optimizer_state=optimizer.init(params),
        key=run_key,
        guard=new_guard(guard),
    )


def place_params(abstract: Params, params: Any) -> Params:
    """Host arrays on the devices that `abstract` says; a device is given its own part only.

    Arrays go part by part along their first axis, so that of a LazyArray the host never holds more
    than PART_BYTES for a device.
    """

    def rows(leaf: jax.ShapeDtypeStruct, start: int, count: int, array: Any) -> jax.Array:
        def read(index: Any) -> np.ndarray:
            first, last, _ = index[0].indices(count)
            return np.asarray(array[slice(start + first, start + last), *index[1:]], leaf.dtype)

        return jax.make_array_from_callback((count, *leaf.shape[1:]), leaf.sharding, read)

    def one(leaf: jax.ShapeDtypeStruct, array: Any) -> jax.Array:
        assert isinstance(leaf.sharding, NamedSharding)
        part_shape = leaf.sharding.shard_shape(leaf.shape)
        row_bytes = max(1, math.prod(part_shape[1:]) * leaf.dtype.itemsize)
        count = max(1, PART_BYTES // row_bytes)
        if part_shape[0] != leaf.shape[0] or count >= leaf.shape[0]:
            return rows(leaf, 0, leaf.shape[0], array)
        make = functools.partial(jnp.zeros, leaf.shape, leaf.dtype)
        write = jax.jit(_write_rows, donate_argnums=0, out_shardings=leaf.sharding)
        whole = jax.jit(make, out_shardings=leaf.sharding)()
        for start in range(0, leaf.shape[0], count):
            part = rows(leaf, start, min(count, leaf.shape[0] - start), array)
            # Waits, for parts that are queued are in memory too.
            whole = jax.block_until_ready(write(whole, part, start))
        return whole

    return jax.tree.map(one, abstract, params)


def weights(state: TrainState) -> dict[str, Params]:
    """All that the model computes with."""
    return {"trained": state.params, "frozen": state.frozen}


def not_finite(params: Any) -> str:
    """The names of the arrays that hold NaN or infinity, the first few of them; empty: none."""
    check = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree))
    found = jax.tree_util.tree_leaves_with_path(check(params))
    names = [jax.tree_util.keystr(p, simple=True, separator=".") for p, good in found if not good]
    return ", ".join([*names[:3], "…"] if len(names) > 3 else names)


def _write_rows(whole: jax.Array, part: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0)
