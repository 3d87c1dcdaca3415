"""Attention for Hopper GPUs on Pallas' Mosaic GPU: three kernels of one build.

Forward, dq, and dk with dv are the same machine (`ipt_jax.attention.hopper_machine`): a block
holds tiles of *rows* and lets tiles of *columns* pass by. Forward and dq hold queries and stream
keys; dk and dv hold keys and stream the queries of all heads that share them, so that no head's
gradient is ever stored or added up by several blocks. Every sum has one fixed order: results are
the same bits each time.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ipt_jax.attention import hopper_schedule as schedule
from ipt_jax.attention.hopper_machine import (
    ROWS,
    WARPGROUPS,
    ColumnTile,
    PersistentKernel,
    Program,
    RowTile,
    add_product,
    column_vector,
    over_columns,
    over_rows,
    run,
    wgmma,
)
from ipt_jax.attention.partition import on_devices
from ipt_jax.chips.devices import target

if TYPE_CHECKING:
    from ipt_jax.attention.spec import AttentionSpec, KeyRanges

ITEM_ROWS = ROWS * WARPGROUPS
LOG2E = math.log2(math.e)
# In base 2, and finite, so that nothing becomes NaN. A masked score lies so far below every running
# maximum that its weight is 0 even in a row that has seen nothing yet.
MASKED, LOWEST = -1e30, -1e29
MISCOMPILES = range(12080, 12091)  # versions of the CUDA runtime
HEAD_WIDTHS = (64, 96, 128)


@dataclass(frozen=True)
class Tiles:
    """Sizes of one kernel."""

    columns: int = 128
    """Tokens of a streamed tile; a multiple of 64."""
    stages: int = 2
    """Streamed tiles in shared memory at a time."""
    ping_pong: bool = False
    """Forward: one warpgroup multiplies while the other does its softmax."""
    in_place: bool = False
    """Results take the place of rows in shared memory: room for larger tiles or more stages, but
    the next item's rows come only when the results of this one are on their way."""

    def __post_init__(self) -> None:
        if self.columns < ROWS or self.columns % ROWS:
            raise ValueError(f"Tiles: columns={self.columns} is not a multiple of {ROWS}.")


@dataclass(frozen=True)
class Tuning:
    """Sizes of the three kernels."""

    forward: Tiles = Tiles(128, 2, True)
    """Holds queries, streams keys and values."""
    dq: Tiles = Tiles(64, 2)
    """Holds queries and output gradients, streams keys and values."""
    dkv: Tiles = Tiles(64, 2)
    """Holds keys and values, streams queries and output gradients."""


# Of each kernel: (tiles, vectors) that are held, streamed and made in shared memory; float32 arrays
# in registers that are as wide as a head, and as a streamed tile.
_NEEDS = {
    "forward": ((1, 2), (2, 0), (1, 1), (1, 1)),
    "dq": ((2, 4), (2, 0), (1, 0), (1, 2)),
    "dkv": ((2, 2), (2, 2), (2, 0), (2, 2)),
}
SHARED_KIB, MOST_REGISTERS = 227, 200  # of 232 a thread; masks, indices and addresses take some


