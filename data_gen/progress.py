"""The terminal's view of a synthesis run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from data_gen.runner import Status


class TerminalProgress:
    """A bar with requests done, tokens/s and time left; call it with every Status."""

    def __init__(self, bar: Progress, title: str) -> None:
        self._bar = bar
        self._task = bar.add_task(title, total=None, rate="")

    def __call__(self, status: Status) -> None:
        rate = status.completion_tokens / status.seconds if status.seconds else 0.0
        self._bar.update(
            self._task,
            completed=status.turns_done,
            total=status.turns_expected,
            rate=f"{rate:,.0f} tokens/s written",
        )


@contextmanager
def terminal_progress(title: str) -> Iterator[TerminalProgress]:
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
        yield TerminalProgress(bar, title)
