"""Records that cannot be read: named, and left out where that was asked.

A damaged record that the length index already knows of has no place in the plan. One that shows
while rows are made keeps its place, as padding: rows are cut by planned lengths, so that each
process makes its own without asking the others, and a run that goes on finds the rows it had.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from ipt_jax.core.errors import DamagedRecord

_LOG = logging.getLogger(__name__)


class Placed(Protocol):
    """What can say where a record lies."""

    def where(self, index: int) -> str:
        """File and place of a record, for messages."""
        ...


class DamageLog:
    """The damaged records of a mixture that this process has met, each once. Picklable."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, int], str] = {}
        """By name of the task and number of the record: file, place and what is wrong."""

    def __len__(self) -> int:
        return len(self.records)

    def add(self, task: str, index: int, what: str) -> None:
        """Count and log a record, if it is not known yet."""
        if (task, index) not in self.records:
            self.records[task, index] = what
            _LOG.warning("damaged record %d of task %r left out: %s", len(self), task, what)


def read_records[T](
    read: Callable[[Sequence[int]], list[T]], source: Placed, indices: Sequence[int], skip: bool
) -> list[T | DamagedRecord]:
    """What ``read`` gives for each of ``indices``.

    With ``skip`` a damaged record's place has the error that says what is wrong; without it,
    raises the first, naming file and record and saying how to go on.
    """
    try:
        return list(read(indices))
    except DamagedRecord as error:
        if len(indices) > 1:
            middle = len(indices) // 2
            parts = (indices[:middle], indices[middle:])
            found = [item for part in parts for item in read_records(read, source, part, skip)]
            return found
        where, what = source.where(int(indices[0])), str(error)
        named = DamagedRecord(what if where in what else f"{where}: {what}")
        if skip:
            return [named]
        raise DamagedRecord(
            f"{named} To go on without damaged records, set `skip_damaged: true` under `data`."
        ) from error
