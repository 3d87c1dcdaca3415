"""cuDNN's packed calls, emulated by their meaning on the host, against the reference."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from ipt_jax.attention import cudnn_packed
from ipt_jax.attention.reference import reference_attention
from ipt_jax.attention.spec import AttentionSpec, key_ranges
from tests.attention_by_definition import by_definition

ARGUMENTS = "scale seed dropout_rate variadic_args mask_type layout sliding_window_length".split()


def _sequences(q: Any, lengths: Any, offsets: Any) -> list[tuple[int, int]]:
    """First token and length of each slot, from offsets that count elements."""
    tokens = np.asarray(offsets).ravel()[: lengths.size] // (q.shape[2] * q.shape[3])
    return list(zip(tokens.tolist(), np.asarray(lengths).ravel().tolist(), strict=True))


def _seen(q: Any, listed: list[tuple[int, int]], window: int | None) -> np.ndarray:
    token = np.arange(q.shape[0] * q.shape[1])
    slot = np.full(token.size, -1)
    for number, (first, length) in enumerate(listed):
        slot[first : first + length] = number
    back = token[:, None] - token
    near = back < (window or token.size)
    return (slot[:, None] == slot) & (slot >= 0)[:, None] & (back >= 0) & near


def _host_forward(scale: float, window: int | None, q, k, v, lengths, offsets):
    q, k, v = map(np.asarray, (q, k, v))
    listed = _sequences(q, lengths, offsets)
    flat_q, flat_k, flat_v = (x.reshape(1, -1, *x.shape[2:]) for x in (q, k, v))
    seen = _seen(q, listed, window)
    out = by_definition(flat_q, flat_k, flat_v, flat_q, seen[None], scale)[0]
    wide_k = np.repeat(flat_k[0], q.shape[2] // k.shape[2], 1)
    weights = np.exp(np.einsum("qhc,shc->hqs", flat_q[0], wide_k) * scale) * seen
    # Nothing is written behind the end of a sequence.
    kept = np.full((lengths.size, q.shape[2], q.shape[1]), np.nan, np.float32)
    for number, (first, length) in enumerate(listed):
        kept[number, :, :length] = np.log(weights[:, first : first + length].sum(-1))
    return out.reshape(q.shape).astype(np.float32), kept


def _host_backward(scale: float, window: int | None, q, k, v, lengths, offsets, kept, d_out):
    q, k, v, d_out = map(np.asarray, (q, k, v, d_out))
    listed = _sequences(q, lengths, offsets)
    expected = _host_forward(scale, window, q, k, v, lengths, offsets)[1]
    for number, (_, length) in enumerate(listed):
        np.testing.assert_allclose(
            kept[number, :, :length], expected[number, :, :length], atol=1e-5
        )
    flat = (x.reshape(1, -1, *x.shape[2:]) for x in (q, k, v, d_out))
    gradients = by_definition(*flat, _seen(q, listed, window)[None], scale)[1:]
    return tuple(
        g.reshape(x.shape).astype(np.float32) for g, x in zip(gradients, (q, k, v), strict=True)
    )


class Emulated:
    """In place of a primitive."""

    def __init__(self, backward: bool):
        self.backward = backward

    def bind(self, q, k, v, bias, lengths, kv_lengths, offsets, kv_offsets, *rest, **how: Any):
        """The call as an operation of the host."""
        assert how["mask_type"] == fused_attention_stablehlo.MaskType.PADDING_CAUSAL
        work = functools.partial(
            _host_backward if self.backward else _host_forward,
            how["scale"],
            how["sliding_window_length"],
        )
        shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
        if self.backward:
            kept, _, d_out = rest[2:]
            shapes = tuple(shape(x.shape) for x in (q, k, v))
            return jax.pure_callback(work, shapes, q, k, v, lengths, offsets, kept, d_out)
        shapes = (shape(q.shape), shape((lengths.size, q.shape[2], q.shape[1])))
        return jax.pure_callback(work, shapes, q, k, v, lengths, offsets)


def compare(spec: AttentionSpec, ids: jax.Array, slots: int, *given: jax.Array) -> jax.Array:
    """Check output and gradients of q, k and v against the reference's; gives the output."""
    ranges = key_ranges(spec, ids, ids.shape[1])

    def ours(*x: Any) -> jax.Array:
        return cudnn_packed.cudnn_packed_attention(*x, spec, ids, slots, interpret=True)

    def with_gradients(function: Any) -> Any:
        def run(*x: Any) -> Any:
            out, back = jax.vjp(function, *x[:3])
            return out, *back(x[3])

        return jax.jit(run)(*given)

    found = with_gradients(ours)
    expected = with_gradients(lambda *x: reference_attention(*x, spec, ranges))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    return found[0]


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    module = cudnn_packed.cudnn
    monkeypatch.setattr(module, "_dot_product_attention_fwd_p", Emulated(False))
    monkeypatch.setattr(module, "_dot_product_attention_bwd_p", Emulated(True))


