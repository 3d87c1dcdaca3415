"""The dry run: the whole step compiled for devices that are not there, with nothing allocated.

Where the named chip's compiler is installed (JAX's CUDA plugin, libtpu), it compiles for a
description of the chip; else XLA's CPU compiler does for virtual devices.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxlib import version as jaxlib_version

from ipt_jax.chips.devices import DEVICES, Device
from ipt_jax.chips.topology import compiled_for, described_devices, why_not
from ipt_jax.core.errors import UserError
from ipt_jax.data.mixture import load_mixture
from ipt_jax.models.lora import adapter_count
from ipt_jax.models.sharding import BATCH, batch_shards, make_mesh
from ipt_jax.training.config import TrainConfig, with_accumulation
from ipt_jax.training.startup import compiler_options
from ipt_jax.training.step import TrainSetup, make_setup

USABLE = 0.9  # of a device's memory: the rest goes to the runtime and to fragments

# The program is laid out and never run: its machine code need not be good, and operations are put
# in the order that needs least memory, as compilers for accelerators do. Other series of jaxlib may
# not know these names, and XLA aborts at an unknown flag: there the dry run takes longer.
_TRIED = ("0.11",)
_TUNED = ".".join(jaxlib_version.__version__.split(".")[:2]) in _TRIED
COMPILER_OPTIONS: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
}
# Machine code for fusions took 13 of 15 s for a 1.8B; the older emitters make it in 1 s.
QUICK_EMITTERS = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"


VIRTUAL = (
    "  there bfloat16 products are widened and blocks of attention scores kept, which the chip's "
    "own compiler does not; docs/results/chips.md has both side by side"
)


@dataclass(frozen=True)
class MemoryEstimate:
    """What a training run will need. Bytes are those of one device."""

    parameters: int
    """Of the whole model, without adapters."""
    trained: int
    """Of them or of the adapters, those that are trained."""
    mesh: dict[str, int]
    """Devices along each axis."""
    steps: int
    """Updates of the whole run."""
    rows_per_device: int
    """Rows of one accumulation piece on one device of the data and fsdp axes."""
    flops_per_token: float
    """Training FLOPs a token, attention counted for causality."""
    hours: float
    """Of the whole run at the asked MFU."""
    parameter_bytes: int
    """What is trained: float32 master parameters, or adapters."""
    frozen_bytes: int
    """The frozen base under adapters, else 0."""
    optimizer_bytes: int
    """Moments."""
    temporary_bytes: int
    """Gradients, activations and buffers, as the compiler laid them out."""
    batch_bytes: int
    """One batch's arrays."""
    attention: str
    """The backend that was compiled."""
    compiler: str
    """Whose figure `temporary_bytes` is."""
    findings: tuple[str, ...]
    """What the partitioner warned of."""

    @property
    def devices(self) -> int:
        """Of the whole mesh."""
        return int(np.prod(list(self.mesh.values())))

    @property
    def fixed_bytes(self) -> int:
        """What lies there between steps."""
        return self.parameter_bytes + self.frozen_bytes + self.optimizer_bytes

    @property
    def total_bytes(self) -> int:
        """All parts together."""
        return self.fixed_bytes + self.temporary_bytes + self.batch_bytes


def use_virtual_devices(count: int) -> None:
    """Make JAX see `count` CPU devices; must come before anything asks JAX for devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    # XLA takes this flag once, and reads it from a file where the variable names one.
    flags = os.environ.get("XLA_FLAGS", "").strip()
    in_file = bool(flags) and not flags.startswith("-")
    if _TUNED and not in_file and "--xla_backend_extra_options" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {QUICK_EMITTERS}".strip()


@dataclass(frozen=True)
class Ahead:
    """A config's step, compiled for devices that are not there."""

    config: TrainConfig
    """With the pieces that the mesh makes of a batch."""
    device: Device
    """The chip that was named."""
    mesh: Mesh
    """Of described or virtual devices."""
    setup: TrainSetup
    """The run."""
    compiled: jax.stages.Compiled
    """The step."""
    compiler: str
    """Whose program it is."""
    findings: tuple[str, ...]
    """What the partitioner warned of."""


