"""Whether a run's batch and weights divide among the devices of a mesh."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh

from ipt_jax.core.errors import UserError
from ipt_jax.models.config import DecoderConfig
from ipt_jax.models.sharding import MESH_AXIS_OF, batch_shards
from ipt_jax.training.config import TrainConfig

# Logical axis of a parameter -> the field of DecoderConfig that gives its size.
FIELD_OF: dict[str, str] = {
    "vocabulary": "vocabulary_size",
    "kv_heads": "kv_heads",
    "heads": "heads",
    "mlp": "mlp_width",
    "width": "width",
}


def with_accumulation(config: TrainConfig, mesh: Mesh) -> TrainConfig:
    """The config with the `accumulation_steps` that `rows_per_device` asks for on this mesh.

    They are the fewest equal pieces with no more rows a device.
    """
    if config.accumulation_steps is not None or config.rows_per_device is None:
        return config
    each = max(1, config.batch_rows // batch_shards(mesh))
    most = max(n for n in range(1, min(each, config.rows_per_device) + 1) if each % n == 0)
    return dataclasses.replace(config, accumulation_steps=each // most)


def check_division(config: TrainConfig, decoder: DecoderConfig, mesh: Mesh) -> None:
    """Refuse what would leave devices without equal shares.

    Raises:
      UserError: rows of a piece, tokens of a row or a weight's axis that do not divide; it names
        the key, its value and values that would do.
    """
    _check_rows(config, mesh)
    context = mesh.shape["context"]
    if config.data.row_tokens % context:
        raise UserError(
            f"data.row_tokens={config.data.row_tokens} does not divide among mesh.context="
            f"{context} devices; change one of them."
        )
    for logical, axis in MESH_AXIS_OF.items():
        size, devices = getattr(decoder, FIELD_OF[logical]), mesh.shape[axis]
        if size % devices:
            smaller = max(n for n in range(1, devices) if size % n == 0)
            raise UserError(
                f"mesh.{axis}={devices} does not divide {FIELD_OF[logical]}={size} of "
                f"model.preset={config.model.preset!r}; mesh.{axis}={smaller} would."
            )


def _check_rows(config: TrainConfig, mesh: Mesh) -> None:
    rows, pieces, shards = config.batch_rows, config.pieces, batch_shards(mesh)
    if rows % (pieces * shards) == 0:
        return
    said = (
        f"batch_tokens={config.batch_tokens} is {rows} rows of data.row_tokens="
        f"{config.data.row_tokens}; in accumulation_steps={pieces} pieces they do not divide among "
        f"mesh.data × mesh.fsdp = {shards} devices"
    )
    if rows % shards == 0:
        each = rows // shards
        fewer = max(n for n in range(1, pieces + 1) if each % n == 0)
        raise UserError(f"{said}; accumulation_steps={fewer} would.")
    most = max(n for n in range(1, min(rows, shards) + 1) if rows % n == 0 and shards % n == 0)
    fewer = max(n for n in range(1, pieces + 1) if rows // most % n == 0)
    raise UserError(
        f"{said}; let {most} of them share the rows and {shards // most} split a row or the "
        f"weights (mesh.context or mesh.tensor = {shards // most}, accumulation_steps={fewer}), "
        "take another number of devices, or change batch_tokens."
    )
