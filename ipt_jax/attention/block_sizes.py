"""Tile sizes of the portable kernel per device and shape; `tools/bench_gpu.py` finds them."""

from __future__ import annotations

from dataclasses import dataclass, replace

SMALLEST_TILE = 16  # a tensor core's product has at least so many rows and columns


@dataclass(frozen=True)
class Tile:
    """One kernel's tile and launch settings."""

    queries: int
    """Queries a tile: a power of 2, at least 16."""
    keys: int
    """Keys a tile: a power of 2, at least 16."""
    warps: int = 4
    """Warps (32 threads each) a program."""
    stages: int = 2
    """Tiles in flight while one is computed."""

    def __post_init__(self) -> None:
        for size in (self.queries, self.keys):
            if size < SMALLEST_TILE or size & (size - 1):
                raise ValueError(f"Tile: {size} is not a power of 2 of at least {SMALLEST_TILE}.")


@dataclass(frozen=True)
class BlockSizes:
    """The tiles of the three kernels."""

    forward: Tile
    d_query: Tile
    d_key_value: Tile
    measured: str = ""
    """Device, JAX version and date of the timing that chose them; empty: nobody has timed them."""

    def at_most(self, length: int) -> BlockSizes:
        """The same for rows of `length` tokens: no tile longer than the row needs."""
        most = max(SMALLEST_TILE, 1 << (length - 1).bit_length())

        def cut(tile: Tile) -> Tile:
            return replace(tile, queries=min(tile.queries, most), keys=min(tile.keys, most))

        return replace(
            self,
            forward=cut(self.forward),
            d_query=cut(self.d_query),
            d_key_value=cut(self.d_key_value),
        )


# (part of the device's name, or "" for every other; widest head; bytes a number) -> tiles.
# The first row that fits holds. None has been timed: they are what fits the shared memory of an
# A100 (164 KiB a multiprocessor) by counting; in 2 bytes none spills registers, compiled for that
# device or an H100 by CUDA 13. The tool prints rows to put above them.
TABLE: dict[tuple[str, int, int], BlockSizes] = {
    ("A100", 64, 2): BlockSizes(Tile(128, 64, 8), Tile(64, 64), Tile(64, 32)),
    ("A100", 128, 2): BlockSizes(Tile(64, 64), Tile(64, 64, 8), Tile(64, 64, 8)),
    ("", 64, 2): BlockSizes(Tile(128, 64, 8), Tile(64, 64), Tile(64, 64)),
    ("", 128, 2): BlockSizes(Tile(128, 64, 8), Tile(64, 64, 8), Tile(64, 64, 8)),
    ("", 64, 4): BlockSizes(Tile(64, 32), Tile(32, 32), Tile(32, 32)),
    ("", 128, 4): BlockSizes(Tile(32, 32), Tile(32, 32), Tile(32, 32, 8)),
}


def block_sizes(head_width: int, bytes_a_number: int, length: int, device: str) -> BlockSizes:
    """The table's tiles for a device by its kind, no longer than the row.

    Raises:
      ValueError: a head wider than the table has.
    """
    for (part, widest, size), sizes in TABLE.items():
        if part in device and head_width <= widest and size == bytes_a_number:
            return sizes.at_most(length)
    raise ValueError(
        f"attention block sizes: no row for heads {head_width} wide of {bytes_a_number} bytes a "
        f"number on {device!r}; add one to ipt_jax/attention/block_sizes.py."
    )