def compile_ahead(config: TrainConfig) -> Ahead:
    """Lower and compile the configured step; no shard is read and no array is made.

    Raises:
      UserError: settings that do not fit together.
    """
    config.check()
    device = DEVICES[config.dry_run_device]
    absent = why_not(device)
    if absent is None:
        mesh = make_mesh(config.mesh, described_devices(device, config.dry_run_devices))
        version = jaxlib_version.__version__
        several = device.gpu is not None and mesh.size > 1 and config.xla_flags == "auto"
        options = compiler_options(version) if several else None
        compiler = f"XLA for {device.described_kind}, jaxlib {version}"
    else:
        config, mesh = _for_virtual(config, device), make_mesh(config.mesh)
        options = COMPILER_OPTIONS if _TUNED else None
        compiler = f"XLA for a virtual CPU device ({absent})"
    config = with_accumulation(config, mesh)
    setup = make_setup(config, mesh, len(load_mixture(config.data).tasks))
    arguments = (setup.abstract, _abstract_batch(config, mesh))
    with _captured_warnings() as findings:
        compiled = compiled_for(mesh, setup.step_function, *arguments, options=options)
    return Ahead(config, device, mesh, setup, compiled, compiler, tuple(findings))


def estimate_memory(config: TrainConfig) -> MemoryEstimate:
    """What the configured run will need, from its compiled step.

    Raises:
      UserError: settings that do not fit together, or more memory than the named device has.
    """
    ahead = compile_ahead(config)
    config, device, mesh, setup = ahead.config, ahead.device, ahead.mesh, ahead.setup
    memory = ahead.compiled.memory_analysis()
    assert memory is not None  # XLA's compilers always make one
    flops = setup.flops_per_token(config.data.row_tokens)[0]
    speed = device.peak_flops * config.dry_run_mfu * mesh.size
    decoder, lora = setup.decoder, config.adapter
    plan = MemoryEstimate(
        parameters=decoder.parameter_count(),
        trained=decoder.parameter_count() if lora is None else adapter_count(decoder, lora),
        mesh=dict(mesh.shape),
        steps=config.steps,
        rows_per_device=config.batch_rows // (config.pieces * batch_shards(mesh)),
        flops_per_token=flops,
        hours=config.steps * config.batch_tokens * flops / speed / 3600,
        parameter_bytes=_bytes_on_a_device(setup.abstract.params),
        frozen_bytes=_bytes_on_a_device(setup.abstract.frozen),
        optimizer_bytes=_bytes_on_a_device(setup.abstract.optimizer_state),
        # Results that do not take the place of an argument lie beside it.
        temporary_bytes=memory.temp_size_in_bytes
        + max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes),
        batch_bytes=_bytes_on_a_device(_abstract_batch(config, mesh)),
        attention=str(setup.attention),
        compiler=ahead.compiler,
        findings=ahead.findings,
    )
    if plan.total_bytes > USABLE * device.memory_bytes:
        raise UserError(
            f"this run needs {plan.total_bytes / 1e9:.1f} GB a device ({describe_memory(plan)}), "
            f"more than {USABLE:.0%} of the {device.memory_bytes / 1e9:.0f} GB of "
            f"dry_run_device={device.name}",
            key="dry_run_device",
            advice=_advice(plan, config),
        )
    return plan


