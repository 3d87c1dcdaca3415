"""The guard: what it skips, and that a skipped batch changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipt_jax.models.config import PRESETS
from ipt_jax.models.sharding import MeshConfig, make_mesh
from ipt_jax.training.guard import GuardConfig, accept_update, new_guard, restarted
from ipt_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from ipt_jax.training.step import TrainSetup, make_train_step

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
