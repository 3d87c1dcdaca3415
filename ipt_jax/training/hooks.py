"""What a run does beside its steps: hooks that the loop calls, and those that every run has."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jax

from ipt_jax.core.bounds import Config, Positive
from ipt_jax.core.errors import RunStopped
from ipt_jax.core.files import append_lines, atomic_write
from ipt_jax.core.json_lines import parse_json
from ipt_jax.data.pipeline import MixtureRows
from ipt_jax.data.sources import DamageLog
from ipt_jax.training.state import TrainState

EXIT_CODE = 3
NOTHING_LEARNT = "no token to learn"


class Hook:
    """What the loop calls; each method does nothing until it is overridden.

    A position is the number of a batch, from 1. As a context manager a hook begins before the
    first step and ends after the last. What a method raises ends the run, its state saved. Where
    several processes train, all of them have the same hooks.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def before_step(self, position: int) -> None:
        """Its batch has come, and its step is launched next."""

    def after_launch(self, position: int, state: TrainState) -> None:
        """Its step was launched; who reads of `state` what comes of it waits for the device.

        The next step takes the buffers of `state`: they cannot be read later.
        """

    def after_step(self, position: int, metrics: Mapping[str, Any]) -> None:
        """Its metrics have come as host values, when the step after it was launched or at a save.

        See `ipt_jax.training.step.make_train_step` for what they are.
        """

    def after_save(self, position: int) -> None:
        """A checkpoint of this position was begun."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; one that a kill cut short is left out, no file has none."""
    return [found for _, found in _whole(path)]


def drop_later_lines(path: Path, position: int) -> list[dict[str, Any]]:
    """Keep the lines whose `step` is at most `position`, and give them: later ones come again."""
    kept = [(line, found) for line, found in _whole(path) if found["step"] <= position]
    if path.exists():
        atomic_write(path, "".join(f"{line}\n" for line, _ in kept))
    return [found for _, found in kept]


def _whole(path: Path) -> list[tuple[str, dict[str, Any]]]:
    if not path.exists():
        return []
    # Not splitlines(): an id may hold other characters that it takes for the end of a line.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    found, broken = [], 0
    for line in lines:
        try:
            values = parse_json(line)
            found.append((line, {**values, "step": int(values["step"])}))
        except (ValueError, TypeError, KeyError):
            broken += 1  # of a power cut: the file grew and its bytes were never written
    if broken:
        print(f"{path}: {broken} line(s) are damaged and left out.", flush=True)
    return found


@dataclass(frozen=True)
class ProfileConfig(Config):
    """Which steps are traced."""

    start: Positive | None = None
    """First step of the trace, from 1; take one past the first of a start, which compiles. Null:
    no trace."""
    steps: Positive = 5
    """How many steps are traced."""


class Profiler(Hook):
    """Writes `profile/` in the run folder, for TensorBoard's profile page or Perfetto.

    Only the first process traces: its own devices and host. A trace that is still on when the run
    ends is written then.
    """

    def __init__(self, folder: Path, config: ProfileConfig):
        self._folder, self._on = folder / "profile", False
        self._span = range(0)
        if config.start is not None and jax.process_index() == 0:
            self._span = range(config.start, config.start + config.steps)

    def before_step(self, position: int) -> None:
        if position not in self._span:
            return
        if not self._on:
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder))
            self._on = True
        self._step = jax.profiler.StepTraceAnnotation("train", step_num=position)
        self._step.__enter__()

    def after_launch(self, position: int, state: TrainState) -> None:
        if position not in self._span:
            return
        self._step.__exit__(None, None, None)
        if position == self._span[-1]:
            # So that the trace holds its last step whole; no other step waits.
            jax.block_until_ready(state)
            self._stop()

    def __exit__(self, *_: object) -> None:
        if self._on:
            self._stop()

    def _stop(self) -> None:
        self._on = False
        jax.profiler.stop_trace()
        print(f"profiler trace of {self._span[0]} to {self._span[-1]}: {self._folder}", flush=True)


