"""What a process sets before JAX starts its devices: XLA's flags, memory, caches, attention.

XLA aborts the process at a flag that it does not know, and knows others in each series: a test
tries the table's flags on the installed one. Sources: the flags that MaxText and NVIDIA's
JAX-Toolbox ("Tips for High-Performance LLMs with JAX and XLA") train with, less those that
jaxlib 0.10 and 0.11 abort at or already set.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
from jax._src import xla_bridge  # the only place that tells whether devices were asked for
from jax.experimental.compilation_cache import compilation_cache
from jaxlib import version as jaxlib_version

from ipt_jax.attention.backends import REFERENCE_IS_SLOW
from ipt_jax.attention.self_test import SECONDS, Tried, choose_by_test
from ipt_jax.chips.devices import gpu_count, has_tpu, why_no_gpu
from ipt_jax.models.decoder import attention_spec
from ipt_jax.training.config import TrainConfig
from ipt_jax.training.processes import from_first_process

# Flag -> (value, why). All of them are about several devices: on one H200 a step with them is no
# faster (docs/results/gpu.md), and double buffering moves the scan's stored values once more.
_FLAGS_0_10: dict[str, tuple[str, str]] = {
    "xla_gpu_enable_latency_hiding_scheduler": (
        "true",
        "moves collectives away from what waits for them, so that they run beside computation",
    ),
    "xla_gpu_all_gather_combine_threshold_bytes": (
        "1073741824",
        "gathers a whole layer's weights at once: 436 MB of bf16 in an 8B model",
    ),
    "xla_gpu_all_reduce_combine_threshold_bytes": (
        "1073741824",
        "reduces many small gradients (norms, biases) in one collective",
    ),
    "xla_gpu_reduce_scatter_combine_threshold_bytes": (
        "134217728",
        "smaller, so that the first gradients leave while the layer is still going backwards",
    ),
    "xla_gpu_enable_all_gather_combine_by_dim": (
        "false",
        "combines all of a layer's gathers, not only those along the same axis",
    ),
    "xla_gpu_enable_reduce_scatter_combine_by_dim": ("false", "the same for its gradients"),
    "xla_gpu_enable_pipelined_all_gather": (
        "true",
        "in the scan over layers, fetches the next layer's weights during this one",
    ),
    "xla_gpu_enable_pipelined_reduce_scatter": (
        "true",
        "sends a layer's gradients during the layer before it",
    ),
    "xla_gpu_enable_pipelined_all_reduce": ("true", "the same where gradients are not sharded"),
    "xla_gpu_enable_while_loop_double_buffering": (
        "true",
        "two copies of the scan's body take turns, so that pipelined weights need no copy",
    ),
    "xla_gpu_enable_command_buffer": (
        "-COLLECTIVES",
        "CUDA graphs stay on, but none with collectives in it: those have hung and were slower",
    ),
}
FLAGS: dict[str, dict[str, tuple[str, str]]] = {"0.10": _FLAGS_0_10, "0.11": _FLAGS_0_10}
# Flags that are no options of one compilation under their name: 0.11 reads three of them as modes,
# and how kernels are launched cannot be told to one program.
_NO_OPTIONS = ("xla_gpu_enable_command_buffer",)
_MODES_0_11 = {
    f"xla_gpu_enable_pipelined_{kind}": f"xla_gpu_pipeline_{kind}"
    for kind in ("all_gather", "reduce_scatter", "all_reduce")
}

# Variable -> (value, why, variables that say the same).
_VARIABLES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "CUDA_DEVICE_MAX_CONNECTIONS": (
        "1",
        "kernels start in the order of their launch, so that collectives are not held back "
        "(Ampere and Hopper; on Blackwell set it to 8 yourself)",
        (),
    ),
    "XLA_CLIENT_MEM_FRACTION": (
        "0.9",
        "JAX takes 75% of a GPU otherwise; the rest is for NCCL, cuDNN and the driver",
        ("XLA_PYTHON_CLIENT_MEM_FRACTION",),
    ),
}
# With one GPU it would only make copies to the host wait for kernels launched after them.
_FOR_SEVERAL = ("CUDA_DEVICE_MAX_CONNECTIONS",)


def gpu_flags(version: str) -> tuple[str, ...]:
    """The flags for a jaxlib, as in `--name=value`; none for a series that was not tried."""
    series = ".".join(version.split(".")[:2])
    return tuple(f"--{name}={value}" for name, (value, _) in FLAGS.get(series, {}).items())


def compiler_options(version: str) -> dict[str, bool | int | str]:
    """The same flags as options of one compilation, for devices that are described only."""
    modes = _MODES_0_11 if version.startswith("0.11") else {}
    found: dict[str, bool | int | str] = {}
    for flag in gpu_flags(version):
        name, value = flag.removeprefix("--").split("=", 1)
        if name in modes:
            found[modes[name]] = "COLLECTIVE_PIPELINING_MODE_ON"
        elif name not in _NO_OPTIONS:
            truth = {"true": True, "false": False}.get(value)
            found[name] = int(value) if truth is None else truth
    return found


def apply_gpu_flags(
    mode: str = "auto", several_processes: bool = False, *, devices: Path = Path("/dev")
) -> str:
    """Put the flags for the installed jaxlib into this process's environment if it uses GPUs.

    Flags and variables that are set already stay as they are. Call before anything asks JAX for
    devices.

    Args:
      mode: auto, or none: nothing is changed.
      several_processes: whether other processes train the same model.
      devices: Where the driver's device files are looked for.

    Returns:
      What was done, to be printed.

    Raises:
      RuntimeError: JAX has its devices already and would not see the flags.
    """
    if mode == "none":
        return "XLA flags: none added (xla_flags=none)"
    if absent := why_no_gpu(os.environ, jax.config.jax_platforms, devices):
        return f"XLA flags: none added ({absent})"
    if xla_bridge.backends_are_initialized():
        raise RuntimeError("apply_gpu_flags: JAX has its devices already")
    several = several_processes or gpu_count(os.environ, devices) != 1
    added, text = _additions(os.environ, jaxlib_version.__version__, several)
    os.environ.update(added)
    return text


def _additions(
    environment: Mapping[str, str], version: str, several: bool = True
) -> tuple[dict[str, str], str]:
    """The variables to set, and the line that says so."""
    own = environment.get("XLA_FLAGS", "")
    in_file = bool(own) and not own.lstrip().startswith("-")
    named = set() if in_file else {_name(flag) for flag in own.split()}
    flags = [flag for flag in gpu_flags(version) if _name(flag) not in named]
    added = {
        name: value
        for name, (value, _, aliases) in _VARIABLES.items()
        if not any(alias in environment for alias in (name, *aliases))
        and (several or name not in _FOR_SEVERAL)
    }
    variables = " ".join(f"{name}={value}" for name, value in added.items())
    if not several:
        text = "XLA flags: none added (they are for several GPUs, and this is one)"
    elif in_file:
        text = f"XLA flags: none added (XLA_FLAGS names the file {own})"
    elif flags:
        added["XLA_FLAGS"] = " ".join([own, *flags]).strip()
        text = f"XLA flags for jaxlib {version}: {' '.join(flags)}"
    elif gpu_flags(version):
        text = "XLA flags: none added (yours name them all)"
    else:
        text = (
            f"XLA flags: none added (jaxlib {version} is none of the series that were tried: "
            f"{', '.join(FLAGS)})"
        )
    kept = sorted(named & {_name(flag) for flag in gpu_flags(version)})
    if kept and several:
        text += f"; kept as you set them: {', '.join(kept)}"
    return added, text + (f"; {variables}" if variables else "")


def _name(flag: str) -> str:
    return flag.lstrip("-").split("=", 1)[0]


def enable_compilation_cache(folder: Path | None) -> None:
    """Keep compiled programs in `folder` and look for them there; call before the first is made.

    Every program is kept, however small: a start makes a few large ones and many small ones, and
    waits for all. An entry serves the same program, jaxlib, devices and XLA flags only. Entries
    are code that will be run: the folder is made readable to its owner alone, and should be on
    nobody else's disk. An entry that was cut short is warned of, not used, and not replaced: delete
    the folder then. With None nothing changes (JAX_COMPILATION_CACHE_DIR still has its effect).
    """
    if folder is None:
        return
    folder = folder.expanduser()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()  # one that was opened for another folder would go on serving


# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def configure_malloc(devices: Path = Path("/dev")) -> bool:
    """Let this process keep large blocks that it frees, for the next step asks for the same ones.

    glibc maps each large block anew, and the kernel then zeroes it page by page: in a train step
    on a CPU that was 150,000 page faults and a fifth of the time. The process's memory stays at
    its peak. Nothing is changed, and the answer is False, where an accelerator computes (its device
    files lie in `devices`) or the C library has no such settings. Call before JAX starts its
    threads.
    """
    accelerators = ("nvidia*", "accel*", "kfd")
    if not sys.platform.startswith("linux") or any(map(any, map(devices.glob, accelerators))):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1))
    return all(mallopt(ctypes.c_int(key), ctypes.c_int(value)) == 1 for key, value in settings)


def with_tested_attention(config: TrainConfig, devices: Path = Path("/dev")) -> TrainConfig:
    """The config with the backend that `auto` takes here, which is printed; a named one stays.

    Process 0 tries for all. Nothing is tried, and the table decides when the step is built: on a
    CPU; in float32, where there is no choice; on a TPU of several processes, none of which starts
    alone, or with rows split over devices; and where this process has started JAX already.
    """
    platforms, decoder = jax.config.jax_platforms, config.model.decoder()
    on_gpu = why_no_gpu(os.environ, platforms, devices) is None
    on_tpu = (
        has_tpu(platforms, devices)
        and config.processes.coordinator is None
        and config.mesh.context == 1
    )
    if (
        config.attention_backend != "auto"
        or decoder.compute_dtype == "float32"
        or not (on_gpu or on_tpu)
        or xla_bridge.backends_are_initialized()
    ):
        return config
    cache = config.compilation_cache and config.compilation_cache.expanduser() / "attention"
    asked = Tried(
        attention_spec(decoder, segments=True),
        decoder.compute_dtype,
        decoder.head_width,
        decoder.heads // decoder.kv_heads,
    )

    def choose() -> str:
        target, choice = choose_by_test(asked, config.data.row_tokens, cache)
        print(f"attention on {target.kind}: {choice}", flush=True)
        if choice.name == "reference":
            print(f"warning: {REFERENCE_IS_SLOW}", flush=True)
        return choice.name

    name = from_first_process("choice of attention", choose, 5 * SECONDS)
    return dataclasses.replace(config, attention_backend=name)
