"""The machine under the Hopper kernels: persistent blocks, a ring of tiles, warpgroups with roles.

A block owns a multiprocessor. Two of its warpgroups compute, each on ROWS rows that stay in shared
memory for the length of a work item; the third only starts copies (TMA) of the tiles of columns
that pass by in a ring of `stages`. Barriers go both ways: a tile is *there*, a tile is *used up*.
The ring and its count of steps run on from item to item, so that the first tiles of the next item
are on their way while the last of this one are computed.

Names as in `ipt_jax.attention.hopper_schedule`. Everything is written for lane semantics of Mosaic
GPU, whose register layouts are checked when a kernel is lowered, with or without a GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ipt_jax.attention import hopper_schedule as schedule

ROWS = 64  # of one warpgroup: what one of its matrix instructions has
WARPGROUPS = 2  # that compute
LOADS = 2  # of a streamed tile: array n comes and goes with array n + LOADS
COPY_REGISTERS, COMPUTE_REGISTERS = 40, 232  # 65,536 a multiprocessor: 128 × (40 + 2 × 232) fit

Ref = Any  # Pallas has no public type for a reference inside a kernel


@dataclass(frozen=True)
class PersistentKernel:
    """What is to be done and how."""

    table: jax.Array
    """Work items, from `hopper_schedule.work_table` with ROWS and WARPGROUPS."""
    starts: jax.Array
    """int32 [B, T]: the first column that each row sees."""
    stops: jax.Array
    """int32 [B, T]: one past the last."""
    heads: int
    """Heads of the rows; each item is done for each of them."""
    column_heads: int
    """Heads of the columns. Fewer: groups of row heads share one. More: a row head sees several."""
    tile_columns: int
    """Tokens of a streamed tile."""
    stages: int
    """Streamed tiles in shared memory at a time."""
    ping_pong: bool
    """One computing warpgroup multiplies while the other does not."""
    in_place: bool
    """Result n is made where tile n of the rows was, which then is given back later."""
    blocks: int
    """Persistent blocks."""
    interpret: bool
    """Simulate on the host."""


def wgmma(
    left: Ref, right: Ref, interpret: bool, besides: Callable[[], None] = lambda: None
) -> jax.Array:
    """left @ right in float32, both in shared memory; `besides` happens while they multiply."""
    if interpret:
        # The simulator's matrix instruction looks for no races; its reads do.
        besides()
        return jnp.matmul(left[...], right[...], preferred_element_type=jnp.float32)

    def multiply(sum_ref: Ref) -> jax.Array:
        plgpu.wgmma(sum_ref, left, right)
        besides()
        return sum_ref[...]

    shape = (left.shape[0], right.shape[1])
    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef(shape, jnp.float32))


def add_product(total: jax.Array, left: jax.Array, right: Ref, interpret: bool) -> jax.Array:
    """total + left @ right; left lies in registers."""
    if interpret:
        # The simulator has neither operands in registers nor sums that begin with a value.
        return total + jnp.matmul(left, right[...], preferred_element_type=jnp.float32)

    def multiply(sum_ref: Ref) -> None:
        plgpu.wgmma(sum_ref, left, right)

    # The state that comes back is the sum, whatever the annotation of the reference says.
    return cast(jax.Array, pl.run_state(multiply)(plgpu.WGMMAAccumulatorRef.init(total)))


def over_columns(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """One number a row, repeated along the columns."""
    return lax.broadcast_in_dim(vector, shape, [0])


def over_rows(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """One number a column, repeated along the rows."""
    return lax.broadcast_in_dim(vector, shape, [1])


def column_vector(ref: Ref) -> jax.Array:
    """One number a column, from shared memory."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(0))


def in_range(column: jax.Array, start: jax.Array, size: jax.Array) -> jax.Array:
    """Whether start <= column < start + size, in one comparison; columns begin at 0."""
    # Of the columns of a thread only these bits are not constants. The maximum changes nothing, but
    # without it the compiler keeps every column in a register.
    thread = column & 6
    offset = jnp.maximum(thread - start, -column.shape[1]) + (column & ~6)
    # What lies before the start is beyond every size when its sign is read as a number.
    return offset.astype(jnp.uint32) < size.astype(jnp.uint32)


