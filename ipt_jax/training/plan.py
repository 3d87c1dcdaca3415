"""The dry run: the whole step compiled for a mesh of virtual devices, with nothing allocated."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from ipt_jax.data.config import load_mixture
from ipt_jax.errors import UserError
from ipt_jax.models.sharding import BATCH, batch_shards, make_mesh
from ipt_jax.training.config import TrainConfig
from ipt_jax.training.optimizer import make_optimizer, make_schedule
from ipt_jax.training.state import TrainState, abstract_state
from ipt_jax.training.step import jit_train_step, make_train_step

# Dense bf16 peak FLOP/s and memory of one device, as the makers' data sheets give them.
DEVICES: dict[str, tuple[float, float]] = {
    "a100_40": (312e12, 40e9),
    "a100_80": (312e12, 80e9),
    "h100": (989e12, 80e9),
    "h200": (989e12, 141e9),
    "tpu_v4": (275e12, 32e9),
    "tpu_v5e": (197e12, 16e9),
    "tpu_v5p": (459e12, 95e9),
    "tpu_v6e": (918e12, 32e9),
}
USABLE = 0.9  # of a device's memory: the rest goes to the runtime and to fragments


@dataclass(frozen=True)
class Plan:
    """What a training run will need. Bytes are those of one device."""

    parameters: int
    """Of the whole model."""
    devices: int
    """Of the whole mesh."""
    steps: int
    """Updates of the whole run."""
    rows_per_device: float
    """Rows of one accumulation piece on one device of the data and fsdp axes."""
    flops_per_token: float
    """Training FLOPs a token, attention counted for causality."""
    hours: float
    """Of the whole run at the asked MFU."""
    parameter_bytes: int
    """Master parameters."""
    optimizer_bytes: int
    """Moments."""
    temporary_bytes: int
    """Gradients, activations and buffers, as the compiler laid them out for the virtual device."""
    batch_bytes: int
    """One batch's arrays."""
    findings: tuple[str, ...]
    """What the partitioner warned of."""

    @property
    def total_bytes(self) -> int:
        """All parts together."""
        parts = self.parameter_bytes + self.optimizer_bytes
        return parts + self.temporary_bytes + self.batch_bytes


def use_virtual_devices(count: int) -> None:
    """Make JAX see `count` CPU devices; must come before anything asks JAX for devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def make_plan(config: TrainConfig) -> Plan:
    """Lower and compile the configured step; no shard is read and no array is made.

    Raises:
      UserError: settings that do not fit together, or more memory than the named device has.
    """
    config.check()
    if config.dry_run_device not in DEVICES:
        raise UserError(
            f"dry_run_device={config.dry_run_device!r}: known are {', '.join(DEVICES)}."
        )
    peak, memory_bytes = DEVICES[config.dry_run_device]
    decoder = config.model.decoder()
    mesh = make_mesh(config.mesh)
    optimizer = make_optimizer(config.optimizer, config.steps)
    abstract = abstract_state(decoder, optimizer, mesh)
    step = make_train_step(
        decoder,
        optimizer,
        make_schedule(config.optimizer, config.steps),
        source_count=len(load_mixture(config.data).tasks),
        accumulation_steps=config.accumulation_steps,
        z_loss=config.optimizer.z_loss,
        backend=config.attention_backend,
        mesh=mesh,
    )
    batch = _abstract_batch(config, NamedSharding(mesh, BATCH))
    with _captured_warnings() as findings:
        compiled = jit_train_step(step, mesh, abstract).lower(abstract, batch).compile()
    memory = compiled.memory_analysis()
    flops = decoder.flops_per_token(config.data.row_tokens)
    plan = Plan(
        parameters=decoder.parameter_count(),
        devices=mesh.size,
        steps=config.steps,
        rows_per_device=config.batch_rows / (config.accumulation_steps * batch_shards(mesh)),
        flops_per_token=flops,
        hours=config.train_tokens * flops / (peak * config.dry_run_mfu * mesh.size) / 3600,
        parameter_bytes=_bytes_on_a_device(abstract.params),
        optimizer_bytes=_bytes_on_a_device(abstract.optimizer_state),
        temporary_bytes=int(memory.temp_size_in_bytes),
        batch_bytes=_bytes_on_a_device(batch),
        findings=tuple(findings),
    )
    if plan.total_bytes > USABLE * memory_bytes:
        raise UserError(
            f"this run needs {plan.total_bytes / 1e9:.1f} GB a device ({describe_memory(plan)}), "
            f"more than {USABLE:.0%} of the {memory_bytes / 1e9:.0f} GB of "
            f"dry_run_device={config.dry_run_device}: raise accumulation_steps or mesh.fsdp, "
            "recompute more (model.overrides.remat: full), or take more devices."
        )
    return plan


def describe(plan: Plan, config: TrainConfig) -> str:
    """The plan in lines for a person."""
    lines = [
        f"model {config.model.preset}, {plan.parameters:,} parameters, "
        f"{plan.flops_per_token / 1e9:.2f} GFLOPs a token",
        f"{plan.devices} devices, {plan.rows_per_device:g} rows of {config.data.row_tokens} tokens "
        f"a device and piece, {config.accumulation_steps} piece(s) a batch",
        f"{plan.steps:,} steps of {config.batch_tokens:,} tokens, {config.train_tokens:,} in all",
        f"memory a device {plan.total_bytes / 1e9:.2f} GB: {describe_memory(plan)}",
        f"{plan.hours:,.1f} hours on {config.dry_run_device} at MFU {config.dry_run_mfu:.0%}",
    ]
    return "\n".join([*lines, *(f"finding: {finding}" for finding in plan.findings)])


def describe_memory(plan: Plan) -> str:
    """The parts of a device's memory in GB."""
    parts = {
        "parameters": plan.parameter_bytes,
        "optimiser": plan.optimizer_bytes,
        "gradients, activations and buffers": plan.temporary_bytes,
        "batch": plan.batch_bytes,
    }
    return ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())


def _abstract_batch(config: TrainConfig, sharding: NamedSharding) -> dict[str, Any]:
    shape = (config.batch_rows, config.data.row_tokens)
    integers = ("tokens", "targets", "segment_ids", "positions", "source_ids")
    batch = {n: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding) for n in integers}
    return batch | {"loss_weights": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)}


def _bytes_on_a_device(tree: TrainState | Any) -> int:
    total = 0
    for leaf in jax.tree.leaves(tree):
        total += int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
    return total


@contextmanager
def _captured_warnings() -> Iterator[list[str]]:
    """Collect what XLA's C++ code writes to file descriptor 2; the partitioner warns there."""
    found: list[str] = []
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield found
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            text = file.read().decode(errors="replace")
            found += [line for line in text.splitlines() if "rematerialization" in line]
