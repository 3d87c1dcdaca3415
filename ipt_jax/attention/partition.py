"""Kernels over several devices: each computes its own rows, heads, and queries or keys.

The partitioner cannot look into a kernel; told nothing, it would have every device compute all, or
(cuDNN's own wrapper) split the queries and not the list of their segments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from ipt_jax.chips.devices import target

# Letter of an axis -> the mesh axes that split it, as `ipt_jax.models.sharding` splits batches and
# projections: b rows, t queries, s keys, k key heads; g query heads of a group, h head width.
SPLIT: dict[str, tuple[str, ...]] = {
    "b": ("data", "fsdp"),
    "t": ("context",),
    "s": ("context",),
    "k": ("tensor",),
}
_GIVEN = "b t k g h, b s k h, b s k h"
_PASSED_BACK = f"{_GIVEN}, b t k g h, b k g t, b k g t"
KERNEL_RULES = {
    "forward": (f"{_GIVEN}, b t, b t -> b t k g h, b k g t", "s"),
    "d_query": (f"{_PASSED_BACK}, b t, b t -> b t k g h", "s"),
    "d_key_value": (f"{_PASSED_BACK}, b s, b s -> b s k h, b s k h", "t"),
}
"""Of the three kernels by their functions' names: `rule` and `whole` of `over_devices`."""


def on_devices(kernel: Callable[..., Any], setting: Any) -> Callable[..., Any]:
    """`kernel` with its setting, one of those that KERNEL_RULES names."""
    return over_devices(functools.partial(kernel, setting), *KERNEL_RULES[kernel.__name__])


def over_devices(function: Callable[..., Any], rule: str, whole: str = "") -> Callable[..., Any]:
    """`function` of arrays, on each device of the target's mesh for its own part of them.

    Args:
      function: computes each device's part as it would the whole.
      rule: axes of arguments and results by letters, as `b t k h, b s k h -> b t k h`; axes that
        the mesh splits must divide among its devices.
      whole: letters of axes that each device has whole all the same, as `s`.
    """
    mesh = target().mesh
    if mesh is None or mesh.size == 1:
        return function

    def spec(letters: str) -> PartitionSpec:
        split = (() if one in whole else SPLIT.get(one, ()) for one in letters.split())
        there = (tuple(axis for axis in axes if axis in mesh.shape) for axes in split)
        return PartitionSpec(*(axes or None for axes in there))

    given, results = ([spec(letters) for letters in side.split(",")] for side in rule.split("->"))
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=tuple(given),
        out_specs=tuple(results) if len(results) > 1 else results[0],
        check_vma=False,  # kernels' results do not say over which axes they vary
    )