@dataclass(frozen=True)
class RowTile:
    """What one warpgroup holds during an item."""

    buffers: tuple[Ref, ...]
    """[WARPGROUPS, ROWS, h] in shared memory."""
    warpgroup: jax.Array
    """Whose rows these are."""
    vectors: tuple[jax.Array, ...]
    """float32 [ROWS]."""

    @property
    def tiles(self) -> tuple[Ref, ...]:
        """[ROWS, h] of each buffer; asked for within a step, they take no registers between."""
        warpgroup = lax.optimization_barrier(self.warpgroup)
        return tuple(buffer.at[warpgroup] for buffer in self.buffers)

    def zeros(self, width: int) -> jax.Array:
        """float32 [ROWS, width]."""
        return plgpu.layout_cast(jnp.zeros((ROWS, width), jnp.float32), plgpu.Layout.WGMMA)

    def full(self, value: float) -> jax.Array:
        """float32 [ROWS]."""
        filled = jnp.full((ROWS,), value, jnp.float32)
        return plgpu.layout_cast(filled, plgpu.Layout.WGMMA.reduce(1))


@dataclass(frozen=True)
class ColumnTile:
    """One streamed tile, as a computing warpgroup meets it."""

    buffers: tuple[Ref, ...]
    there: tuple[Ref, ...]
    used_up: tuple[Ref, ...]
    slot: jax.Array
    seen: tuple[jax.Array, jax.Array] | None
    """Where masked: first column of each row, counted from the tile's first, and their number."""
    turn_barrier: Ref | None
    interpret: bool

    def wait(self, load: int) -> tuple[Ref, ...]:
        """The arrays of the tile that come with this load, when they are there."""
        plgpu.barrier_wait(self.there[load].at[self.slot])
        return tuple(buffer.at[self.slot] for buffer in self.buffers[load::LOADS])

    def release(self, load: int) -> None:
        """Nothing of these arrays of the tile is needed any more."""
        # Reads are over when all threads have arrived: no fence is needed before a copy writes
        # there, and JAX's own kernel has none. The simulator reads for the matrix instructions.
        if self.interpret:
            plgpu.commit_smem()
        plgpu.barrier_arrive(self.used_up[load].at[self.slot])

    def hide(self, x: jax.Array, value: float) -> jax.Array:
        """x [ROWS, columns] with `value` where the row does not see the column."""
        if self.seen is None:
            return x
        column = plgpu.broadcasted_iota(jnp.int32, x.shape, 1, layout=plgpu.Layout.WGMMA)
        start, size = (over_columns(edge, x.shape) for edge in self.seen)
        return jnp.where(in_range(column, start, size), x, value)

    def change_turns(self) -> None:
        """See the function of that name."""
        change_turns(self.turn_barrier)


def change_turns(barrier: Ref | None) -> None:
    """From now on the other warpgroup has the matrix unit, or this one has."""
    if barrier is not None:
        plgpu.barrier_arrive(barrier)
        plgpu.barrier_wait(barrier)


# For one item: what is carried at the beginning, one tile of columns, and the results.
Program = tuple[
    Callable[[], tuple],
    Callable[[ColumnTile, tuple], tuple],
    Callable[[tuple], tuple[jax.Array, ...]],
]


