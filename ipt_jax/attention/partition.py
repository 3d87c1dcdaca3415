"""Kernels over several devices: each computes its own rows, heads, and queries or keys.

The partitioner cannot look into a kernel; told nothing, it would have every device compute all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Axes: b rows, t queries, s keys, k key heads, g query heads of a group, h head width.
_GIVEN = "b t k g h, b s k h, b s k h"
_PASSED_BACK = f"{_GIVEN}, b t k g h, b k g t, b k g t"
KERNEL_RULES = {
    "forward": (f"{_GIVEN}, b t, b t -> b t k g h, b k g t", "s g h"),
    "d_query": (f"{_PASSED_BACK}, b t, b t -> b t k g h", "s g h"),
    "d_key_value": (f"{_PASSED_BACK}, b s, b s -> b s k h, b s k h", "t g h"),
}
"""Of the three kernels by their functions' names: `rule` and `whole` of `partitioned`."""


def partitioned(function: Callable[..., Any], rule: str, whole: str) -> Callable[..., Any]:
    """`function` of arrays, split over devices along the axes that `rule` names.

    Args:
      function: computes each device's piece as it would the whole.
      rule: axes of arguments and results by letters, as `b t h, b s h -> b t h`.
      whole: letters of axes that each device has whole, as `s h`.
    """
    sides = [[axes.split() for axes in side.split(",")] for side in rule.split("->")]
    kept_whole = set(whole.split())

    def partition(mesh: Mesh, arguments: Any, results: Any) -> tuple[Any, ...]:
        arguments = tuple(arguments)
        chosen: dict[str, Any] = {}
        taken: set[str] = set()
        for letters, array in zip(sides[0], arguments, strict=True):
            for letter, size, axes in zip(letters, array.shape, array.sharding.spec, strict=True):
                names = (axes,) if isinstance(axes, str) else tuple(axes or ())
                fits = names and size % math.prod(mesh.shape[name] for name in names) == 0
                if fits and letter not in kept_whole | chosen.keys() and taken.isdisjoint(names):
                    chosen[letter] = axes
                    taken.update(names)

        def placed(letters: list[str]) -> NamedSharding:
            return NamedSharding(mesh, PartitionSpec(*(chosen.get(name) for name in letters)))

        outputs = tuple(placed(letters) for letters in sides[1])
        inputs = tuple(placed(letters) for letters in sides[0])
        return mesh, function, outputs if isinstance(results, tuple) else outputs[0], inputs

    # It goes by the function's name in error messages, which a partial has not.
    def whole_function(*arrays: jax.Array) -> Any:
        return function(*arrays)

    over_devices = custom_partitioning(whole_function)
    over_devices.def_partition(
        partition=partition,
        sharding_rule=rule,
        # The partitioner wants them in the order in which the rule names them.
        need_replication_factors=tuple(sorted(kept_whole, key=rule.index)),
    )
    return over_devices
