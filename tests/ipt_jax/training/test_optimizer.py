"""The optimiser does what its config says: schedules by step, decay, clipping, moments."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ipt_jax.core.errors import UserError
from ipt_jax.models.config import PRESETS
from ipt_jax.models.decoder import new_params
from ipt_jax.models.lora import LoraConfig, new_adapters
from ipt_jax.training.optimizer import (
    ExtensionConfig,
    OptimizerConfig,
    make_optimizer,
    make_schedule,
    warmup_steps,
)


def rates(config: OptimizerConfig, steps: int) -> Callable[[int], float]:
    schedule = make_schedule(config, steps)
    return lambda step: float(np.asarray(schedule(step)))


def test_cosine_rises_then_falls_to_its_final_fraction():
    # Instruction Pre-Training, Table 14 (500M): 200K steps, 2,000 of warm-up, peak 3e-4.
    rate = rates(OptimizerConfig(), 200_000)
    assert rate(0) == 0.0
    assert rate(1000) == pytest.approx(1.5e-4)
    assert rate(2000) == pytest.approx(3e-4)
    middle = 0.1 + 0.9 * (1 + math.cos(math.pi * 0.5)) / 2
    assert rate(2000 + 99_000) == pytest.approx(3e-4 * middle)
    assert rate(200_000) == pytest.approx(3e-5)


def test_a_warm_up_fraction_takes_the_place_of_steps():
    # GenQA, A.1: the first 10% of the steps, then 1e-6 to 0 by a cosine.
    config = OptimizerConfig(
        peak_learning_rate=1e-6, warmup_steps=7, warmup_fraction=0.1, final_fraction=0.0
    )
    assert warmup_steps(config, 9919) == 992
    rate = rates(config, 1000)
    assert rate(50) == pytest.approx(0.5e-6)
    assert rate(100) == pytest.approx(1e-6)
    assert rate(550) == pytest.approx(0.5e-6)
    assert rate(1000) == 0.0
    assert rates(OptimizerConfig(warmup_fraction=0.0), 10)(0) == pytest.approx(3e-4)


def test_warm_up_in_steps_is_at_most_half_the_run():
    assert warmup_steps(OptimizerConfig(warmup_steps=2000), 100) == 50
    assert warmup_steps(OptimizerConfig(warmup_steps=20), 100) == 20


def test_extensions_follow_the_planned_schedule():
    config = OptimizerConfig(warmup_steps=10)  # ends with 3e-5
    rate = make_schedule(
        config,
        100,
        [
            (ExtensionConfig(1, "constant"), 20),
            (ExtensionConfig(1, "linear", 1e-4, warmup_steps=10, final_fraction=0.0), 50),
            (ExtensionConfig(1, "cosine", 2e-4, warmup_steps=1000, final_fraction=0.5), 40),
        ],
    )
    planned = rates(config, 100)
    assert [rate(s) for s in (5, 10, 60)] == pytest.approx([planned(s) for s in (5, 10, 60)])
    assert [rate(s) for s in (100, 119)] == pytest.approx([3e-5, 3e-5])
    assert [rate(s) for s in (120, 125, 130, 150)] == pytest.approx([3e-5, 6.5e-5, 1e-4, 5e-5])
    # From the 0 before it; a rise is at most half of an extension.
    assert [rate(s) for s in (170, 180, 190, 200, 210)] == pytest.approx(
        [0, 1e-4, 2e-4, 1.5e-4, 1e-4]
    )


def test_linear_falls_from_the_end_of_warm_up_to_the_last_step():
    config = OptimizerConfig(schedule="linear", warmup_steps=10, final_fraction=0.0)
    rate = rates(config, 110)
    assert [rate(step) for step in (5, 10, 60, 110)] == pytest.approx([1.5e-4, 3e-4, 1.5e-4, 0.0])
    assert rates(OptimizerConfig(schedule="linear", warmup_steps=10), 110)(110) == pytest.approx(
        3e-5
    )


def test_warm_up_stable_decay_and_constant():
    config = OptimizerConfig(schedule="wsd", warmup_steps=10, decay_fraction=0.2)
    rate = rates(config, 100)
    assert rate(5) == pytest.approx(1.5e-4)
    assert [rate(step) for step in (10, 50, 80)] == pytest.approx([3e-4] * 3)
    assert rate(90) == pytest.approx((3e-4 + 3e-5) / 2)
    assert rate(100) == pytest.approx(3e-5)
    constant = rates(OptimizerConfig(schedule="constant", warmup_steps=10), 100)
    assert constant(99) == pytest.approx(3e-4)
    crowded = OptimizerConfig(schedule="wsd", warmup_fraction=0.6, decay_fraction=0.5)
    with pytest.raises(UserError, match="50 steps of decay and 60 of warm-up"):
        make_schedule(crowded, 100)


def ones(make):
    """A tree of ones with the names and shapes of what `make` makes of a key."""
    shapes = jax.eval_shape(make, jax.random.key(0))
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)


def after_one_update(config: OptimizerConfig, params, gradient):
    optimizer = make_optimizer(config, 100)

    @jax.jit
    def update(params, gradient):
        updates, state = optimizer.update(gradient, optimizer.init(params), params)
        return optax.apply_updates(params, updates), state

    return update(params, gradient)


def test_weight_decay_shrinks_matrices_and_leaves_norms():
    config = OptimizerConfig(schedule="constant", warmup_steps=0, peak_learning_rate=0.01)
    tiny = PRESETS["tiny"]
    base = ones(lambda key: new_params(tiny, key))
    adapters = ones(lambda key: new_adapters(tiny, LoraConfig(rank=2), key))
    for params in (base, adapters):
        after, _ = after_one_update(config, params, jax.tree.map(np.zeros_like, params))
        norms = []
        for path, leaf in jax.tree_util.tree_leaves_with_path(after):
            name = jax.tree_util.keystr(path)
            norms.append("norm" in name)
            kept = 1.0 if norms[-1] else 1 - 0.01 * 0.1
            assert np.allclose(leaf, kept, rtol=1e-6), name
        assert sum(norms) == (3 if params is base else 0) and not all(norms)
    still = OptimizerConfig(schedule="constant", warmup_steps=0, weight_decay=0.0)
    after, _ = after_one_update(still, base, jax.tree.map(np.zeros_like, base))
    assert all((np.asarray(leaf) == 1).all() for leaf in jax.tree.leaves(after))


def test_gradients_are_clipped_by_their_global_norm_before_the_moments():
    params = {"a": jnp.zeros(4), "b": jnp.zeros((2, 2))}
    gradient = {"a": jnp.full(4, 3.0), "b": jnp.full((2, 2), 4.0)}  # norm 10
    _, state = after_one_update(OptimizerConfig(warmup_steps=0), params, gradient)
    moments = optax.tree_utils.tree_get(state, "mu"), optax.tree_utils.tree_get(state, "nu")
    assert jnp.allclose(moments[0]["a"], 0.1 * 0.3) and jnp.allclose(moments[0]["b"], 0.1 * 0.4)
    assert jnp.allclose(moments[1]["b"], 0.05 * 0.4**2)
    small = jax.tree.map(lambda g: g / 100, gradient)  # norm 0.1: not clipped
    _, state = after_one_update(OptimizerConfig(warmup_steps=0), params, small)
    assert jnp.allclose(optax.tree_utils.tree_get(state, "mu")["b"], 0.1 * 0.04)


def test_moments_in_bfloat16_take_half_the_memory_and_nearly_the_same_steps():
    params = {"embedding_VD": jnp.ones((8, 16)), "final_norm_D": jnp.ones((16,))}
    gradient = jax.tree.map(lambda p: jnp.linspace(-1, 1, p.size).reshape(p.shape), params)

    def run(dtype):
        optimizer = make_optimizer(OptimizerConfig(moments_dtype=dtype, warmup_steps=0), 9)
        state, moved = optimizer.init(params), params
        for _ in range(5):
            updates, state = optimizer.update(gradient, state, moved)
            moved = optax.apply_updates(moved, updates)
        arrays = [x for x in jax.tree.leaves(state) if x.ndim]
        return moved, {str(x.dtype) for x in arrays}

    exact, kinds = run("float32")
    half, half_kinds = run("bfloat16")
    assert (kinds, half_kinds) == ({"float32"}, {"bfloat16"})
    for one, other, start in zip(*map(jax.tree.leaves, (exact, half, params)), strict=True):
        assert one.dtype == other.dtype == jnp.float32
        np.testing.assert_allclose(other - start, one - start, rtol=0.02, atol=1e-6)
