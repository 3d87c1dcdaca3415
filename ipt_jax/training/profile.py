"""A profiler trace of a few steps, on request."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from ipt_jax.core.bounds import Config, Positive


@dataclass(frozen=True)
class ProfileConfig(Config):
    """Which steps are traced."""

    start: Positive | None = None
    """First step of the trace, from 1; take one past the first of a start, which compiles. Null:
    no trace."""
    steps: Positive = 5
    """How many steps are traced."""


class Profiler:
    """Writes `profile/` in the run folder, for TensorBoard's profile page or Perfetto.

    Only the first process traces: its own devices and host. Use as a context manager: a trace
    that is still on when the run ends is written then.
    """

    def __init__(self, folder: Path, config: ProfileConfig):
        self._folder, self._on = folder / "profile", False
        self._span = range(0)
        if config.start is not None and jax.process_index() == 0:
            self._span = range(config.start, config.start + config.steps)

    def step(self, position: int, pending: Any = None) -> AbstractContextManager:
        """Start or stop the trace where `position`, from 1, asks for it; dispatch inside.

        `pending` are results of the step before: when the trace stops they are waited for, so
        that it holds its last step whole. No other step waits.
        """
        if position in self._span and not self._on:
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder))
            self._on = True
        elif position not in self._span and self._on:
            jax.block_until_ready(pending)
            self._stop()
        if not self._on:
            return nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=position)

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_: object) -> None:
        if self._on:
            self._stop()

    def _stop(self) -> None:
        self._on = False
        jax.profiler.stop_trace()
        print(f"profiler trace of {self._span[0]} to {self._span[-1]}: {self._folder}", flush=True)
