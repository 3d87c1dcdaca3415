"""The folder of a measurement: results.json, tables.md and generations.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_gen.instruction_pretrain.analysis.tables import (
    Absent,
    BarChart,
    Counts,
    Table,
    absent_table,
    markdown,
)
from data_gen.stages.ledger import LEDGER_FILES, LEDGER_NAME
from ipt_jax.core.files import atomic_write
from ipt_jax.core.json_lines import load_json
from ipt_jax.core.run_folder import RUN_FILES, RunFolder

RESULTS_NAME, TABLES_NAME, GENERATIONS_NAME = "results.json", "tables.md", "generations.jsonl"
_OWNS = (
    *(*RUN_FILES, RESULTS_NAME, TABLES_NAME, GENERATIONS_NAME, "report.html"),
    *(f"answers/*/{name}" for name in LEDGER_FILES),
)


def hold_analysis(output: str | Path, kind: str) -> RunFolder:
    """The folder of a measurement of `kind`: results are written anew, answers are kept by model.

    Raises FolderRefused as RunFolder.open.
    """

    def before_markers(folder: Path) -> dict[str, str] | None:
        if any(folder.glob(f"answers/*/{LEDGER_NAME}")):
            return {}
        try:
            found = load_json(folder / RESULTS_NAME)
            return {} if {"measured", "tables", "absent"} <= found.keys() else None
        except (OSError, ValueError, AttributeError):
            return None

    run = RunFolder.open(output, kind, {}, owns=_OWNS, legacy=before_markers)
    run.begin()
    return run


@dataclass
class Report:
    """What a measurement found."""

    title: str
    """Of the page."""
    subtitle: str
    """Which models, which corpus."""
    measured: dict[str, Any] = field(default_factory=dict)
    """Every number, by what it measures; shares between 0 and 1, F1 in per cent."""
    tables: list[Table] = field(default_factory=list)
    """Beside the paper's numbers."""
    bars: list[BarChart] = field(default_factory=list)
    """Charts of bars."""
    histograms: list[Counts] = field(default_factory=list)
    """Charts of counts."""
    absent: list[Absent] = field(default_factory=list)
    """What was not measured, and why."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Texts with pairs: `title`, and as `documents` a list of [text, [[question, answer]]]."""

    def markdown(self) -> str:
        """All tables."""
        tables = [*self.tables, *([absent_table(self.absent)] if self.absent else [])]
        return f"# {self.title}\n\n{self.subtitle}\n\n" + "\n".join(map(markdown, tables))

    def write(self, folder: Path, generations: Iterable[Mapping[str, Any]]) -> None:
        """Write the folder's files; results.json last."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(dict(one), ensure_ascii=False) + "\n" for one in generations)
        atomic_write(folder / GENERATIONS_NAME, "".join(lines))
        atomic_write(folder / TABLES_NAME, self.markdown())
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        atomic_write(folder / RESULTS_NAME, text + "\n")


def sample_of(
    title: str, documents: Sequence[tuple[str, Sequence[tuple[str, str]]]]
) -> dict[str, Any]:
    """A sample as the page takes it."""
    return {"title": title, "documents": [[text, [*pairs]] for text, pairs in documents]}
