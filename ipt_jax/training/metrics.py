"""Where a run's figures go: metrics.jsonl, the progress bar, summary.json."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class MetricsLog:
    """Adds up tokens and writes a line every so many steps; use as a context manager.

    Totals are Python integers: device integers would overflow after 2³¹ tokens.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sources: tuple[str, ...],
        steps: int,
        first_step: int,
        every_steps: int,
        progress: Mapping[str, Any],
    ):
        self.source_tokens = {
            name: progress.get("source_tokens", {}).get(name, 0) for name in sources
        }
        self.seconds: float = progress.get("seconds", 0.0)
        self.last: dict[str, Any] = {}
        self._every, self._steps, self._first = every_steps, steps, first_step
        self._path = folder / "metrics.jsonl"
        self._drop_after(first_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._since, self._since_tokens = time.perf_counter(), self.tokens
        self._bar = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]} · {task.fields[rate]} tokens/s"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task(
            "train", total=steps, completed=first_step, loss="…", rate="…"
        )

    @property
    def tokens(self) -> int:
        """Tokens trained on so far, padding left out."""
        return sum(self.source_tokens.values())

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps so that the totals go on after a restart."""
        return {"source_tokens": dict(self.source_tokens), "seconds": self.seconds}

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Take in the metrics of update number `step`; waits for the device to reach it."""
        counts = np.asarray(metrics["source_tokens"])
        for name, count in zip(self.source_tokens, counts, strict=True):
            self.source_tokens[name] += int(count)
        if step % self._every and step != self._steps and step != self._first + 1:
            self._bar.update(self._task, completed=step)
            return
        loss = float(metrics["loss"])
        now = time.perf_counter()
        elapsed, self._since = now - self._since, now
        rate = (self.tokens - self._since_tokens) / elapsed
        self._since_tokens = self.tokens
        self.seconds += elapsed
        self.last = {
            "step": step,
            "tokens": self.tokens,
            "loss": loss,
            "learning_rate": float(metrics["learning_rate"]),
            "gradient_norm": float(metrics["gradient_norm"]),
            "tokens_per_second": round(rate, 1),
            "seconds": round(self.seconds, 3),
            "source_tokens": dict(self.source_tokens),
        }
        self._file.write(json.dumps(self.last) + "\n")
        self._file.flush()
        self._bar.update(self._task, completed=step, loss=f"{loss:.3f}", rate=f"{rate:,.0f}")

    def __enter__(self) -> MetricsLog:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self._file.close()

    def _drop_after(self, step: int) -> None:
        """Forget lines past the checkpoint that training goes on from: they will come again."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                break  # the line that a kill cut short, always the last
            if entry["step"] <= step:
                kept.append(line + "\n")
                self.last = entry
        self._path.write_text("".join(kept), encoding="utf-8")
