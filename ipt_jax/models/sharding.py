"""One table: parameter -> logical axes -> mesh axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ipt_jax.core.bounds import Config
from ipt_jax.core.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor", "context")

# The last part of a parameter's path -> one logical axis per dimension.
PARAMETER_AXES: dict[str, tuple[str | None, ...]] = {
    "embedding_VD": ("vocabulary", "width"),
    "unembedding_VD": ("vocabulary", "width"),
    "final_norm_D": (None,),
    "attention_norm_LD": (None, None),
    "query_key_value_LDKGh": (None, "width", "kv_heads", None, None),
    "output_LHhD": (None, "heads", None, "width"),
    "mlp_norm_LD": (None, None),
    "gate_up_LD2F": (None, "width", None, "mlp"),
    "down_LFD": (None, "mlp", "width"),
    # Adapters split as the weights beside which they stand; their rank r stays whole.
    "query_a_LDr": (None, "width", None),
    "query_b_LrKGh": (None, None, "kv_heads", None, None),
    "key_a_LDr": (None, "width", None),
    "key_b_LrKh": (None, None, "kv_heads", None),
    "value_a_LDr": (None, "width", None),
    "value_b_LrKh": (None, None, "kv_heads", None),
    "output_a_LHhr": (None, "heads", None, None),
    "output_b_LrD": (None, None, "width"),
    "gate_a_LDr": (None, "width", None),
    "gate_b_LrF": (None, None, "mlp"),
    "up_a_LDr": (None, "width", None),
    "up_b_LrF": (None, None, "mlp"),
    "down_a_LFr": (None, "mlp", None),
    "down_b_LrD": (None, None, "width"),
    # Of the train state besides: the losses that the guard remembers.
    "losses": (None,),
}

MESH_AXIS_OF: dict[str, str] = {
    "vocabulary": "tensor",
    "kv_heads": "tensor",
    "heads": "tensor",
    "mlp": "tensor",
    "width": "fsdp",
}

BATCH = PartitionSpec(("data", "fsdp"), "context")  # arrays [B, T]


@dataclass(frozen=True)
class MeshConfig(Config):
    """How many devices each axis spans; -1 at one axis: all that are left."""

    data: int = -1
    """Copies of the model, each with its own rows."""
    fsdp: int = 1
    """Devices that share one copy of the parameters, each with its own rows."""
    tensor: int = 1
    """Devices that split heads, MLP and vocabulary."""
    context: int = 1
    """Devices that split a row's tokens."""


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of all devices, or of these, axes data × fsdp × tensor × context.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    sizes = [config.data, config.fsdp, config.tensor, config.context]
    count = jax.device_count() if devices is None else len(devices)
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if math.prod(sizes) != count or min(sizes) < 1:
        shape = ", ".join(f"mesh.{n}={s}" for n, s in zip(MESH_AXES, sizes, strict=True))
        raise UserError(
            f"{shape} do not multiply to the {count} devices of this run",
            advice="set one of them to -1 (all that are left) or to factors of the device count",
        )
    axis_types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=axis_types, devices=devices)


def parameter_spec(path: tuple[Any, ...]) -> PartitionSpec:
    """The partition of the parameter (or optimiser moment) at a tree path.

    Raises:
      KeyError: a parameter that the table does not name.
    """
    name = _key_name(path[-1]) if path else ""
    if name not in PARAMETER_AXES:
        raise KeyError(f"{jax.tree_util.keystr(path)}: not in PARAMETER_AXES; add it there.")
    return PartitionSpec(*(MESH_AXIS_OF[axis] if axis else None for axis in PARAMETER_AXES[name]))


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for each array of a (possibly abstract) state tree; scalars are whole.

    Raises:
      KeyError: an array that the table does not name, or names with other axes.
    """

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        spec = parameter_spec(path) if leaf.ndim else PartitionSpec()
        if len(spec) != leaf.ndim:
            where = jax.tree_util.keystr(path)
            raise KeyError(f"{where}: {leaf.ndim} axes, but PARAMETER_AXES gives it {len(spec)}.")
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(one, tree)


def constrain_activations(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Pins activations [B, T, D] to the devices of their rows and tokens, width whole.

    Left to itself, the partitioner takes the layout of the embedding's width and copies every
    row to every device.
    """
    sharding = NamedSharding(mesh, BATCH)
    return lambda x_BTD: jax.lax.with_sharding_constraint(x_BTD, sharding)


def batch_shards(mesh: Mesh) -> int:
    """Over how many devices the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _key_name(part: Any) -> str:
    return str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part))))
