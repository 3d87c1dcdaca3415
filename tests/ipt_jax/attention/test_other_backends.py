"""JAX's own kernels behind our specification, and what the reference needs of memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipt_jax.attention.backends import attention
from ipt_jax.attention.cudnn import cudnn_attention
from ipt_jax.attention.spec import AttentionSpec
from ipt_jax.attention.splash_tpu import splash_attention


def arrays(length: int, heads: int, kv_heads: int, width: int):
    random = np.random.default_rng(0)
    counts = heads, kv_heads, kv_heads, heads
    return [random.normal(size=(1, length, n, width)).astype(np.float32) for n in counts]


def compare(function, spec: AttentionSpec, ids, q, k, v, d_out) -> None:
    def run(function):
        out, backward = jax.vjp(function, q, k, v)
        return out, *backward(d_out)

    ours = run(jax.jit(function))
    theirs = run(jax.jit(lambda q, k, v: attention(q, k, v, spec, ids, "reference")))
    for our, their in zip(ours, theirs, strict=True):
        most = float(jnp.max(jnp.abs(their)))
        np.testing.assert_allclose(our, their, rtol=0, atol=1e-5 * most)


@pytest.mark.parametrize(
    "spec",
    [
        AttentionSpec(segments=True, window=30, softcap=4.0),
        AttentionSpec(scale=0.3),
    ],
    ids=str,
)
def test_splash_interpreted_equals_the_reference(spec):
    ids = None
    if spec.segments:
        ids = np.repeat([1, 2, 3, 0], [20, 3, 98, 7])[None].astype(np.int32)
    compare(
        lambda q, k, v: splash_attention(q, k, v, spec, ids, interpret=True),
        spec,
        ids,
        *arrays(128, heads=2, kv_heads=1, width=32),
    )


@pytest.mark.parametrize(
    "spec",
    [AttentionSpec(window=2), AttentionSpec(window=9, scale=0.3), AttentionSpec(causal=False)],
    ids=str,
)
def test_what_cudnn_is_asked_for_is_what_the_reference_computes(spec):
    # cuDNN runs on no CPU: JAX's other implementation takes the same arguments.
    compare(
        lambda q, k, v: cudnn_attention(q, k, v, spec, "xla"),
        spec,
        None,
        *arrays(33, heads=6, kv_heads=2, width=16),
    )


def test_memory_of_the_reference_grows_with_the_row_and_not_with_its_square():
    spec = AttentionSpec(causal=False, segments=True)  # each block sees every key

    def temporary_bytes(length: int) -> int:
        def loss(q, k, v, ids):
            return jnp.sum(jnp.square(attention(q, k, v, spec, ids, "reference")))

        q, k, v, _ = (
            jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays(length, 2, 1, width=64)
        )
        ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, v, ids).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    # All blocks' scores at once would be 16 times as much.
    assert temporary_bytes(1024) < 6 * temporary_bytes(256)
