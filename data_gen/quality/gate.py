"""What every gate is: it looks at records in order and says which may not pass, and why."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from data_gen.engines import Engine
from data_gen.stages.ledger import Ledger
from data_gen.stages.units import Records
from ipt_jax.core.records import Record
from ipt_jax.core.rejection import Reason


class Gate(ABC):
    """Base of the gates. Records come to `check` once, in order, in batches of any size."""

    name = ""
    """Key in configs, rejected/ and the summary."""
    needs_corpus = False
    """Whether `prepare` has to see all records before the first is checked."""

    def begin(self, engine: Engine, ledger: Ledger) -> None:  # noqa: B027 (not every gate needs it)
        """The engine of the run and what it has answered."""

    def prepare(self, corpus: Records) -> None:  # noqa: B027
        """Look at all the records that will come to `check`."""

    @abstractmethod
    def check(self, records: Sequence[Record]) -> list[Reason | None]:
        """For each record why it may not pass; None where it may."""

    def summary(self) -> dict[str, Any]:
        """Counts for the summary beside those of the rejections; JSON."""
        return {}

    def details(self) -> Iterable[dict[str, Any]]:
        """Lines for `details/NAME.jsonl`; none, and the file is not written."""
        return ()

    def close(self) -> None:  # noqa: B027
        """Free what the gate holds."""


class RecordList:
    """Records in memory, for calls without shards."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def read(self, numbers: Sequence[int]) -> list[Record]:
        return [self._records[number] for number in numbers]