def fits(kernel: str, head_width: int, tiles: Tiles) -> bool:
    """Whether a field of `Tuning` can be built so and spills nothing in its loop, by CUDA 13."""
    held, streamed, (tiles_made, vectors_made), (wide, columns) = _NEEDS[kernel]

    def kib(tokens: int, counts: tuple[int, int]) -> int:
        sizes = (tokens * head_width * 2, tokens * 4)  # of buffers, which begin at whole KiB
        return sum(count * -(-size // 1024) for count, size in zip(counts, sizes, strict=True))

    made = (0 if tiles.in_place else tiles_made, vectors_made)
    shared = kib(ITEM_ROWS, held) + kib(ITEM_ROWS, made)
    shared += kib(tiles.stages * tiles.columns, streamed)
    registers = (wide * head_width + columns * tiles.columns) // 2
    # Barriers are in the last KiB. Masks of other columns than a power of 2 take many registers.
    enough = shared < SHARED_KIB and registers <= MOST_REGISTERS
    return enough and tiles.columns.bit_count() == 1


# Head width -> sizes. Not measured: chosen so that shared memory and registers suffice.
# `tools/bench_gpu.py` prints lines for this table.
TUNINGS: dict[int, Tuning] = {
    64: Tuning(Tiles(128, 4, True), Tiles(128, 2), Tiles(64, 3)),
    96: Tuning(Tiles(128, 2, True), Tiles(64, 2), Tiles(64, 2)),
    128: Tuning(Tiles(128, 2, True), Tiles(64, 2), Tiles(64, 2)),
}


def pallas_hopper_attention(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    spec: AttentionSpec,
    ranges: KeyRanges,
    *,
    tuning: Tuning | None = None,
    blocks: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """See `ipt_jax.attention.backends.attention`, which refuses what these kernels do not do.

    Softmax is float32, products add up in float32.

    Args:
      q_BTHh: queries, bfloat16 or float16.
      k_BTKh: keys.
      v_BTKh: values.
      spec: scale; the mask is in the ranges.
      ranges: which keys each query sees.
      tuning: sizes; None: those of TUNINGS.
      blocks: persistent blocks; None: one a multiprocessor of the target, which must be a Hopper
        then.
      interpret: simulate the kernels on the host, for tests; races are looked for.

    Raises:
      ValueError: another device than Hopper, or a scale that is not above 0.
    """
    if spec.scale is not None and spec.scale <= 0:
        raise ValueError(
            f"attention backend pallas_hopper: scale {spec.scale} is not above 0; choose pallas."
        )
    h = q_BTHh.shape[3]
    setting = HopperConfig(
        scale=spec.scale if spec.scale is not None else h**-0.5,
        tuning=tuning or TUNINGS[h],
        blocks=multiprocessors() if blocks is None else blocks,
        interpret=interpret,
    )
    B, T, H, _ = q_BTHh.shape
    K = k_BTKh.shape[2]
    ranges = jax.tree.map(lambda x: jnp.broadcast_to(x, (B, x.shape[1])), ranges)
    q_BTKGh = q_BTHh.reshape(B, T, K, H // K, h)
    out_BTKGh: jax.Array = _attention(setting, q_BTKGh, k_BTKh, v_BTKh, ranges)
    return out_BTKGh.reshape(q_BTHh.shape)


def multiprocessors() -> int:
    """Of the GPU that is compiled for.

    Raises:
      ValueError: it is no Hopper GPU.
    """
    from jax._src.lib import cuda_versions  # JAX has no public name for the runtime's version

    chip = target()
    # Hopper's matrix instructions exist on 9.0 alone: not before, and not on Blackwell.
    if chip.platform != "gpu" or chip.capability != "9.0":
        known = f", compute capability {chip.capability}" if chip.capability else ""
        raise ValueError(
            f"attention backend pallas_hopper: needs a Hopper GPU (compute capability 9.0), this "
            f"is {chip.kind} ({chip.platform}{known}); choose pallas or cudnn."
        )
    if cuda_versions is not None and cuda_versions.cuda_runtime_get_version() in MISCOMPILES:
        raise ValueError(
            "attention backend pallas_hopper: the assembler of CUDA 12.8.0 to 12.9.0 miscompiles "
            "masks (JAX's own kernel refuses it too); install CUDA 12.9.1 or 13, or choose cudnn."
        )
    return chip.cores


@dataclass(frozen=True)
class HopperConfig:
    """What is fixed when the kernels are compiled."""

    scale: float
    """Factor on the products of queries and keys; above 0."""
    tuning: Tuning
    """Sizes."""
    blocks: int
    """Persistent blocks."""
    interpret: bool = False
    """Simulate on the host."""

    def machine(
        self, tiles: Tiles, ranges: tuple[jax.Array, jax.Array], heads: int, column_heads: int
    ) -> PersistentKernel:
        """One kernel's: rows have `heads`, and `ranges` say which columns each of them sees."""
        table = schedule.work_table(*ranges, ROWS, WARPGROUPS, tiles.columns)
        return PersistentKernel(
            table=table,
            starts=ranges[0],
            stops=ranges[1],
            heads=heads,
            column_heads=column_heads,
            tile_columns=tiles.columns,
            stages=tiles.stages,
            ping_pong=tiles.ping_pong,
            in_place=tiles.in_place,
            blocks=min(self.blocks, table.shape[0] * heads),
            interpret=self.interpret,
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    setting: HopperConfig, q: jax.Array, k: jax.Array, v: jax.Array, ranges: KeyRanges
) -> jax.Array:
    return _attention_forward(setting, q, k, v, ranges)[0]


def _attention_forward(
    setting: HopperConfig, q: jax.Array, k: jax.Array, v: jax.Array, ranges: KeyRanges
) -> tuple[jax.Array, Any]:
    out, log_sum = on_devices(forward, setting)(q, k, v, ranges.key_start, ranges.key_stop)
    # Or XLA fuses the kernel with the write into what a scan stores, and runs a copy of it for use.
    out, log_sum = jax.lax.optimization_barrier((out, log_sum))
    # Named where the backward pass takes them from, as in the reference.
    out, log_sum = checkpoint_name((out, log_sum), "attention")
    return out, (q, k, v, ranges, out, log_sum)


def _attention_backward(
    setting: HopperConfig, residuals: Any, d_out: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, ranges, out, log_sum = residuals
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), -1)
    given = (q, k, v, d_out, log_sum, jnp.moveaxis(delta, 1, 3))
    d_q = on_devices(d_query, setting)(*given, ranges.key_start, ranges.key_stop)
    d_k, d_v = on_devices(d_key_value, setting)(*given, ranges.query_start, ranges.query_stop)
    return d_q, d_k, d_v, None


_attention.defvjp(_attention_forward, _attention_backward)


def forward(
    setting: HopperConfig,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    starts: jax.Array,
    stops: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The output [B, T, K, G, h] and each query's base-2 log-sum-exp, float32 [B, K, G, T]."""
    B, T, K, G, h = q.shape
    H = K * G
    tiles = setting.tuning.forward
    (wide_q,) = _whole(ITEM_ROWS, q.reshape(B, T, H, h))
    length = wide_q.shape[1]
    out, log_sum = run(
        setting.machine(tiles, schedule.padded_ranges(starts, stops, B, length), H, K),
        functools.partial(_forward_block, setting.scale * LOG2E, setting.interpret),
        rows=(wide_q,),
        columns=_whole(tiles.columns, k, v),
        results=(
            jax.ShapeDtypeStruct((B, length, H, h), q.dtype),
            jax.ShapeDtypeStruct((B, H, length), jnp.float32),
        ),
        name="attention_forward",
    )
    return out[:, :T].reshape(q.shape), log_sum[:, :, :T].reshape(B, K, G, T)


def d_query(setting: HopperConfig, *arrays: jax.Array) -> jax.Array:
    """The gradient of the queries; `starts` and `stops` are each query's keys."""
    q, k, v, d_out, log_sum, delta, starts, stops = arrays
    B, T, K, G, h = q.shape
    H = K * G
    tiles = replace(setting.tuning.dq, ping_pong=False)
    wide = (x.reshape(B, T, H, h) for x in (q, d_out))
    rows = _whole(ITEM_ROWS, *wide, *(x.reshape(B, H, T) for x in (log_sum, delta)))
    length = rows[0].shape[1]
    (d_q,) = run(
        setting.machine(tiles, schedule.padded_ranges(starts, stops, B, length), H, K),
        functools.partial(_dq_block, setting.scale, setting.interpret),
        rows=rows,
        columns=_whole(tiles.columns, k, v),
        results=(jax.ShapeDtypeStruct((B, length, H, h), q.dtype),),
        name="attention_dq",
    )
    return d_q[:, :T].reshape(q.shape)


def d_key_value(setting: HopperConfig, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradients of keys and values; `starts` and `stops` are each key's queries."""
    q, k, v, d_out, log_sum, delta, starts, stops = arrays
    B, T, K, h = k.shape
    queries, H = q.shape[1], K * q.shape[3]
    tiles = replace(setting.tuning.dkv, ping_pong=False)
    wide = (x.reshape(B, queries, H, h) for x in (q, d_out))
    columns = (*wide, *(x.reshape(B, H, queries) for x in (log_sum, delta)))
    rows = _whole(ITEM_ROWS, k, v)
    length = rows[0].shape[1]
    d_k, d_v = run(
        setting.machine(tiles, schedule.padded_ranges(starts, stops, B, length), K, H),
        functools.partial(_dkv_block, setting.scale, setting.interpret),
        rows=rows,
        columns=_whole(tiles.columns, *columns),
        results=(jax.ShapeDtypeStruct((B, length, K, h), k.dtype),) * 2,
        name="attention_dkv",
    )
    return d_k[:, :T], d_v[:, :T]


def _whole(unit: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Zeros behind the last token, up to a multiple of `unit`; mostly there is nothing to do."""

    def one(x: jax.Array) -> jax.Array:
        axis = 1 if x.ndim == 4 else 2
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, -x.shape[axis] % unit)
        return jnp.pad(x, widths) if widths[axis][1] else x

    return tuple(map(one, arrays))


def _forward_block(factor: float, interpret: bool, rows: RowTile) -> Program:
    """Softmax over the passing keys; scores are in units of log 2, so that exp2 serves."""
    (q,) = rows.tiles
    width = q.shape[1]

    def begin() -> tuple:
        return rows.zeros(width), rows.full(LOWEST), rows.full(0.0)

    def step(columns: ColumnTile, carry: tuple) -> tuple:
        out, top, total = carry
        (k,) = columns.wait(0)
        scores = wgmma(q, k.transpose((1, 0)), interpret, besides=columns.change_turns)
        columns.release(0)
        scores = columns.hide(scores, MASKED / factor)
        new_top = jnp.maximum(top, scores.max(axis=1) * factor)
        # One product and one difference a score, which the compiler makes one instruction.
        weights = jnp.exp2(scores * factor - over_columns(new_top, scores.shape))
        shrink = jnp.exp2(top - new_top)
        out = out * over_columns(shrink, out.shape)
        total = total * shrink + weights.sum(axis=1)
        low = weights.astype(q.dtype)
        # Nothing of the softmax may be moved behind the other warpgroup's turn.
        out, new_top, total, low = jax.lax.optimization_barrier((out, new_top, total, low))
        (v,) = columns.wait(1)
        columns.change_turns()
        out = add_product(out, low, v, interpret)
        columns.release(1)
        return out, new_top, total

    def end(carry: tuple) -> tuple:
        out, top, total = carry
        total = jnp.maximum(total, 1e-30)  # a row may see nothing
        return (out / over_columns(total, out.shape)).astype(q.dtype), top + jnp.log(total) * LOG2E

    return begin, step, end


def _dq_block(scale: float, interpret: bool, rows: RowTile) -> Program:
    """dq = scale · Σ over keys of P ∘ (dP - delta) · K, with P made again from the log-sum."""
    q, d_out = rows.tiles
    log_sum, delta = rows.vectors

    def begin() -> tuple:
        return (rows.zeros(q.shape[1]),)

    def step(columns: ColumnTile, carry: tuple) -> tuple:
        (d_q,) = carry
        (k,) = columns.wait(0)
        scores = wgmma(q, k.transpose((1, 0)), interpret) * (scale * LOG2E)
        weights = jnp.exp2(scores - over_columns(log_sum, scores.shape))
        weights = columns.hide(weights, 0.0)
        (v,) = columns.wait(1)
        d_weights = wgmma(d_out, v.transpose((1, 0)), interpret)
        columns.release(1)
        d_scores = weights * (d_weights - over_columns(delta, weights.shape))
        d_q = add_product(d_q, d_scores.astype(q.dtype), k, interpret)
        columns.release(0)
        return (d_q,)

    def end(carry: tuple) -> tuple:
        return ((carry[0] * scale).astype(q.dtype),)

    return begin, step, end


def _dkv_block(scale: float, interpret: bool, rows: RowTile) -> Program:
    """dk = scale · Σ over queries of dSᵀ · Q and dv = Σ of Pᵀ · dO; all tiles are transposed."""
    width, dtype = rows.buffers[0].shape[2], rows.buffers[0].dtype

    def begin() -> tuple:
        return rows.zeros(width), rows.zeros(width)

    def step(columns: ColumnTile, carry: tuple) -> tuple:
        k, v = rows.tiles
        d_k, d_v = carry
        q, log_sum = columns.wait(0)
        scores = wgmma(k, q.transpose((1, 0)), interpret) * (scale * LOG2E)
        weights = jnp.exp2(scores - over_rows(column_vector(log_sum), scores.shape))
        weights = columns.hide(weights, 0.0)
        d_out, delta = columns.wait(1)
        d_v = add_product(d_v, weights.astype(dtype), d_out, interpret)
        d_weights = wgmma(v, d_out.transpose((1, 0)), interpret)
        d_scores = weights * (d_weights - over_rows(column_vector(delta), weights.shape))
        columns.release(1)
        d_k = add_product(d_k, d_scores.astype(dtype), q, interpret)
        columns.release(0)
        return d_k, d_v

    def end(carry: tuple) -> tuple:
        d_k, d_v = carry
        return (d_k * scale).astype(dtype), d_v.astype(dtype)

    return begin, step, end
