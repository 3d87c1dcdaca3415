"""Work items of the Hopper kernels: complete, without empty visits, shared evenly."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from ipt_jax.attention import hopper_schedule as schedule
from ipt_jax.attention.spec import AttentionSpec, key_ranges
from tests.attention_by_definition import mask_of

ROWS, WARPGROUPS = 8, 2
SPECS = [
    AttentionSpec(),
    AttentionSpec(window=5),
    AttentionSpec(window=37),
    AttentionSpec(segments=True),
    AttentionSpec(segments=True, window=11),
    AttentionSpec(segments=True, causal=False),
]


def _segment_ids(rows: int, length: int, seed: int) -> np.ndarray:
    """Rows of random segments; some end in padding (0), one is full of one-token segments."""
    generator = np.random.default_rng(seed)
    ids = np.zeros((rows, length), np.int32)
    for row in range(rows):
        cuts = np.sort(generator.choice(np.arange(1, length), generator.integers(0, 7), False))
        edges = [0, *cuts, length]
        for number, (start, stop) in enumerate(itertools.pairwise(edges), 1):
            ids[row, start:stop] = number
        if row % 2:
            ids[row, edges[-2] :] = 0
    ids[-1] = np.arange(1, length + 1)
    return ids


@pytest.mark.parametrize("transposed", [False, True], ids=["keys of queries", "queries of keys"])
@pytest.mark.parametrize("tile", [4, 8, 24])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_visible_pair_is_visited_and_nothing_unseen_goes_unmasked(spec, tile, transposed):
    rows, length, padded = 4, 90, 96
    ids = _segment_ids(rows, length, tile) if spec.segments else None
    seen = np.zeros((rows, padded, padded), bool)
    seen[:, :length, :length] = mask_of(spec, ids, rows, length)
    ranges = key_ranges(spec, None if ids is None else jnp.asarray(ids), length)
    edges = (ranges.key_start, ranges.key_stop)
    if transposed:
        edges, seen = (ranges.query_start, ranges.query_stop), np.swapaxes(seen, 1, 2)
    edges = schedule.padded_ranges(*edges, rows, padded)
    # The two numbers a token are the whole mask.
    column = np.arange(padded)
    by_range = (column >= edges[0][..., None]) & (column < edges[1][..., None])
    np.testing.assert_array_equal(by_range, seen)

    table = np.asarray(schedule.work_table(*edges, ROWS, WARPGROUPS, tile))
    assert table.shape == (rows * padded // (ROWS * WARPGROUPS), 4 + 4 * WARPGROUPS)
    items = {tuple(line[:2]) for line in table}
    assert items == {(b, n) for b in range(rows) for n in range(padded // (ROWS * WARPGROUPS))}
    visits = table[:, schedule.LAST] - table[:, schedule.FIRST]
    assert (np.diff(visits) <= 0).all(), "those with most visits come first"
    for line in table:
        batch, item, first, last = line[:4]
        spans = []
        for warpgroup in range(WARPGROUPS):
            bounds = line[4 + 4 * warpgroup : 8 + 4 * warpgroup]
            assert (np.diff([first, *bounds, last]) >= 0).all()
            row = (item * WARPGROUPS + warpgroup) * ROWS
            own = seen[batch, row : row + ROWS]
            for number in range(-(-padded // tile)):
                part = own[:, number * tile : (number + 1) * tile]
                visited = bounds[0] <= number < bounds[3]
                assert visited or not part.any(), "a visible pair is not visited"
                if bounds[1] <= number < bounds[2]:
                    assert part.all() and part.shape[1] == tile, "an unmasked tile hides something"
                elif visited and not transposed and ids is None:
                    assert part.any() and not (part.all() and part.shape[1] == tile)
            if bounds[3] > bounds[0]:
                spans.append((bounds[0], bounds[3]))
        # Together they let pass what one of them visits, and no more.
        assert last - first == (max(b for _, b in spans) - min(a for a, _ in spans) if spans else 0)


def test_a_window_or_short_segments_visit_a_small_share_of_the_tiles():
    def visits(spec: AttentionSpec, ids: np.ndarray | None = None) -> int:
        ranges = key_ranges(spec, None if ids is None else jnp.asarray(ids), 4096)
        edges = schedule.padded_ranges(ranges.key_start, ranges.key_stop, 1, 4096)
        table = np.asarray(schedule.work_table(*edges, 64, 2, 128))
        return int(np.sum(table[:, schedule.LAST] - table[:, schedule.FIRST]))

    # 32 items of 128 queries: 1 + 2 + ... + 32 tiles, 5 at most of a window of 512, 2 of segments
    # of 256 tokens (1 in their first half).
    assert visits(AttentionSpec()) == 32 * 33 // 2
    assert visits(AttentionSpec(window=512)) == 1 + 2 + 3 + 4 + 28 * 5
    ids = np.repeat(np.arange(1, 17, dtype=np.int32), 256)[None]
    assert visits(AttentionSpec(segments=True), ids) == 16 * (1 + 2)


@pytest.mark.parametrize(("work", "blocks"), [(1, 4), (4, 4), (7, 3), (64, 5), (132 * 3 + 1, 132)])
def test_every_item_is_done_once_by_one_block(work, blocks):
    done = [
        int(schedule.item_index(turn, blocks, block))
        for block in range(blocks)
        for turn in range(int(schedule.items_per_block(work, blocks, block)))
    ]
    assert sorted(done) == list(range(work))


def test_going_forth_and_back_shares_causal_work_evenly():
    ranges = key_ranges(AttentionSpec(), None, 4096)
    edges = schedule.padded_ranges(ranges.key_start, ranges.key_stop, 1, 4096)
    table = np.asarray(schedule.work_table(*edges, 64, 2, 128))
    visits, blocks = table[:, schedule.LAST] - table[:, schedule.FIRST], 8
    loads = [
        sum(visits[int(schedule.item_index(turn, blocks, block))] for turn in range(4))
        for block in range(blocks)
    ]
    assert max(loads) == min(loads) == sum(visits) // blocks
