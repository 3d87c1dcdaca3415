"""How a synthesis run is shown while it runs, and what is kept of that for its report."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from data_gen.stages.runner import Status
from ipt_jax.core.files import append_lines

LOG_NAME = "progress.jsonl"
_SHOW_SECONDS = 0.1  # thousands of completions a second need not all be drawn


class TerminalProgress:
    """A bar with requests done, tokens/s, what was rejected and time left; takes every Status."""

    def __init__(self, bar: Progress, title: str, gpus: int, price_per_gpu_hour: float) -> None:
        self._bar, self._shown = bar, 0.0
        self._gpus, self._price = gpus, price_per_gpu_hour
        self._task = bar.add_task(title, total=None, rate="")

    def __call__(self, status: Status) -> None:
        now = time.monotonic()
        last = status.usage.completions == status.turns_expected
        if now - self._shown < _SHOW_SECONDS and not last:
            return
        self._shown = now
        self._bar.update(
            self._task,
            completed=status.usage.completions,
            total=status.turns_expected,
            rate=describe(status, self._gpus, self._price),
        )


def describe(status: Status, gpus: int = 0, price_per_gpu_hour: float = 0.0) -> str:
    """Speeds and cost since this process began, and what was not used, by the commonest reason."""
    seconds = status.seconds or 1e-9
    fresh = status.fresh
    said = [
        f"{fresh.completions / seconds:,.1f} answers/s",
        f"{fresh.prompt_tokens / seconds:,.0f} tokens/s read",
        f"{fresh.completion_tokens / seconds:,.0f} written",
    ]
    if status.rejected:
        reason, count = max(status.rejected.items(), key=lambda item: item[1])
        said.append(f"{sum(status.rejected.values()):,} rejected ({count:,} {reason})")
    if status.requests_failed:
        said.append(f"{status.requests_failed:,} requests failed")
    if gpus:
        hours = status.seconds / 3600 * gpus
        said.append(f"{hours:,.2f} GPU hours")
        if price_per_gpu_hour:
            said.append(f"cost {hours * price_per_gpu_hour:,.2f}")
    return " · ".join(said)


@contextmanager
def terminal_progress(
    title: str, gpus: int = 0, price_per_gpu_hour: float = 0.0
) -> Iterator[TerminalProgress]:
    """Show a bar on stderr while the block runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield TerminalProgress(bar, title, gpus, price_per_gpu_hour)


class ProgressLog:
    """Appends a line to progress.jsonl every so often, and one at the end."""

    def __init__(self, folder: Path, every_seconds: float = 10.0) -> None:
        self._path, self._every = folder / LOG_NAME, every_seconds
        self._written, self._last = 0.0, None

    def __call__(self, status: Status) -> None:
        self._last = status
        if status.seconds - self._written >= self._every:
            self._write(status)

    def _write(self, status: Status) -> None:
        self._written = status.seconds
        # asdict would make nonsense of a Counter.
        plain = replace(status, rejected=dict(status.rejected))
        line = {**asdict(plain), "at": round(time.time(), 3)}
        append_lines(self._path, json.dumps(line) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._last is not None and self._last.seconds > self._written:
            self._write(self._last)
