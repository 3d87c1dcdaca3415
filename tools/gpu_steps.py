"""The train step in its variants, on one GPU; run by tools/bench_gpu.py.

Attention backend, rematerialisation, rows and dropout vary; every variant trains the
same state on packed rows, and they take turns.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from gpu_attention import segment_ids  # beside this file

from ipt_jax.attention import cudnn_packed
from ipt_jax.attention.backends import Choice
from ipt_jax.chips.devices import device_of
from ipt_jax.models.config import PRESETS, SAVEABLE, DecoderConfig
from ipt_jax.models.sharding import MeshConfig, make_mesh
from ipt_jax.training import step as loss
from ipt_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from ipt_jax.training.step import TrainSetup

STEPS = 1000  # of the schedule; few of them are run
ALL_NAMES = tuple(SAVEABLE)
WITHOUT_GATE_UP = tuple(name for name in SAVEABLE if name != "gate_up")


@dataclass(frozen=True)
class Training:
    """One model on one GPU."""

    preset: str
    """A name from ipt_jax.models.config.PRESETS."""
    row_tokens: int
    """Tokens a row."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Type of AdamW's moments: with float32 ones 8B does not fit in 141 GB."""


TRAININGS = {
    "ipt_500m": Training("ipt_500m", 2048),
    "ipt_1_3b": Training("ipt_1_3b", 2048),
    "llama3_8b": Training("llama3_8b", 4096, "bfloat16"),
    "tiny": Training("tiny", 64),
}


@dataclass
class Contestant:
    """A compiled step and its state."""

    step: Callable[[Any, Any], tuple[Any, Any]]
    state: Any
    last: Any = None

    def run(self, batch: Any, steps: int) -> float:
        """Seconds a step."""
        begin = time.perf_counter()
        for _ in range(steps):
            self.state, self.last = self.step(self.state, batch)
        jax.block_until_ready(self.last)
        return (time.perf_counter() - begin) / steps


def batch_of(row_tokens: int, rows: int, vocabulary: int) -> dict[str, jax.Array]:
    """A packed batch as the pipeline makes it, of random tokens."""
    shape = (rows, row_tokens)
    ids = segment_ids(*shape, 512 if row_tokens > 512 else 16)
    position = np.arange(shape[1], dtype=np.int32)[None]
    begins = np.pad(ids[:, 1:] != ids[:, :-1], ((0, 0), (1, 0)))
    start = np.maximum.accumulate(np.where(begins, position, 0), axis=1)
    tokens = np.random.default_rng(0).integers(0, vocabulary, shape)
    arrays = {
        "tokens": tokens.astype(np.int32),
        "targets": np.roll(tokens, -1, 1).astype(np.int32),
        "segment_ids": ids,
        "positions": (position - start).astype(np.int32),
        "source_ids": np.zeros(shape, np.int32),
        "loss_weights": np.ones(shape, np.float32),
    }
    return {name: jnp.asarray(x) for name, x in arrays.items()}


@dataclass(frozen=True)
class Variant:
    """One way to compile a model's step."""

    backend: str = "cudnn_packed"
    """Of attention."""
    save: tuple[str, ...] | None = ALL_NAMES
    """What a block keeps; None: everything (no rematerialisation); empty: nothing."""
    rows: int = 16
    """Rows a step."""
    chunk_tokens: int = 1024
    """Tokens whose logits exist at a time."""
    slots: int = 8
    """Segments a row that cuDNN's list has room for, on average."""
    dropout: float = 0.0
    """As in the papers 0.1."""

    def decoder(self, preset: str) -> DecoderConfig:
        """The model."""
        kept = {None: "none", (): "full"}.get(self.save, "names")
        saved = self.save if kept == "names" else ()
        return dataclasses.replace(
            PRESETS[preset], remat=kept, remat_save=saved or (), dropout=self.dropout
        )

    @property
    def label(self) -> str:
        """A line of the table."""
        kept = {None: "none", (): "full", ALL_NAMES: "names"}.get(self.save)
        kept = kept or " + ".join(self.save or ())
        extra = [f"chunks of {self.chunk_tokens}"] if self.chunk_tokens != 1024 else []
        extra += [f"dropout {self.dropout}"] if self.dropout else []
        extra += [f"{self.slots} slots a row"] if self.backend == "cudnn_packed" else []
        return ", ".join([self.backend, f"remat {kept}", *extra])


