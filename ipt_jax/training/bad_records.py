"""The damaged records that a run left out: damaged/N.jsonl in the run folder, N the process.

Each process reads rows of its own and meets their damage alone. So each writes a file of its own,
at once and without waiting for the others, and the counts are taken from all files when every
process has come to the end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ipt_jax.core.files import append_lines
from ipt_jax.data.bad_records import DamageLog
from ipt_jax.training.jsonl_log import drop_later_lines, read_lines


class DamageFile:
    """Writes a line for each record of a `DamageLog`, once in a run however often it starts."""

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