@pytest.mark.parametrize(("kv_heads", "window"), [(4, None), (2, 7), (1, None)])
def test_output_and_gradients_are_those_of_the_reference(kv_heads, window):
    B, T, H, h = 3, 32, 4, 8
    spec = AttentionSpec(window=window, segments=True)
    ids = np.ones((B, T), np.int32)
    ids[0, 5:], ids[0, 6:], ids[0, 20:] = 2, 3, 0  # padding at the end
    ids[1, 9:] = 7  # and four segments in the first row, where the list has three slots a row
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(B, T, H, h), (B, T, kv_heads, h), (B, T, kv_heads, h), (B, T, H, h)]
    given = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
    assert not np.any(compare(spec, jnp.asarray(ids), 3, *given)[0, 20:])


@pytest.mark.parametrize("slots", [2, 3])
def test_more_segments_than_slots_are_computed_by_the_other_kernel(slots):
    """Five segments of two rows: two slots a row are too few, three are not."""
    ids = jnp.asarray([[1] * 5 + [2] * 6 + [3] * 2 + [0] * 3, [1] * 16], jnp.int32)
    spec = AttentionSpec(segments=True, window=5)
    keys = jax.random.split(jax.random.key(1), 4)
    heads = (4, 2, 2, 4)
    given = [jax.random.normal(key, (2, 16, n, 8)) for key, n in zip(keys, heads, strict=True)]

    def ours(*x: Any) -> jax.Array:
        return cudnn_packed.cudnn_packed_attention(*x, spec, ids, slots, interpret=True)

    text = str(jax.make_jaxpr(ours)(*given[:3]))
    assert "pallas_call" in text and "pure_callback" in text  # both are there, one runs
    compare(spec, ids, slots, *given)


def test_crowded_lists_are_counted_by_device_and_piece(monkeypatch):
    monkeypatch.setattr(cudnn_packed, "SLOTS_PER_ROW", 2)
    counts = [1, 3, 3, 1, 1, 1, 1, 4]  # segments of each row; two devices have four rows each
    ids = jnp.asarray([[min(t + 1, n) for t in range(6)] for n in counts])
    assert cudnn_packed.crowded_lists(ids, 2, 1) == 0  # 8 and 7 of 8
    # In two pieces: rows 0 and 2, 1 and 3; 4 and 6, 5 and 7, of which 1 + 4 are more than 4.
    assert cudnn_packed.crowded_lists(ids, 2, 2) == 1
    assert cudnn_packed.crowded_lists(ids, 8, 1) == 3


def test_a_list_of_all_rows_beside_the_rows_of_one_device_is_wrong_and_ours_is_right():
    """What JAX's own splitting over devices makes: finite numbers, and not attention."""
    ids = jnp.asarray([[1] * n + [2] * (16 - n) for n in (3, 8, 9, 12)])
    keys = jax.random.split(jax.random.key(2), 3)
    q, k, v = (jax.random.normal(key, (4, 16, 2, 8)) for key in keys)
    spec = AttentionSpec(segments=True)
    expected = reference_attention(q, k, v, spec, key_ranges(spec, ids, 16))[2:]
    scale, slots = 8**-0.5, 2
    second = [x[2:] for x in (q, k, v)]  # of the second of two devices
    listed = cudnn_packed.sequences(ids, slots)
    lengths, offsets = listed.lengths[:2], listed.offsets[:2] * 16  # of the first one's rows
    wrong, _ = _host_forward(scale, None, *second, lengths, offsets)
    assert np.isfinite(wrong).all() and np.abs(wrong - expected).max() > 0.1
    own = cudnn_packed.sequences(ids[2:], slots)
    right, _ = _host_forward(scale, None, *second, own.lengths, own.offsets * 16)
    np.testing.assert_allclose(right, expected, atol=2e-5)


def test_the_private_calls_take_what_we_give():
    for name in ("fwd", "bwd"):
        taken = inspect.signature(
            getattr(fused_attention_stablehlo, f"_dot_product_attention_{name}_abstract")
        ).parameters
        operands = [x.name for x in taken.values() if x.kind is x.POSITIONAL_OR_KEYWORD]
        first = "query key value bias q_seqlen kv_seqlen q_offsets kv_offsets".split()
        pages = ["page_table_k", "page_table_v"]
        more = ["activation", "fwd_output", "grad_output"] if name == "bwd" else []
        assert operands == [*first, *pages, *more]
        given = [x.name for x in taken.values() if x.kind is x.KEYWORD_ONLY]
        assert given == [*ARGUMENTS, *(["is_training"] if name == "fwd" else [])]
