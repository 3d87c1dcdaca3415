"""What each persistent block of the Hopper kernels works on, and in which order.

Plain arithmetic on small integer arrays, the same on every device: it is tested without a GPU.
Which tiles of columns a tile of rows visits comes from `ipt_jax.attention.spec`; rows are queries
and columns keys for the forward kernel and dq, and the other way round for dk and dv.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ipt_jax.attention.spec import tile_bounds

# Columns of a work table; from BOUNDS on the four bounds of each warpgroup.
BATCH, ITEM, FIRST, LAST, BOUNDS = 0, 1, 2, 3, 4


def padded_ranges(
    starts_BT: jax.Array, stops_BT: jax.Array, rows: int, length: int
) -> tuple[jax.Array, jax.Array]:
    """Ranges of `rows` × `length` tokens; those that were not there see nothing."""

    def pad(x: jax.Array) -> jax.Array:
        x = jnp.broadcast_to(x, (rows, x.shape[1]))
        return jnp.pad(x, ((0, 0), (0, length - x.shape[1]))).astype(jnp.int32)

    return pad(starts_BT), pad(stops_BT)


def work_table(
    starts_BT: jax.Array, stops_BT: jax.Array, tile_rows: int, warpgroups: int, tile_columns: int
) -> jax.Array:
    """Work items of `warpgroups` neighbouring tiles of rows each, those with most visits first.

    A line: row of the batch, number of the item in it, the visits [first, last) of all its
    warpgroups together, and for each warpgroup, brought into them, where its own visits begin,
    where they need no mask any more, where they need it again, and where they end. Sorting is
    stable: equal items stay in the order of the rows.

    Returns:
      int32 [B · T / (tile_rows · warpgroups), 4 + 4 · warpgroups].
    """
    starts, stops = (x.reshape(-1, warpgroups, tile_rows) for x in (starts_BT, stops_BT))
    bounds = jnp.stack(tile_bounds(starts, stops, tile_columns), -1)
    visits = bounds[..., 3] > bounds[..., 0]
    last = jnp.max(jnp.where(visits, bounds[..., 3], 0), 1)
    first = jnp.min(jnp.where(visits, bounds[..., 0], last[:, None]), 1)
    # A warpgroup that sees nothing lets all of its item's tiles pass by.
    bounds = jnp.where(visits[..., None], bounds, last[:, None, None])
    number = jnp.arange(len(bounds), dtype=jnp.int32)
    items = starts_BT.shape[1] // (tile_rows * warpgroups)
    lines = jnp.stack([number // items, number % items, first, last], 1)
    table = jnp.concatenate([lines, bounds.reshape(len(bounds), -1)], 1)
    return table[jnp.argsort(first - last, stable=True)].astype(jnp.int32)


def items_per_block(work: int, blocks: int, block: jax.Array | int) -> jax.Array:
    """How many of `work` items the persistent block `block` of `blocks` does."""
    rounds, left = divmod(work, blocks)
    place = block if rounds % 2 == 0 else blocks - 1 - block
    return rounds + jnp.asarray(place < left, jnp.int32)


def item_index(turn: jax.Array | int, blocks: int, block: jax.Array | int) -> jax.Array:
    """Which item a block does in its turn: forth and back, so that long ones are shared evenly."""
    turn, block = jnp.asarray(turn, jnp.int32), jnp.asarray(block, jnp.int32)
    back = jax.lax.rem(turn, jnp.int32(2)) == 1
    return turn * blocks + jnp.where(back, blocks - 1 - block, block)
