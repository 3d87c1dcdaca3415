"""The blocked attention against the plain definition, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipt_jax.attention.backends import attention
from ipt_jax.attention.spec import AttentionSpec
from tests.attention_by_definition import mask_of


def plain(q, k, v, spec: AttentionSpec, segment_ids):
    """Softmax over every score that the mask lets through, in float32."""
    B, T, H, h = q.shape
    group = H // k.shape[2]
    k, v = jnp.repeat(k, group, 2), jnp.repeat(v, group, 2)
    scale = spec.scale if spec.scale is not None else h**-0.5
    scores = jnp.einsum("bthd,bshd->bhts", q, k) * scale
    scores = jnp.where(mask_of(spec, segment_ids, B, T)[:, None], scores, -jnp.inf)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, -1), v)


def contiguous_segments(random: np.random.Generator, rows: int, length: int) -> np.ndarray:
    return np.cumsum(random.random((rows, length)) < 0.05, 1).astype(np.int32) + 1


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    length=st.sampled_from([1, 7, 127, 128, 129, 300]),
    group=st.sampled_from([1, 3, 4]),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 50, 200]),
    segments=st.booleans(),
)
def test_equals_the_definition(seed, length, group, causal, window, segments):
    random = np.random.default_rng(seed)
    shape = (2, length, 2, 16)
    q = random.normal(size=(2, length, 2 * group, 16)).astype(np.float32)
    k, v = (random.normal(size=shape).astype(np.float32) for _ in range(2))
    spec = AttentionSpec(causal, window if causal else None, segments)
    ids = contiguous_segments(random, 2, length) if segments else None
    direction = random.normal(size=q.shape).astype(np.float32)

    def along(function):
        return lambda q, k, v: jnp.vdot(function(q, k, v, spec, ids), direction)

    ours, our_gradients = jax.value_and_grad(along(attention), (0, 1, 2))(q, k, v)
    theirs, their_gradients = jax.value_and_grad(along(plain), (0, 1, 2))(q, k, v)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)
    for our, their in zip(our_gradients, their_gradients, strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-4, atol=2e-5)


def test_each_segment_gets_what_it_would_get_alone():
    random = np.random.default_rng(3)
    q, k, v = (random.normal(size=(1, 200, 2, 8)).astype(np.float32) for _ in range(3))
    ids = np.repeat([1, 2, 3], [60, 100, 40])[None].astype(np.int32)
    packed = attention(q, k, v, AttentionSpec(segments=True), ids)
    for start, stop in ((0, 60), (60, 160), (160, 200)):
        one = slice(start, stop)
        alone = attention(q[:, one], k[:, one], v[:, one], AttentionSpec())
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
