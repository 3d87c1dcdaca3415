"""The optimiser does what its config says; the guard skips what is out of bounds and no more."""

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
from ipt_jax.models.sharding import MeshConfig, make_mesh
from ipt_jax.training.optimizer import (
    ExtensionConfig,
    GuardConfig,
    OptimizerConfig,
    accept_update,
    make_optimizer,
    make_schedule,
    new_guard,
    restarted,
    warmup_steps,
)
from ipt_jax.training.step import TrainSetup, make_train_step


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


CONFIG = GuardConfig(spike_deviations=6.0, window_steps=8, stop_after=3)


def run(losses, norms=None, config=CONFIG):
    """What the guard says of each loss, and its state at the end."""
    guard, said = new_guard(config), []
    decide = jax.jit(lambda g, loss, norm: accept_update(config, g, loss, norm))
    for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
        accepted, guard = decide(guard, jnp.float32(loss), jnp.float32(norm))
        said.append(bool(accepted))
    return said, guard


def test_what_is_not_finite_is_skipped_from_the_first_batch_on():
    said, guard = run([3.0, np.nan, 3.0, np.inf, 3.0], [1.0, 1.0, np.inf, 1.0, 1.0])
    assert said == [True, False, False, False, True]
    assert (int(guard.skipped), int(guard.accepted), int(guard.in_a_row)) == (3, 2, 0)
    assert np.isfinite(np.asarray(guard.losses)).all()


def test_a_spike_is_judged_by_mean_and_deviation_of_the_window():
    before = [3.0, 3.2, 2.9, 3.1, 3.0, 3.1, 2.9, 3.0]
    limit = np.mean(before) + 6 * np.std(before)
    for loss, accepted in ((limit - 1e-3, True), (limit + 1e-3, False)):
        assert run([*before, loss])[0] == [True] * 8 + [accepted]
    # A lasting shift goes on being skipped, and is counted; falling losses never are.
    said, guard = run([*before, 9.0, 9.0, 9.0])
    assert said[8:] == [False] * 3 and int(guard.in_a_row) == 3
    assert all(run(np.linspace(10, 1, 30))[0])
    # A run that it stopped begins to count anew; one that was stopped otherwise goes on counting.
    assert int(restarted(CONFIG, guard).in_a_row) == 0
    two = run([*before, 9.0, 9.0])[1]
    assert restarted(CONFIG, two) is two and int(restarted(CONFIG, guard).skipped) == 3


def test_the_window_forgets_and_needs_half_of_itself():
    assert run([3.0, 3.0, 3.0, 9.0])[0] == [True] * 4  # three losses are too few to judge by
    assert run([3.0, 3.0, 3.0, 3.0, 9.0])[0][-1] is False
    # The large losses of the beginning have left the window of 8.
    assert run([9.0, 2.0] + [3.0] * 8 + [8.0])[0][-1] is False


def test_zero_deviations_means_no_spikes():
    assert all(run([3.0] * 8 + [1e6], config=GuardConfig(0.0, 8))[0])


TINY = PRESETS["tiny"]


def batch(weight: float) -> dict[str, np.ndarray]:
    shape, random = (4, 16), np.random.default_rng(0)
    tokens = random.integers(0, TINY.vocabulary_size, shape).astype(np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, 1),
        "loss_weights": np.full(shape, weight, np.float32),
        "segment_ids": np.ones(shape, np.int32),
        "positions": np.tile(np.arange(16, dtype=np.int32), (4, 1)),
        "source_ids": np.zeros(shape, np.int32),
    }


@pytest.mark.parametrize(("accumulation", "weight"), [(1, np.nan), (2, np.nan), (1, 0.0)])
def test_a_skipped_batch_leaves_the_state_untouched(accumulation, weight):
    """Not finite, or without a token to learn, which would be an update by momentum alone."""
    mesh, settings = make_mesh(MeshConfig()), OptimizerConfig(peak_learning_rate=1e-2)
    optimizer = make_optimizer(settings, 10)
    schedule = make_schedule(settings, 10)
    setup = TrainSetup(TINY, mesh, optimizer, schedule, 1, accumulation_steps=accumulation)
    step = jax.jit(make_train_step(setup))  # keeps the state before
    state, metrics = step(setup.init_state(0), batch(1.0))
    assert metrics["learnt_tokens"].tolist() == metrics["source_tokens"].tolist() == [64]
    after, metrics = step(state, batch(weight))
    assert metrics["learnt_tokens"].tolist() == [0 if weight == 0 else 64]
    assert not np.isfinite(metrics["loss"])
    assert bool(metrics["skipped"]) and int(metrics["skipped_in_a_row"]) == 1
    for name in ("params", "optimizer_state", "key", "step"):
        before, now = jax.tree.leaves(getattr(state, name)), jax.tree.leaves(getattr(after, name))
        assert all(bool(jnp.all(a == b)) for a, b in zip(before, now, strict=True)), name
    assert int(after.position) == int(state.position) + 1
    again, metrics = step(after, batch(1.0))
    assert not bool(metrics["skipped"]) and int(metrics["skipped_total"]) == 1
    assert int(again.step) == 2 and int(again.position) == 3
    assert not bool(jnp.all(again.params["embedding_VD"] == after.params["embedding_VD"]))