def run(
    machine: PersistentKernel,
    program: Callable[[RowTile], Program],
    *,
    rows: Sequence[jax.Array],
    columns: Sequence[jax.Array],
    results: Sequence[jax.ShapeDtypeStruct],
    name: str,
) -> tuple[jax.Array, ...]:
    """Do all items for all heads; arrays are [B, T, heads, h], or float32 [B, heads, T]."""
    whole = (*rows, machine.starts, machine.stops)
    count = len(whole), len(columns), len(results)

    def kernel(table: Ref, *refs: Ref) -> None:
        left = iter(refs)
        held, passing, made = (tuple(itertools.islice(left, n)) for n in count)

        def allocated(*scratch: Any) -> None:
            _block(machine, program, table, (held, passing, made), scratch)

        stages = machine.stages
        pl.run_scoped(
            allocated,
            tuple(_buffer(x, WARPGROUPS, ROWS) for x in whole),
            tuple(_buffer(x, stages, machine.tile_columns) for x in columns),
            tuple(
                None if machine.in_place and len(x.shape) == 4 else _buffer(x, WARPGROUPS, ROWS)
                for x in results
            ),
            plgpu.Barrier(num_arrivals=len(whole) * WARPGROUPS),
            plgpu.Barrier(num_arrivals=WARPGROUPS),
            (plgpu.Barrier(num_arrivals=len(columns) // LOADS, num_barriers=stages),) * LOADS,
            (plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=stages),) * LOADS,
            plgpu.Barrier(num_arrivals=WARPGROUPS) if machine.ping_pong else None,
            collective_axes="warpgroup",
        )

    interpreted = plgpu.InterpretGPUParams(detect_races=True) if machine.interpret else False
    return plgpu.kernel(
        kernel,
        out_type=tuple(results),
        grid=(machine.blocks,),
        grid_names=("block",),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        kernel_name=name,
        interpret=interpreted,
    )(machine.table, *whole, *columns)


def _buffer(array: Any, slots: int, tokens: int) -> Any:
    if len(array.shape) < 4:
        return plgpu.SMEM((slots, tokens), array.dtype)
    width = array.shape[3]
    # What one row of the swizzle holds must divide the head.
    swizzle = 128 if width % 64 == 0 else 64
    transforms = (
        plgpu.TilingTransform((8, swizzle // 2)),  # pyright: ignore[reportAbstractUsage]
        plgpu.SwizzleTransform(swizzle),  # pyright: ignore[reportAbstractUsage]
    )
    return plgpu.SMEM((slots, tokens, width), array.dtype, transforms=transforms)


def _part(ref: Ref, batch: jax.Array, head: jax.Array, first: jax.Array, tokens: int) -> Ref:
    """`tokens` tokens of one row and head."""
    piece = pl.ds(first, tokens)
    if len(ref.shape) == 4:
        return ref.at[batch, piece, head]
    return ref.at[batch, head, piece] if len(ref.shape) == 3 else ref.at[batch, piece]


def _block(
    machine: PersistentKernel,
    program: Callable[[RowTile], Program],
    table: Ref,
    memory: tuple[tuple[Ref, ...], ...],
    scratch: tuple,
) -> None:
    held, passing, made = memory
    row_buffers, column_buffers, result_buffers, rows_there, rows_used, *rest = scratch
    there, used_up, turn_barrier = rest
    result_buffers = tuple(
        row_buffers[number] if buffer is None else buffer
        for number, buffer in enumerate(result_buffers)
    )
    block, warpgroup = lax.axis_index("block"), lax.axis_index("warpgroup")
    work = table.shape[0] * machine.heads
    items_per_block = schedule.items_per_block(work, machine.blocks, block)
    stages, tile = jnp.int32(machine.stages), machine.tile_columns
    # A head of rows looks at one head of columns, or in turn at all those of its group.
    group = max(1, machine.column_heads // machine.heads)
    sharing = max(1, machine.heads // machine.column_heads)

    def item(turn: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Line of the table, and head. All heads of a line are neighbours: they share columns."""
        number = schedule.item_index(turn, machine.blocks, block)
        return lax.div(number, jnp.int32(machine.heads)), lax.rem(number, jnp.int32(machine.heads))

    def first_row(line: jax.Array, of: jax.Array | int) -> jax.Array:
        return (table[line, schedule.ITEM] * WARPGROUPS + of) * ROWS

    @pl.when(warpgroup == WARPGROUPS)
    def _copy() -> None:
        plgpu.set_max_registers(COPY_REGISTERS, action="decrease")

        def one_item(turn: jax.Array, done: jax.Array) -> jax.Array:
            line, head = item(turn)
            batch = table[line, schedule.BATCH]
            first, last = table[line, schedule.FIRST], table[line, schedule.LAST]
            visits = last - first

            def one_tile(step: jax.Array, _: None) -> None:
                slot = lax.rem(done + step, stages)
                of_group = lax.div(step, visits)
                token = (first + lax.rem(step, visits)) * tile
                column_head = lax.div(head, jnp.int32(sharing)) * group + of_group
                for load in range(LOADS):

                    @pl.when(done + step >= stages)
                    def _(load: int = load) -> None:
                        plgpu.barrier_wait(used_up[load].at[slot])

                    copies = zip(passing[load::LOADS], column_buffers[load::LOADS], strict=True)
                    for ref, buffer in copies:
                        source = _part(ref, batch, column_head, token, tile)
                        plgpu.copy_gmem_to_smem(source, buffer.at[slot], there[load].at[slot])

            # The ring is filled before the rows of the last item are given back: they are waited
            # for longest.
            steps = visits * group
            early = jnp.minimum(steps, stages)
            lax.fori_loop(0, early, one_tile, None)

            @pl.when(turn > 0)
            def _() -> None:
                plgpu.barrier_wait(rows_used)

            for ref, buffer in zip(held, row_buffers, strict=True):
                for of in range(WARPGROUPS):
                    source = _part(ref, batch, head, first_row(line, of), ROWS)
                    plgpu.copy_gmem_to_smem(source, buffer.at[of], rows_there)

            lax.fori_loop(early, steps, one_tile, None)
            return done + steps

        done = lax.fori_loop(0, items_per_block, one_item, jnp.int32(0))

        # No barrier may go while something is still to arrive at it.
        def drain(step: jax.Array, _: None) -> None:
            for used in used_up:
                plgpu.barrier_wait(used.at[lax.rem(step, stages)])

        lax.fori_loop(jnp.maximum(done - stages, 0), done, drain, None)

        @pl.when(items_per_block > 0)
        def _() -> None:
            plgpu.barrier_wait(rows_used)

    @pl.when(warpgroup < WARPGROUPS)
    def _compute() -> None:
        plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")

        def visits(turn: jax.Array) -> tuple[jax.Array, ...]:
            line, _ = item(turn)
            bounds = (schedule.BOUNDS + 4 * warpgroup + number for number in range(4))
            return tuple(table[line, at] for at in (schedule.FIRST, schedule.LAST, *bounds))

        def one_item(turn: jax.Array, carried: tuple) -> tuple:
            done, (first, last, *bounds) = carried
            plgpu.barrier_wait(rows_there)
            along = plgpu.Layout.WGMMA.reduce(1)
            mine = [buffer.at[warpgroup] for buffer in row_buffers]
            vectors = [plgpu.load(x, layout=along) for x in mine if len(x.shape) == 1]
            *floats, start, stop = vectors
            size = jnp.maximum(stop - start, 0)
            tiles = tuple(x for x in row_buffers if len(x.shape) == 3)
            begin, step, end = program(RowTile(tiles, warpgroup, tuple(floats)))

            def columns(number: jax.Array, before: jax.Array, masked: bool) -> ColumnTile:
                token = number * tile
                seen = (start - token, size) if masked else None
                slot = lax.rem(before + number - first, stages)
                return ColumnTile(
                    column_buffers, there, used_up, slot, seen, turn_barrier, machine.interpret
                )

            def pass_by(before: jax.Array, number: jax.Array) -> None:
                tile_now = columns(number, before, False)
                for load in range(LOADS):
                    tile_now.wait(load)
                    plgpu.barrier_arrive(used_up[load].at[tile_now.slot])
                change_turns(turn_barrier)
                change_turns(turn_barrier)

            def one_group(of_group: jax.Array, carry: tuple) -> tuple:
                before = done + of_group * (last - first)

                def visit(masked: bool) -> Callable:
                    return lambda number, carry: step(columns(number, before, masked), carry)

                def skip(number: jax.Array, _: None) -> None:
                    pass_by(before, number)

                lax.fori_loop(first, bounds[0], skip, None)
                carry = lax.fori_loop(bounds[0], bounds[1], visit(True), carry)
                carry = lax.fori_loop(bounds[1], bounds[2], visit(False), carry)
                carry = lax.fori_loop(bounds[2], bounds[3], visit(True), carry)
                lax.fori_loop(bounds[3], last, skip, None)
                return carry

            # The second warpgroup is half a tile behind the first.
            pl.when(warpgroup == 1)(lambda: change_turns(turn_barrier))
            if group == 1:
                carry = one_group(jnp.int32(0), begin())
            else:
                carry = lax.fori_loop(0, group, one_group, begin())
            pl.when(warpgroup == 0)(lambda: change_turns(turn_barrier))
            line, head = item(turn)
            batch, row = table[line, schedule.BATCH], first_row(line, warpgroup)
            # Asked for now, so that it is there when the results are made.
            following = visits(jnp.minimum(turn + 1, items_per_block - 1))
            if machine.interpret:
                plgpu.commit_smem()
            if not machine.in_place:
                plgpu.barrier_arrive(rows_used)

            values = end(carry)
            # The results of the item before may still be read from there.
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            for value, buffer in zip(values, result_buffers, strict=True):
                buffer.at[warpgroup][...] = value
            plgpu.commit_smem()
            for ref, buffer in zip(made, result_buffers, strict=True):
                target = _part(ref, batch, head, row, ROWS)
                plgpu.copy_smem_to_gmem(buffer.at[warpgroup], target)
            if machine.in_place:
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                plgpu.barrier_arrive(rows_used)
            return done + (last - first) * group, following

        lax.fori_loop(0, items_per_block, one_item, (jnp.int32(0), visits(jnp.int32(0))))
        plgpu.wait_smem_to_gmem(0)
