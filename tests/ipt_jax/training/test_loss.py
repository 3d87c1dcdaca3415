"""The chunked cross-entropy against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipt_jax.training import loss


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_value_and_gradients_equal_the_plain_ones(monkeypatch, z_loss):
    monkeypatch.setattr(loss, "CHUNK_TOKENS", 7)  # 20 tokens: three chunks, the last one padded
    random = np.random.default_rng(0)
    hidden = random.normal(size=(20, 12)).astype(np.float32)
    table = random.normal(size=(33, 12)).astype(np.float32)
    targets = random.integers(0, 33, 20).astype(np.int32)
    weights = (random.random(20) > 0.3).astype(np.float32)

    def plain(hidden, table):
        log_p = jax.nn.log_softmax(hidden @ table.T)
        log_z = jax.nn.logsumexp(hidden @ table.T, -1)
        entropy = -jnp.sum(weights * log_p[jnp.arange(20), targets])
        return 3 * (entropy + z_loss * jnp.sum(weights * log_z**2)), entropy

    def ours(hidden, table):
        rows = (hidden.reshape(2, 10, 12), targets.reshape(2, 10), weights.reshape(2, 10))
        total, entropy = loss.summed_cross_entropy(rows[0], table, *rows[1:], z_loss)
        return 3 * total, entropy

    got, got_gradients = jax.value_and_grad(ours, (0, 1), has_aux=True)(hidden, table)
    want, want_gradients = jax.value_and_grad(plain, (0, 1), has_aux=True)(hidden, table)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for mine, theirs in zip(got_gradients, want_gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    # Without a gradient asked for, the other path gives the same values.
    np.testing.assert_allclose(ours(hidden, table), want, rtol=1e-5)


def test_the_whole_logits_array_never_exists():
    length, vocabulary = 2 * loss.CHUNK_TOKENS, 4096
    tokens = 4 * length
    arguments = (
        jax.ShapeDtypeStruct((4, length, 64), jnp.float32),
        jax.ShapeDtypeStruct((vocabulary, 64), jnp.float32),
        jax.ShapeDtypeStruct((4, length), jnp.int32),
        jax.ShapeDtypeStruct((4, length), jnp.float32),
    )
    step = jax.jit(
        jax.grad(lambda *a: loss.summed_cross_entropy(*a)[0], (0, 1)),
    )
    memory = step.lower(*arguments).compile().memory_analysis()
    assert memory.temp_size_in_bytes < tokens * vocabulary * 4
