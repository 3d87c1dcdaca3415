"""`attention_backend: auto` made the name of a backend that was tried on this machine."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import jax

from ipt_jax.attention.backends import REFERENCE_IS_SLOW
from ipt_jax.attention.self_test import Tried, choose_by_test
from ipt_jax.chips.host import has_tpu, why_no_gpu
from ipt_jax.models.decoder import attention_spec
from ipt_jax.training.config import TrainConfig


def with_tested_attention(config: TrainConfig, devices: Path = Path("/dev")) -> TrainConfig:
    """The config with the backend that `auto` takes here, which is printed; a named one stays.

    Call before anything asks JAX for devices. On a CPU there is nothing to try; on several hosts
    of one TPU slice nothing is tried, for none of them can start alone: the table decides.
    """
    platforms = jax.config.jax_platforms
    gpu = why_no_gpu(os.environ, platforms, devices) is None
    alone = "," not in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if config.attention_backend != "auto" or not (gpu or (has_tpu(platforms, devices) and alone)):
        return config
    decoder, cache = config.model.decoder(), config.compilation_cache
    asked = Tried(
        attention_spec(decoder, segments=True),
        decoder.compute_dtype,
        decoder.head_width,
        decoder.heads // decoder.kv_heads,
    )
    target, choice = choose_by_test(
        asked, config.data.row_tokens, cache and cache.expanduser() / "attention"
    )
    print(f"attention on {target.kind}: {choice}")
    if choice.name == "reference":
        print(f"warning: {REFERENCE_IS_SLOW}")
    return dataclasses.replace(config, attention_backend=choice.name)