VARIANTS: dict[str, tuple[Variant, ...]] = {
    "ipt_500m": (
        Variant("pallas_hopper", rows=32),
        Variant(rows=32),
        Variant("pallas_hopper", rows=32, dropout=0.1),
        Variant("pallas", rows=32),
    ),
    "ipt_1_3b": (Variant("pallas_hopper"), Variant()),
    "llama3_8b": (
        Variant("pallas_hopper", WITHOUT_GATE_UP, 4),
        Variant(save=WITHOUT_GATE_UP, rows=4, slots=16),
    ),
    "tiny": (Variant("reference", None, 2), Variant("reference", ALL_NAMES, 2)),
}


def measure(
    name: str,
    emit: Callable[..., None],
    rounds: int,
    seconds: float,
    dry_run: bool,
    trace: Path | None,
) -> None:
    """Tokens a second and MFU of each variant; the first rounds come before the last variants."""
    until = time.monotonic() + seconds
    training = TRAININGS["tiny" if dry_run else name]
    mesh = make_mesh(MeshConfig())
    optimizer = make_optimizer(OptimizerConfig(moments_dtype=training.moments), STEPS)
    schedule = make_schedule(OptimizerConfig(), STEPS)
    state, running, found = None, {}, {}
    for variant in VARIANTS["tiny" if dry_run else name]:
        about: dict[str, Any] = {
            "model": name,
            "rows": f"{variant.rows} × {training.row_tokens} packed",
            "contestant": variant.label,
        }
        left = until - time.monotonic()
        if left < 20:
            emit("skipped", what=f"{name}: {variant.label}", why="no time left")
            continue
        decoder = variant.decoder(training.preset)
        batch = batch_of(training.row_tokens, variant.rows, decoder.vocabulary_size)
        attention = Choice(variant.backend)
        setup = TrainSetup(decoder, mesh, optimizer, schedule, 1, attention=attention)
        begin = time.perf_counter()
        try:
            with (
                mock.patch.object(loss, "CHUNK_TOKENS", variant.chunk_tokens),
                mock.patch.object(cudnn_packed, "SLOTS_PER_ROW", variant.slots),
            ):
                lowered = setup.step_function.lower(setup.abstract, batch)
            compiled = lowered.compile()
            compiled_seconds = time.perf_counter() - begin
            if state is None:
                state = setup.init_state(0)
            contestant = Contestant(compiled, state)
            first = contestant.run(batch, 1)
            second = contestant.run(batch, 2)
        except Exception as error:  # one contestant less; the table says why
            first_line = (str(error).splitlines() or [""])[0]
            emit("failed", reason=f"{type(error).__name__}: {first_line[:300]}", **about)
            if state is not None and any(x.is_deleted() for x in jax.tree.leaves(state)):
                state = None
            continue
        state, contestant.state = contestant.state, None
        stats = jax.local_devices()[0].memory_stats() or {}
        about["peak_bytes"] = stats.get("peak_bytes_in_use")
        about["temp_bytes"] = getattr(compiled.memory_analysis(), "temp_size_in_bytes", None)
        emit(
            "compiled",
            seconds=compiled_seconds,
            first_seconds=first,
            step_seconds=second,
            loss=float(contestant.last["loss"]),
            norm=float(contestant.last["gradient_norm"]),
            **about,
        )
        if trace is not None and not running:
            with jax.profiler.trace(str(trace)):
                contestant.state = state
                contestant.run(batch, 2)
                state, contestant.state = contestant.state, None
            emit("trace", folder=str(trace), model=name)
        running[variant] = (contestant, batch, about)
    for number in range(rounds):
        for variant, (contestant, batch, _) in list(running.items())[:: 1 if number % 2 else -1]:
            if time.monotonic() > until:
                break
            contestant.state = state
            found.setdefault(variant, []).append(contestant.run(batch, 3))
            state, contestant.state = contestant.state, None
    for variant, times in found.items():
        tokens = variant.rows * training.row_tokens
        rate = tokens / statistics.median(times)
        device = device_of(jax.local_devices()[0])
        decoder = variant.decoder(training.preset)
        causal, full = (
            None
            if device is None
            else rate
            * decoder.flops_per_token(training.row_tokens, causal=causal)
            / device.peak_flops
            for causal in (True, False)
        )
        emit(
            "training",
            tokens_per_second=rate,
            spread=[tokens / t for t in (max(times), min(times))],
            mfu_causal=causal,
            mfu_full=full,
            rounds=len(times),
            **running[variant][2],
        )
