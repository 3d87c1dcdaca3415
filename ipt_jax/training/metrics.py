"""A run's figures: metrics.jsonl, TensorBoard, Weights & Biases, and what a person sees.

TensorBoard's event files are written with protobuf alone: the libraries that write them import
torch or TensorFlow where those are installed, and the trainer loads neither.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import secrets
import socket
import struct
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ipt_jax.chips.devices import Device
from ipt_jax.core.bounds import Config, Positive
from ipt_jax.core.errors import UserError
from ipt_jax.core.files import append_lines, atomic_write, naming
from ipt_jax.training.hooks import Hook, drop_later_lines
from ipt_jax.training.watchdog import Phases

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
                f"metrics.wandb_project={self.wandb_project!r}: the package wandb is not installed",
                key="metrics.wandb_project",
                advice="run `pip install 'ipt-jax[wandb]'`, or leave wandb_project out",
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
            figures.append(f"{timedelta(seconds=round(left))} left")
        print(f"step {position:,} of {self._steps:,} · " + " · ".join(figures), flush=True)

    def close(self) -> None:
        """The bar stays as it is; no more of it."""
        if self._bar is not None:
            self._bar.stop()


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


class WandbWriter:
    """One Weights & Biases run for all starts; its id is kept in wandb_run_id.txt."""

    def __init__(self, folder: Path, project: str, mode: str):
        """Begin the run, or go on with it.

        Raises:
          UserError: not logged in, or the service cannot be reached.
        """
        import wandb  # an optional extra; MetricsConfig.check has seen that it is there
        from wandb.errors import Error

        path = folder / "wandb_run_id.txt"
        if not path.exists():
            atomic_write(path, secrets.token_hex(8) + "\n")
        try:
            self._run = wandb.init(
                project=project,
                id=path.read_text(encoding="utf-8").strip(),
                name=folder.resolve().name,
                config=_config(folder),
                dir=str(folder),
                resume="allow",
                mode="offline" if mode == "offline" else "online",
                # It would take the progress bar's output through its own pipes.
                settings=wandb.Settings(console="off"),
            )
        except Error as error:
            raise UserError(
                f"metrics.wandb_project={project!r}: Weights & Biases did not start "
                f"({str(error).rstrip('.')})",
                key="metrics.wandb_project",
                advice="run `wandb login`, or set metrics.wandb_mode=offline and sync later",
            ) from error

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Note the figures of step number `step`."""
        # A run resumed before its last line comes by the same steps again; they are there.
        if step >= self._run.step:
            self._run.log(dict(scalars), step=step)

    def close(self, failed: bool) -> None:
        """No writes after this; `failed`: an error ended the run."""
        self._run.finish(exit_code=int(failed))


def _config(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None


_SESSION_START = 1  # tensorflow.SessionLog.START


class EventFile:
    """One file of scalars in a folder that TensorBoard shows; on disk after every `write`."""

    def __init__(self, folder: Path, first_step: int):
        """Begin a file whose steps are `first_step` and later.

        TensorBoard hides what earlier files in the folder hold of these steps: they were written
        by a run that went on past the checkpoint it was resumed from.
        """
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time_ns()
        # Readers take the files in the order of their names.
        name = f"{now // 10**9:010d}.{socket.gethostname()}.{now}.{os.getpid()}"
        self._path = folder / f"events.out.tfevents.{name}"
        self._file = self._path.open("xb", buffering=0)
        self._append(file_version="brain.Event:2")
        self._append(step=first_step, session_log={"status": _SESSION_START})

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add one point to each tag's curve."""
        values = [{"tag": tag, "simple_value": value} for tag, value in scalars.items()]
        self._append(step=step, summary={"value": values})

    def close(self, failed: bool) -> None:
        """No writes after this."""
        self._file.close()

    def _append(self, **fields: Any) -> None:
        data = _event_class()(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        with naming(self._path):
            self._file.write(length + _checksum(length) + data + _checksum(data))


@functools.cache
def _event_class() -> type[message.Message]:
    """The fields of tensorflow.Event that scalars need, in a pool of our own."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="ipt_jax/event.proto", package="tensorflow", syntax="proto3"
    )

    def add(parent: str, name: str, number: int, kind: int, **more: Any) -> None:
        found = {entry.name: entry for entry in file.message_type}
        entry = found.get(parent) or file.message_type.add(name=parent)
        entry.field.add(name=name, number=number, type=kind, **{"label": 1, **more})

    add("Value", "tag", 1, kinds.TYPE_STRING)
    add("Value", "simple_value", 2, kinds.TYPE_FLOAT)
    add("Summary", "value", 1, kinds.TYPE_MESSAGE, label=3, type_name=".tensorflow.Value")
    add("SessionLog", "status", 1, kinds.TYPE_INT32)  # an enum there; the same on the wire
    add("Event", "wall_time", 1, kinds.TYPE_DOUBLE)
    add("Event", "step", 2, kinds.TYPE_INT64)
    add("Event", "file_version", 3, kinds.TYPE_STRING)
    add("Event", "summary", 5, kinds.TYPE_MESSAGE, type_name=".tensorflow.Summary")
    add("Event", "session_log", 7, kinds.TYPE_MESSAGE, type_name=".tensorflow.SessionLog")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Event"))


def _checksum(data: bytes) -> bytes:
    """The masked CRC-32C of a TFRecord frame."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _crc_table()[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)
