"""The blocked attention against the plain definition, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipt_jax.attention.backends import attention
from ipt_jax.attention.spec import AttentionSpec
from tests.attention_by_definition import by_definition, mask_of

attend = jax.jit(attention, static_argnums=3)


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(spec: AttentionSpec, q, k, v, d_out, ids):
    out, backward = jax.vjp(lambda q, k, v: attention(q, k, v, spec, ids), q, k, v)
    return out, *backward(d_out)


@pytest.mark.parametrize(
    ("length", "group", "causal", "window", "segments"),
    [
        (1, 1, True, None, True),
        (7, 3, False, None, True),
        (127, 4, True, 1, False),
        (128, 1, True, 50, True),  # a block of queries, and one more or less
        (129, 3, True, 200, True),
        (129, 4, True, None, False),
        (300, 4, False, None, False),
        (300, 1, False, None, True),
        (300, 3, True, None, True),
        (300, 4, True, 50, False),
        (300, 1, True, 200, False),
    ],
)
def test_equals_the_definition(length, group, causal, window, segments):
    random = np.random.default_rng(length)
    spec = AttentionSpec(causal, window, segments)
    starts = random.random((2, length)) < 0.02
    ids = np.cumsum(starts, 1).astype(np.int32) + 1 if segments else None
    heads = (2 * group, 2, 2, 2 * group)
    given = [random.normal(size=(2, length, n, 16)).astype(np.float32) for n in heads]
    expected = by_definition(*given, mask_of(spec, ids, 2, length), 16**-0.5)
    for ours, theirs in zip(with_gradients(spec, *given, ids), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)


def test_each_segment_gets_what_it_would_get_alone():
    random = np.random.default_rng(3)
    q, k, v = (random.normal(size=(1, 200, 2, 8)).astype(np.float32) for _ in range(3))
    ids = np.repeat([1, 2, 3], [50, 100, 50])[None].astype(np.int32)
    packed = attend(q, k, v, AttentionSpec(segments=True), ids)
    for start, stop in ((0, 50), (50, 150), (150, 200)):
        one = slice(start, stop)
        alone = attend(q[:, one], k[:, one], v[:, one], AttentionSpec())
        np.testing.assert_allclose(packed[:, one], alone, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused():
    q, k = jnp.zeros((1, 4, 3, 8)), jnp.zeros((1, 4, 2, 8))
    with pytest.raises(ValueError, match="multiple of the key heads"):
        attention(q, k, k, AttentionSpec())
    with pytest.raises(ValueError, match="segment_ids"):
        attention(k, k, k, AttentionSpec(segments=True))
    with pytest.raises(ValueError, match="known are auto, reference"):
        attention(k, k, k, AttentionSpec(), backend="cudnnn")
    with pytest.raises(ValueError, match="window=0"):
        AttentionSpec(window=0)
