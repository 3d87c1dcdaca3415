"""A run's figures: metrics.jsonl, TensorBoard, Weights & Biases, and what a person sees."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ipt_jax.chips.devices import Device
from ipt_jax.core.bounds import Config, Positive
from ipt_jax.core.errors import UserError
from ipt_jax.core.files import append_lines
from ipt_jax.training.hooks import Hook, drop_later_lines
from ipt_jax.training.watchdog import Phases
from ipt_jax.training.writers import EventFile, WandbWriter

SAVED_METRICS = ("loss", "gradient_norm")  # means since the save before; what tells the best
# Phase -> the key of its share of the time.
_SHARES = {
    "data": "share_data",
    "checkpoint": "share_checkpoint",
    "compiling": "share_compile",
}


@dataclass(frozen=True)
class MetricsConfig(Config):
    """What is written down, and how often."""

    every_steps: Positive = 10
    """A line in metrics.jsonl, and on the screen, every so many steps."""
    tensorboard: bool = True
    """Write event files into tensorboard/ of the run folder."""
    wandb_project: str | None = None
    """Weights & Biases project to write to as well; null: none."""
    wandb_mode: Literal["online", "offline"] = "online"
    """online, or offline: kept in the run folder for `wandb sync`."""

    def check(self) -> None:
        """Refuse what cannot be written, before anything is allocated.

        Raises:
          UserError: naming the key, its value and what is allowed.
        """
        if self.wandb_project is not None and importlib.util.find_spec("wandb") is None:
            raise UserError(
                f"metrics.wandb_project={self.wandb_project!r}: the package wandb is not "
                "installed; run `pip install 'ipt-jax[wandb]'` or `pip install wandb`, or leave "
                "wandb_project out."
            )


class MetricsLog(Hook):
    """Adds up tokens and writes a line every so many steps; use as a context manager.

    Totals are Python integers: device integers would overflow after 2³¹ tokens.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sources: tuple[str, ...],
        steps: int,
        first_position: int,
        config: MetricsConfig,
        progress: Mapping[str, Any],
        phases: Phases,
        flops: tuple[float, float],
        devices: int,
        device: Device | None,
        write: bool,
    ):
        """Take up the figures of a run where its checkpoint left them.

        Lines past `first_position`, where this start goes on, are dropped from metrics.jsonl.

        Args:
          folder: The run folder.
          steps: Batches of the whole run.
          progress: What `progress` gave for the checkpoint; empty for a new run.
          flops: Training FLOPs a token, attention counted for causality, and in full.
          devices: Of the whole mesh.
          device: Their kind; None: not known, and no MFU is given.
          write: False on all processes but one: figures are counted and nothing is written.
        """
        self.source_tokens, self.learnt_tokens = (
            {name: progress.get(key, {}).get(name, 0) for name in sources}
            for key in ("source_tokens", "learnt_tokens")
        )
        # Lists of segments too long for cuDNN; None: another backend.
        self.crowded_lists: int | None = progress.get("crowded_lists")
        self.seconds: float = progress.get("seconds", 0.0)
        self.last: dict[str, Any] = {}
        self._folder, self._config, self._write = folder, config, write
        self._steps, self._first = steps, first_position
        self._phases, self._flops = phases, flops
        self._devices, self._device = devices, device
        self._path = folder / "metrics.jsonl"
        self._writing = False
        self._writers: list[EventFile | WandbWriter] = []
        self._screen: _Screen | None = None
        self._losses: list[float] = []
        self._norms: list[float] = []
        if write:
            # Lines past the checkpoint that training goes on from will come again.
            kept = drop_later_lines(self._path, first_position)
            self.last = kept[-1] if kept else {}
        self._start_clock()

    @property
    def tokens(self) -> int:
        """Tokens of all batches so far, padding left out and skipped batches included."""
        return sum(self.source_tokens.values())

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps so that the totals go on after a restart."""
        return {
            "source_tokens": dict(self.source_tokens),
            "learnt_tokens": dict(self.learnt_tokens),
            "seconds": self.seconds,
            **({} if self.crowded_lists is None else {"crowded_lists": self.crowded_lists}),
        }

    def after_step(self, position: int, metrics: Mapping[str, Any]) -> None:
        for name, count in zip(self.source_tokens, metrics["source_tokens"], strict=True):
            self.source_tokens[name] += int(count)
        if "crowded_lists" in metrics:
            self.crowded_lists = (self.crowded_lists or 0) + int(metrics["crowded_lists"])
        if not metrics["skipped"]:
            for name, count in zip(self.learnt_tokens, metrics["learnt_tokens"], strict=True):
                self.learnt_tokens[name] += int(count)
            self._losses.append(float(metrics["loss"]))
            self._norms.append(float(metrics["gradient_norm"]))
        now = time.perf_counter()
        self.seconds += now - self._seen
        self._seen = now
        due = position % self._config.every_steps == 0
        if due or position == self._steps or position == self._first + 1:
            self.last = self._line(position, metrics)
            self._note(self.last)
        elif self._screen is not None:
            self._screen.at(position)

    def mean_since_save(self) -> dict[str, float]:
        """Mean `loss` and `gradient_norm` of the batches since the last save.

        Skipped batches are left out; without any other batch the answer is empty.
        """
        if not self._losses:
            return {}
        sums = map(math.fsum, (self._losses, self._norms))
        return {n: s / len(self._losses) for n, s in zip(SAVED_METRICS, sums, strict=True)}

    def after_save(self, position: int) -> None:
        self._losses.clear()
        self._norms.clear()

    def __enter__(self) -> MetricsLog:
        # A finished run that is started again writes nothing.
        if self._write and self._first < self._steps:
            self._writing = True
            if self._config.tensorboard:
                self._writers.append(EventFile(self._folder / "tensorboard", self._first + 1))
            if self._config.wandb_project is not None:
                project, mode = self._config.wandb_project, self._config.wandb_mode
                self._writers.append(WandbWriter(self._folder, project, mode))
            self._screen = _Screen(self._steps, self._first)
        self._start_clock()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._screen is not None:
            self._screen.close()
        self._writing = False
        for writer in self._writers:
            writer.close(failed=kind is not None)

    def _start_clock(self) -> None:
        self._seen = self._line_time = time.perf_counter()
        self._line_tokens = self.tokens
        self._line_phases = self._phases.seconds

    def _line(self, position: int, host: Mapping[str, Any]) -> dict[str, Any]:
        """The figures of a step; rates and shares are those since the last line."""
        elapsed = self._seen - self._line_time
        rate = (self.tokens - self._line_tokens) / elapsed
        before, phases = self._line_phases, self._phases.seconds
        line = {
            "step": position,
            "tokens": self.tokens,
            "loss": _finite(host["loss"]),
            "learning_rate": _finite(host["learning_rate"]),
            "gradient_norm": _finite(host["gradient_norm"]),
            "skipped": int(host["skipped_total"]),
            "tokens_per_second": round(rate, 1),
            "tokens_per_second_per_device": round(rate / self._devices, 1),
        }
        if self._device is not None:
            peak = self._device.peak_flops * self._devices
            for name, flops in zip(("mfu_causal", "mfu_full"), self._flops, strict=True):
                line[name] = round(rate * flops / peak, 4)
        if self.crowded_lists is not None:
            line["crowded_lists"] = self.crowded_lists
        line["seconds"] = round(self.seconds, 3)
        for phase, key in _SHARES.items():
            spent = phases.get(phase, 0.0) - before.get(phase, 0.0)
            line[key] = round(spent / elapsed, 4)
        line["source_tokens"] = dict(self.source_tokens)
        line["learnt_tokens"] = dict(self.learnt_tokens)
        self._line_time, self._line_tokens, self._line_phases = self._seen, self.tokens, phases
        return line

    def _note(self, line: dict[str, Any]) -> None:
        if not self._writing:
            return
        append_lines(self._path, json.dumps(line, allow_nan=False) + "\n")
        for writer in self._writers:
            writer.write(line["step"], _scalars(line))
        if self._screen is not None:
            self._screen.show(line)


class _Screen:
    """A progress bar on a terminal, plain lines in a log file."""

    def __init__(self, steps: int, first: int):
        self._steps = steps
        self._began: tuple[int, float] | None = None
        self._bar: Progress | None = None
        console = Console()
        if not sys.stdout.isatty() or console.is_dumb_terminal:
            return
        self._bar = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("train", total=steps, completed=first, figures="…")
        self._bar.start()

    def at(self, position: int) -> None:
        """A step without a line."""
        if self._bar is not None:
            self._bar.update(self._task, completed=position)

    def show(self, line: Mapping[str, Any]) -> None:
        """A step with its figures."""
        position = line["step"]
        figures = [
            "loss not finite" if line["loss"] is None else f"loss {line['loss']:.3f}",
            f"{line['tokens_per_second']:,.0f} tokens/s",
        ]
        if "mfu_causal" in line:
            figures.append(f"MFU {line['mfu_causal']:.1%}")
        if line["skipped"]:
            figures.append(f"{line['skipped']} skipped")
        if self._bar is not None:
            self._bar.update(self._task, completed=position, figures=" · ".join(figures))
            return
        if self._began is None:  # the first line holds the compilation, which comes once
            self._began = position, time.perf_counter()
        else:
            begun, since = self._began
            left = (self._steps - position) * (time.perf_counter() - since) / (position - begun)
            figures.append(f"{_clock(left)} left")
        print(f"step {position:,} of {self._steps:,} · " + " · ".join(figures), flush=True)

    def close(self) -> None:
        """The bar stays as it is; no more of it."""
        if self._bar is not None:
            self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _finite(value: Any) -> float | None:
    """A figure as JSON can hold it: NaN and infinity become null."""
    number = float(value)
    return number if math.isfinite(number) else None


def _scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """A line as named numbers: each source's tokens and share have names of their own."""
    scalars = {
        key: float(value)
        for key, value in line.items()
        if key not in ("step", "source_tokens", "learnt_tokens") and value is not None
    }
    for name, tokens in line["source_tokens"].items():
        scalars[f"source_tokens/{name}"] = float(tokens)
        scalars[f"source_share/{name}"] = tokens / max(line["tokens"], 1)
        scalars[f"learnt_tokens/{name}"] = float(line["learnt_tokens"][name])
    return scalars
