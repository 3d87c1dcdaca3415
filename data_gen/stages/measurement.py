"""A measurement and its folder: results.json, tables.md, a page, and what models wrote."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data_gen.stages.ledger import LEDGER_FILES, LEDGER_NAME
from ipt_jax.core.files import atomic_write
from ipt_jax.core.json_lines import load_json
from ipt_jax.core.report.figures import Bars, Figure, Histogram
from ipt_jax.core.report.markdown import markdown
from ipt_jax.core.report.numbers import format_cell, format_percent
from ipt_jax.core.report.page import PAGE_NAME, write_page
from ipt_jax.core.report.values import Note, Paragraph, Part, Report, Sample, Section, Table
from ipt_jax.core.run_folder import RUN_FILES, RunFolder

RESULTS_NAME, TABLES_NAME, GENERATIONS_NAME = "results.json", "tables.md", "generations.jsonl"
# As the paper's tables write numbers: one decimal, shares in per cent without the sign.
cell = partial(format_cell, decimals=1)
per_cent = partial(format_percent, sign="")


def share_bars(
    title: str, names: Sequence[str], rows: Iterable[tuple[str, Sequence[float | None]]]
) -> Bars:
    """Shares between 0 and 1, drawn in per cent; None is no bar."""
    drawn = [(row, tuple(None if s is None else 100 * s for s in shares)) for row, shares in rows]
    return Bars(title, tuple(names), tuple(drawn), number=cell)


_OWNS = (
    *(*RUN_FILES, RESULTS_NAME, TABLES_NAME, GENERATIONS_NAME, PAGE_NAME),
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


@dataclass(frozen=True)
class Absent:
    """What could not be measured."""

    what: str
    """A table or figure of the paper, or a part of it."""
    why: str
    """The reason, and what would bring it."""


@dataclass
class Measurement:
    """What a measurement found."""

    title: str
    """Of the page."""
    subtitle: str
    """Which models, which corpus."""
    measured: dict[str, Any] = field(default_factory=dict)
    """Every number, by what it measures; shares between 0 and 1, F1 in per cent."""
    tables: list[Table] = field(default_factory=list)
    """Beside the paper's numbers."""
    figures: list[Figure] = field(default_factory=list)
    """In the order of the page."""
    absent: list[Absent] = field(default_factory=list)
    """What was not measured, and why."""
    samples: list[Sample] = field(default_factory=list)
    """Texts with pairs."""

    def markdown(self) -> str:
        """All tables."""
        absent = [self._absent()] if self.absent else []
        return markdown(Report(self.title, self.subtitle, [*self.tables, *absent]))

    def page(self) -> Report:
        """Tables, figures, what is absent and samples."""
        opening: list[Part] = []
        if self.absent:
            what = "; ".join(one.what for one in self.absent)
            opening.append(Note("Not everything was measured:", f"{what}. Reasons stand below."))
        sections = [
            Section("Tables", self.tables),
            Section("Charts", self.figures or [Paragraph("There is nothing to draw.")]),
            Section("Not measured", [self._absent()]),
            *([Section("Samples", self.samples)] if self.samples else []),
        ]
        return Report(self.title, self.subtitle, opening, sections)

    def write(self, folder: Path, generations: Iterable[Mapping[str, Any]] | None = None) -> None:
        """Write the folder's files; results.json last. `generations`: what models wrote, if any."""
        folder.mkdir(parents=True, exist_ok=True)
        if generations is not None:
            lines = (json.dumps(dict(one), ensure_ascii=False) + "\n" for one in generations)
            atomic_write(folder / GENERATIONS_NAME, "".join(lines))
        atomic_write(folder / TABLES_NAME, self.markdown())
        write_page(folder / PAGE_NAME, self.page())
        text = json.dumps(self._results(), indent=1, ensure_ascii=False)
        atomic_write(folder / RESULTS_NAME, text + "\n")

    def _absent(self) -> Table:
        rows = [(one.what, one.why) for one in self.absent]
        return Table("Not measured", ("What", "Why"), rows, text_columns=2)

    def _results(self) -> dict[str, Any]:
        """Numbers first, then what the page shows."""

        def kept(values: Iterable[Any], kind: type, *names: str) -> list[dict[str, Any]]:
            found = (one for one in values if isinstance(one, kind))
            return [{name: getattr(one, name) for name in names} for one in found]

        x_y = ("edges", "counts", "x_label", "y_label", "marks")
        return {
            "title": self.title,
            "subtitle": self.subtitle,
            "measured": self.measured,
            "tables": kept(self.tables, Table, "title", "header", "rows", "note"),
            "bars": kept(self.figures, Bars, "title", "names", "rows"),
            "histograms": kept(self.figures, Histogram, "title", *x_y),
            "absent": kept(self.absent, Absent, "what", "why"),
            "samples": kept(self.samples, Sample, "title", "documents"),
        }
