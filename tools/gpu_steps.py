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
from unittest import mock

import gpu_training
import jax

from ipt_jax.attention import cudnn_packed
from ipt_jax.attention.backends import Choice
from ipt_jax.chips.devices import device_of
from ipt_jax.models.config import PRESETS, SAVEABLE, DecoderConfig
from ipt_jax.models.sharding import MeshConfig, make_mesh
from ipt_jax.training import step as loss
from ipt_jax.training.optimizer import OptimizerConfig, make_schedule
from ipt_jax.training.step import TrainSetup

ALL_NAMES = tuple(SAVEABLE)
WITHOUT_GATE_UP = tuple(name for name in SAVEABLE if name != "gate_up")


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
    training = gpu_training.TRAININGS["tiny" if dry_run else name]
    mesh, optimizer = make_mesh(MeshConfig()), gpu_training.optimizer_of(training)
    schedule = make_schedule(OptimizerConfig(), gpu_training.STEPS)
    state, running, found = None, {}, {}
    for variant in VARIANTS["tiny" if dry_run else name]:
        about = {
            "model": name,
            "rows": f"{variant.rows} × {training.row_tokens} packed",
            "contestant": variant.label,
        }
        left = until - time.monotonic()
        if left < 20:
            emit("skipped", what=f"{name}: {variant.label}", why="no time left")
            continue
        decoder = variant.decoder(training.preset)
        batch = gpu_training.batch_of(dataclasses.replace(training, rows=variant.rows), True)
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
            contestant = gpu_training.Contestant(compiled, state)
            first = contestant.run(batch, 1)
            second = contestant.run(batch, 2)
        except Exception as error:  # one contestant less; the table says why
            first_line = (str(error).splitlines() or [""])[0]
            emit("failed", reason=f"{type(error).__name__}: {first_line[:300]}", **about)
            if state is not None and any(x.is_deleted() for x in jax.tree.leaves(state)):
                state = None
            continue
        state, contestant.state = contestant.state, None
        memory = compiled.memory_analysis()
        emit(
            "compiled",
            seconds=compiled_seconds,
            first_seconds=first,
            step_seconds=second,
            loss=float(contestant.last["loss"]),
            norm=float(contestant.last["gradient_norm"]),
            peak_bytes=(jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
            temp_bytes=getattr(memory, "temp_size_in_bytes", None),
            **about,
        )
        if trace is not None and not running:
            with jax.profiler.trace(str(trace)):
                contestant.state = state
                contestant.run(batch, 2)
                state, contestant.state = contestant.state, None
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
            alternating=True,
            **running[variant][2],
        )