class DamageFile(Hook):
    """The damaged records that a run left out: damaged/N.jsonl in its folder, N the process.

    Each process reads rows of its own and meets their damage alone. So each writes a file of its
    own, at once and without waiting for the others, and the counts are taken from all files when
    every process has come to the end. A record has one line, however often the run starts.
    """

    def __init__(
        self, folder: Path, log: DamageLog, *, first_position: int, process: int, processes: int
    ):
        """`folder` is the run's; lines past `first_position` are dropped: they will come again.

        The first process also sees to the files of processes that the run no longer has.
        """
        self._folder, self._log, self._noted = folder / "damaged", log, 0
        self._path = self._folder / f"{process}.jsonl"
        if process == 0:
            for path in _files(self._folder):
                if int(path.stem) >= processes:
                    drop_later_lines(path, first_position)
        lines = drop_later_lines(self._path, first_position)
        self._known = {(line["task"], line["record"]) for line in lines}
        if process == 0:  # what the length indexes know, every process knows
            self.note(0, len(log))
        self._noted = len(log)

    def before_step(self, position: int) -> None:
        self.note(position, self._log.shown)

    def note(self, position: int, known: int) -> None:
        """Write down what has come to the log since, of its first `known` records.

        `position` is the batch that they came with, from 1; later ones may have been read already.
        """
        if known <= self._noted:
            return
        found = list(self._log.records.items())[self._noted : known]
        self._noted = known
        lines = []
        for (task, record), what in found:
            if (task, record) not in self._known:
                self._known.add((task, record))
                line = {"step": position, "task": task, "record": record, "what": what}
                lines.append(json.dumps(line) + "\n")
        if lines:
            self._folder.mkdir(exist_ok=True)
            append_lines(self._path, "".join(lines))

    def counts(self, tasks: Sequence[str]) -> dict[str, int]:
        """Records of each task that any process left out; call it when all have noted theirs."""
        found: set[tuple[str, int]] = set()
        for path in _files(self._folder):
            found |= {(line["task"], line["record"]) for line in read_lines(path)}
        return {task: sum(name == task for name, _ in found) for task in tasks}


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.jsonl")) if path.stem.isdecimal()]


class SkipLog(Hook):
    """What the guard skipped, with its records: skipped.jsonl in the run folder.

    Also says when there were too many in a row.
    """

    def __init__(
        self,
        folder: Path,
        rows: Callable[[], MixtureRows],
        *,
        rows_per_batch: int,
        stop_after: int,
        first_position: int,
        write: bool,
    ):
        """`rows` is called at the first skip: the whole run's rows.

        Lines past `first_position` are dropped: those batches will come again.
        """
        self._path, self._rows, self._write = folder / "skipped.jsonl", rows, write
        self._rows_per_batch, self._stop_after = rows_per_batch, stop_after
        self.too_many = False
        self._in_a_row: list[str] = []
        if write:
            drop_later_lines(self._path, first_position)

    def after_step(self, position: int, metrics: Mapping[str, Any]) -> None:
        if not metrics["skipped"]:
            self._in_a_row.clear()
            return
        self.too_many |= int(metrics["skipped_in_a_row"]) >= self._stop_after
        figures = {key: float(metrics[key]) for key in ("loss", "gradient_norm")}
        if not metrics["learnt_tokens"].any():
            reason = NOTHING_LEARNT
        elif all(map(math.isfinite, figures.values())):
            reason = "loss spike"
        else:
            reason = "loss or gradient not finite"
        self._in_a_row.append(reason)
        if not self._write:
            return
        start = (position - 1) * self._rows_per_batch
        line = {
            "step": position,
            "reason": reason,
            # JSON has no NaN: such a figure is written as text.
            **{key: x if math.isfinite(x) else str(x) for key, x in figures.items()},
            "records": self._rows().records(start, start + self._rows_per_batch),
        }
        append_lines(self._path, json.dumps(line, ensure_ascii=False) + "\n")

    def stop(self, position: int, not_finite: str) -> RunStopped:
        """The error that ends the run after too many skipped batches in a row.

        `not_finite` names the weights that hold NaN or infinity.
        """
        said = (
            f"stopped after step {position}, saved: the guard skipped {self._stop_after} batches "
            "in a row or more (guard.stop_after)."
        )
        if not_finite:
            said += (
                f" The batches are not at fault: weights hold NaN or infinity ({not_finite}), "
                "and so every loss does. Go back with --resume POSITION to a checkpoint from "
                "before, and lower optimizer.peak_learning_rate in a new run if it comes again."
            )
        elif set(self._in_a_row) == {NOTHING_LEARNT}:
            said += (
                " All their tokens are masked (loss weight 0), so there was nothing to learn. "
                f"{self._path} names their records; see that they have responses where a task "
                "says `loss: responses`. The same command goes on behind them."
            )
        else:
            said += (
                f" {self._path} names their records. If they are sound, lower "
                "optimizer.peak_learning_rate in a new run, or set guard.spike_deviations higher "
                "(0: only what is not finite is skipped) and run the same command again; it goes "
                "on behind them."
            )
        return RunStopped(said, EXIT_CODE)