def describe(plan: MemoryEstimate, config: TrainConfig) -> str:
    """The plan in lines for a person."""
    device = DEVICES[config.dry_run_device]
    model = f"model {config.model.preset}, {plan.parameters:,} parameters"
    if config.adapter is not None:
        model += f", {plan.trained:,} of adapters trained"
    axes = " × ".join(f"{name} {size}" for name, size in plan.mesh.items())
    steps = f"{plan.steps:,} steps of {config.batch_tokens:,} tokens, "
    steps += f"{plan.steps * config.batch_tokens:,} in all"
    if config.epochs is not None:
        steps += f" (train_tokens assumed; the run makes {config.epochs:g} epoch(s) of its data)"
    pieces = config.batch_rows // (plan.rows_per_device * plan.mesh["data"] * plan.mesh["fsdp"])
    share, digits = plan.total_bytes / device.memory_bytes, 1 if plan.hours >= 10 else 2
    lines = [
        f"{model}, {plan.flops_per_token / 1e9:.2f} GFLOPs a token",
        f"{plan.devices} devices {device.name}, mesh {axes}",
        f"batch {config.batch_tokens:,} tokens = {config.batch_rows} rows of "
        f"{config.data.row_tokens}: {pieces} piece(s) of "
        f"{plan.rows_per_device} row(s) a device",
        steps,
        f"memory a device {plan.total_bytes / 1e9:.2f} GB, {share:.0%} of "
        f"{device.memory_bytes / 1e9:.0f}: {describe_memory(plan)}",
        f"  gradients, activations and buffers by {plan.compiler}, attention {plan.attention}",
        *((VIRTUAL,) if "virtual" in plan.compiler else ()),
        f"{plan.hours:,.{digits}f} hours on {device.name} at an assumed MFU of "
        f"{config.dry_run_mfu:.0%} of {device.peak_flops / 1e12:.0f} TFLOP/s",
    ]
    return "\n".join([*lines, *(f"finding: {finding}" for finding in plan.findings)])


def describe_memory(plan: MemoryEstimate) -> str:
    """The parts of a device's memory in GB."""
    parts = {
        "parameters" if not plan.frozen_bytes else "adapters": plan.parameter_bytes,
        "frozen base": plan.frozen_bytes,
        "optimiser": plan.optimizer_bytes,
        "gradients, activations and buffers": plan.temporary_bytes,
        "batch": plan.batch_bytes,
    }
    if not plan.frozen_bytes:
        del parts["frozen base"]
    return ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())


def _advice(plan: MemoryEstimate, config: TrainConfig) -> str:
    """What to change, the cheapest first, and only what can still be changed."""
    ways = []
    if plan.rows_per_device > 1:
        ways.append(f"set rows_per_device (from 1; it is {plan.rows_per_device} now)")
    if config.model.decoder().remat != "full":
        ways.append("recompute more (model.overrides.remat: full)")
    if plan.mesh["data"] > 1:
        ways.append(
            f"share the parameters (mesh.data 1, mesh.fsdp {plan.mesh['data'] * plan.mesh['fsdp']})"
        )
    if config.adapter is None:
        ways.append("train adapters on a given model (--adapter.rank 16, init_from)")
    elif config.adapter.base_dtype == "float32":
        ways.append("keep the frozen base in bfloat16 (adapter.base_dtype)")
    ways.append("split rows or weights further (mesh.context, mesh.tensor)")
    ways.append("take more devices or larger ones (dry_run_devices, dry_run_device)")
    return "; ".join(ways)


def _for_virtual(config: TrainConfig, device: Device) -> TrainConfig:
    """What the chip would do, as far as a CPU's compiler can: its kernels do not compile there."""
    kind, names = config.model.decoder().remat_on(device.platform)
    changed = {**config.model.overrides, "remat": kind, "remat_save": names}
    model = dataclasses.replace(config.model, overrides=changed)
    return dataclasses.replace(config, model=model, attention_backend="reference")


def _abstract_batch(config: TrainConfig, mesh: Mesh) -> dict[str, Any]:
    sharding = NamedSharding(mesh, BATCH)
    shape = (config.batch_rows, config.data.row_tokens)
    integers = ("tokens", "targets", "segment_ids", "positions", "source_ids")
    batch = {n: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding) for n in integers}
    return batch | {"loss_weights": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)}


def _bytes_on_a_device(tree: Any) -> int:
    total = 0
    for leaf in jax.tree.leaves(tree):
        total += int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
    return total


@contextmanager
def _captured_warnings() -> Iterator[list[str]]:
    """Collect what XLA's C++ code writes to file descriptor 2; the partitioner warns there."""
    found: list[str] = []
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        failed = True
        try:
            yield found
            failed = False
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            text = file.read().decode(errors="replace")
            if failed:
                sys.stderr.write(text)
            # Without the log's prefix and what it says of XLA's plans; each warning once.
            warnings = (line for line in text.splitlines() if "rematerialization" in line)
            cut = (re.sub(r"^.*?\[SPMD\] | As the last resort.*$", "", line) for line in warnings)
            found += dict.fromkeys(cut)
