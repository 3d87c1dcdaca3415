"""`attention_backend: auto` made the name of a backend that was tried on this machine."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import jax
from jax._src import xla_bridge  # the only place that tells whether devices were asked for

from ipt_jax.attention.backends import REFERENCE_IS_SLOW
from ipt_jax.attention.self_test import SECONDS, Tried, choose_by_test
from ipt_jax.chips.host import has_tpu, why_no_gpu
from ipt_jax.models.decoder import attention_spec
from ipt_jax.training.config import TrainConfig
from ipt_jax.training.processes import from_first_process


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
