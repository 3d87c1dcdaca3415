"""Key ranges against the mask they stand for, and how many tiles a kernel visits."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ipt_jax.attention.spec import AttentionSpec, key_ranges, tile_bounds
from tests.attention_by_definition import mask_of


def within(starts, stops, length: int) -> np.ndarray:
    other = np.arange(length)
    return (np.asarray(starts)[..., None] <= other) & (other < np.asarray(stops)[..., None])


def drawn_ids(random: np.random.Generator, rows: int, length: int, rate: float) -> np.ndarray:
    """Contiguous segments from 1 up; one row in two ends in padding."""
    ids = 1 + np.cumsum(random.random((rows, length)) < rate, 1).astype(np.int32)
    for row in range(0, rows, 2):
        ids[row, random.integers(0, length + 1) :] = 0
    return ids


def visited_tiles(starts, stops, own: int, other: int):
    """How many tiles of `own` × `other` a kernel visits a row, by the bounds that it reads."""
    rows, length = starts.shape
    padding = ((0, 0), (0, -length % own))
    starts, stops = (jnp.pad(x, padding).reshape(rows, -1, own) for x in (starts, stops))
    first, _, _, last = tile_bounds(starts, stops, other)
    return jnp.sum(last - first, -1)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    length=st.sampled_from([1, 45, 64]),
    rate=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 5, 16, 40, 500]),
    segments=st.booleans(),
    tiles=st.sampled_from([(8, 32), (16, 16), (32, 8)]),
)
def test_ranges_are_the_mask_and_visited_tiles_are_those_with_a_visible_pair(
    seed, length, rate, causal, window, segments, tiles
):
    random, (own, other) = np.random.default_rng(seed), tiles
    spec = AttentionSpec(causal, window if causal else None, segments)
    ids = drawn_ids(random, 2, length, rate) if segments else None
    ranges = key_ranges(spec, ids, length)
    mask = np.broadcast_to(mask_of(spec, ids, 2, length), (2, length, length))
    rows = ranges.key_start.shape[0]
    assert rows == (2 if segments else 1)
    np.testing.assert_array_equal(
        np.broadcast_to(within(ranges.key_start, ranges.key_stop, length), mask.shape), mask
    )
    backward = within(ranges.query_start, ranges.query_stop, length)
    np.testing.assert_array_equal(np.broadcast_to(backward, mask.shape), mask.swapaxes(1, 2))

    def tiles_with_a_pair(mask: np.ndarray) -> np.ndarray:
        padding = ((0, 0), (0, -length % own), (0, -length % other))
        tiled = np.pad(mask, padding)
        shape = (2, tiled.shape[1] // own, own, tiled.shape[2] // other, other)
        return tiled.reshape(shape).any((2, 4)).sum((1, 2))

    by_query = visited_tiles(ranges.key_start, ranges.key_stop, own, other)
    by_key = visited_tiles(ranges.query_start, ranges.query_stop, own, other)
    np.testing.assert_array_equal(np.broadcast_to(by_query, 2), tiles_with_a_pair(mask))
    np.testing.assert_array_equal(
        np.broadcast_to(by_key, 2), tiles_with_a_pair(mask.swapaxes(1, 2))
    )


def test_what_a_packed_row_and_a_window_save():
    length, tile = 128, 16
    ids = np.repeat(np.arange(1, 5, dtype=np.int32), 32)[None]

    def count(spec: AttentionSpec, ids=None) -> int:
        ranges = key_ranges(spec, ids, length)
        return int(visited_tiles(ranges.key_start, ranges.key_stop, tile, tile)[0])

    assert count(AttentionSpec(causal=False)) == 64
    assert count(AttentionSpec()) == 36
    assert count(AttentionSpec(window=17)) == 8 + 7
    assert count(AttentionSpec(segments=True), ids) == 4 * 3
    assert count(AttentionSpec(segments=True), np.zeros_like(ids)) == 0


def test_tiles_that_need_no_mask():
    ranges = key_ranges(AttentionSpec(), None, 64)
    tiles = [x.reshape(4, 16) for x in (ranges.key_start, ranges.key_stop)]
    bounds = np.stack([np.asarray(x) for x in tile_bounds(*tiles, 8)], 1)
    # first, first and last of the unmasked, last: keys of 8 for queries of 16
    np.testing.assert_array_equal(bounds, [[0, 0, 0, 2], [0, 0, 2, 4], [0, 0, 4, 6], [0, 0, 6, 8]])
    # The third query tile sees keys 16..47 with a window of 24: all of them see 24..31 alone.
    ranges = key_ranges(AttentionSpec(window=24), None, 64)
    third = [x[0, 32:48] for x in (ranges.key_start, ranges.key_stop)]
    assert [int(x) for x in tile_bounds(*third, 8)] == [1, 3, 4, 6]


def test_padding_between_segments_is_seen_by_nobody():
    ids = jnp.array([[1, 1, 0, 0, 2, 2, 0]])
    ranges = key_ranges(AttentionSpec(segments=True), ids, 7)
    assert ranges.key_start[0].tolist() == [0, 0, 0, 0, 4, 4, 0]
    assert ranges.key_stop[0].tolist() == [1, 2, 0, 0, 5, 6, 0]
    assert ranges.query_stop[0].tolist() == [2, 2, 0, 0, 6, 6, 0]
