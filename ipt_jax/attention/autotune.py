"""The timing that finds the portable kernel's tiles for a device and a shape."""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp

from ipt_jax.attention import pallas_gpu
from ipt_jax.attention.block_sizes import Tile, block_sizes
from ipt_jax.attention.spec import AttentionSpec, key_ranges
from ipt_jax.chips.devices import target


def candidates(kernel: str) -> Iterator[Tile]:
    """What `autotune` tries for one kernel, of `forward`, `d_query` and `d_key_value`."""
    longest = 128 if kernel == "forward" else 64
    sizes = [size for size in (32, 64, 128) if size <= longest]
    for queries, keys, warps, stages in itertools.product(sizes, sizes, (4, 8), (2, 3)):
        yield Tile(queries, keys, warps, stages)


def autotune(
    shape: tuple[int, int, int, int, int],
    spec: AttentionSpec,
    *,
    dtype: str = "bfloat16",
    segment_ids: jax.Array | None = None,
    tiles: dict[str, list[Tile]] | None = None,
    repeats: int = 10,
    seconds: float = 120.0,
    interpret: bool = False,
) -> str:
    """Time the candidates of each kernel and print the table's line of the fastest.

    Args:
      shape: B, T, H, K, h: rows, tokens a row, query heads, key heads, head width.
      spec: the mask to time with.
      dtype: of queries, keys and values.
      segment_ids: int32 [B, T] where `spec.segments` is set.
      tiles: candidates per kernel; None: `candidates`.
      repeats: timed runs of each; the median counts.
      seconds: a kernel's candidates that begin after a third of these are not tried, and counted.
      interpret: run where there is no GPU (to test this function; the times mean nothing).

    Returns:
      The line for TABLE, with what was tried as comments above it.
    """
    B, T, H, K, h = shape
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(B, T, K, H // K, h), (B, T, K, h), (B, T, K, h), (B, T, K, H // K, h)]
    q, k, v, d_out = (
        jax.random.normal(key, shape, jnp.dtype(dtype))
        for key, shape in zip(keys, shapes, strict=True)
    )
    ranges = jax.tree.map(lambda x: jnp.broadcast_to(x, (B, T)), key_ranges(spec, segment_ids, T))
    itemsize = jnp.dtype(dtype).itemsize
    device = target().kind
    best = block_sizes(h, itemsize, T, device)
    log_sum = delta = jnp.zeros((B, K, H // K, T), jnp.float32)
    by_key = (ranges.key_start, ranges.key_stop)
    by_query = (ranges.query_start, ranges.query_stop)
    kernels = {
        "forward": (pallas_gpu.forward, (q, k, v, *by_key)),
        "d_query": (pallas_gpu.d_query, (q, k, v, d_out, log_sum, delta, *by_key)),
        "d_key_value": (pallas_gpu.d_key_value, (q, k, v, d_out, log_sum, delta, *by_query)),
    }
    lines = []
    for kernel, (function, arrays) in kernels.items():
        begin, timed, failed, untried = time.monotonic(), {}, 0, 0
        for tile in tiles[kernel] if tiles else candidates(kernel):
            if time.monotonic() - begin > seconds / 3 and timed:
                untried += 1
                continue
            how = pallas_gpu.KernelConfig(spec.scale or h**-0.5, spec.softcap, tile, interpret)
            try:
                timed[tile] = _median_seconds(functools.partial(function, how), arrays, repeats)
            except (ValueError, RuntimeError):  # more shared memory than the device has
                failed += 1
        if not timed:
            raise ValueError(f"autotune: none of the {kernel} tiles ran for {shape}.")
        fastest = min(timed, key=lambda tile: timed[tile])
        best = replace(best, **{kernel: fastest})
        lines.append(
            f"    # {kernel}: {timed[fastest] * 1e3:.3f} ms, {len(timed)} tried, {failed} did not "
            f"run, {untried} not tried"
        )
    day = time.strftime("%Y-%m-%d")
    best = replace(best, measured=f"{device}, JAX {jax.__version__}, {day}, {shape}, {spec}")
    lines.append(f"    ({device!r}, {h}, {itemsize}): {best!r},")
    text = "\n".join(lines)
    print(text)
    return text


def _median_seconds(function, arrays: tuple[jax.Array, ...], repeats: int) -> float:
    jitted = jax.jit(function)
    jax.block_until_ready(jitted(*arrays))
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(jitted(*arrays))
        times.append(time.perf_counter() - begin)
    return statistics.median(times)
