"""What a run says of itself: in words at its beginning, in figures at its end."""

from __future__ import annotations

from typing import Any

import jax

from ipt_jax.data.pipeline import OpenMixture
from ipt_jax.models.lora import adapter_count
from ipt_jax.training.config import TrainConfig
from ipt_jax.training.metrics import MetricsLog
from ipt_jax.training.step import TrainSetup


def describe(
    config: TrainConfig, setup: TrainSetup, mixture: OpenMixture, mesh_shape: Any, first: int
) -> str:
    """A run that begins at position `first`, in lines for a person."""
    decoder = setup.decoder
    shape = " × ".join(f"{name} {size}" for name, size in mesh_shape.items())
    stages = [
        (f"from step {step:,}: " if step else "")
        + ", ".join(f"{name} {rate:.1%}" for name, rate in rates.items())
        for step, rates in mixture.stages
    ]
    model = f"model {config.model.preset}, {decoder.parameter_count():,} parameters"
    if config.adapter is not None:
        trained = adapter_count(decoder, config.adapter)
        model += f", {trained:,} of adapters trained, base {config.adapter.base_dtype}"
    pieces = config.pieces
    rows = config.batch_rows / (pieces * mesh_shape["data"] * mesh_shape["fsdp"])
    return (
        f"{model}, {decoder.compute_dtype}\n"
        f"mesh {shape}, {jax.process_count()} process(es); "
        f"attention {setup.attention}\n"
        f"batch {config.batch_tokens:,} tokens = {config.batch_rows} rows × "
        f"{config.data.row_tokens} tokens, {pieces} piece(s) of {rows:g} rows a device\n"
        f"steps {first:,} → {config.steps:,}, {config.steps * config.batch_tokens:,} tokens in "
        f"all{_extensions(config)}\n"
        f"mixture by {mixture.mixture.by}: {'; '.join(stages)}; packing {config.data.packing}"
    )


def _extensions(config: TrainConfig) -> str:
    """A line for each extension."""
    lines, begin = "", config.base_steps
    for extension, steps in config.extension_steps:
        peak = extension.peak_learning_rate
        rate = "the rate before it" if peak is None else f"{peak:g}"
        if extension.schedule != "constant":
            rate += f" to {extension.final_fraction:g} of that"
        said = f"{extension.schedule} at {rate}"
        lines += f"\nextension, updates {begin:,} → {begin + steps:,}: {said}"
        begin += steps
    return lines


def summarise(
    config: TrainConfig,
    setup: TrainSetup,
    mixture: OpenMixture,
    log: MetricsLog,
    updates: int,
    damaged: dict[str, int],
) -> dict[str, Any]:
    """The content of summary.json."""
    return {
        "model": config.model.preset,
        "parameters": setup.decoder.parameter_count(),
        "tokens": log.tokens,
        "learnt_tokens": dict(log.learnt_tokens),
        "steps": config.steps,
        "updates": updates,
        "skipped": config.steps - updates,
        "seconds": round(log.seconds, 1),
        "final_loss": log.last.get("loss"),
        "asked_rates": mixture.asked_over(config.steps),
        "realised_rates": {n: count / log.tokens for n, count in log.source_tokens.items()},
        "source_tokens": dict(log.source_tokens),
        "damaged_records": damaged,
        **({} if log.crowded_lists is None else {"crowded_lists": log.crowded_lists}),
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
    }
