"""The page of a measurement of the synthesizer or of its corpora, from its results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ipt_jax.evaluation.charts import Bars, Histogram
from ipt_jax.evaluation.page import Note, Paragraph, Part, Sample, Section, Table, page, write_page
from ipt_jax.evaluation.report import File

REPORT_NAME = "report.html"


def analysis_report(folder: Path) -> Path:
    """Write `folder/report.html`: tables beside the paper's, charts, samples, what is absent.

    Returns:
      The page.

    Raises:
      UserError: results.json is missing or not what the measurement writes.
    """
    results = File.read(folder / "results.json")
    charts = [part for one in results["bars"] for part in _bars(one)]
    charts += [_histogram(one) for one in results["histograms"]]
    absent = [(one["what"], one["why"]) for one in results["absent"]]
    samples = [
        Sample(one["title"], [(text, pairs) for text, pairs in one["documents"]])
        for one in results["samples"]
    ]
    sections = [
        Section("Tables", [_table(one) for one in results["tables"]]),
        Section("Charts", charts or [Paragraph("There is nothing to draw.")]),
        Section("Not measured", [Table("Not measured", ("What", "Why"), absent)]),
        *([Section("Samples", samples)] if samples else []),
    ]
    opening: list[Part] = []
    if absent:
        what = "; ".join(one for one, _ in absent)
        opening.append(Note("Not everything was measured:", f"{what}. Reasons stand below."))
    html = page(results["title"], results["subtitle"], opening, sections)
    return write_page(folder / REPORT_NAME, html)


def _table(one: Mapping[str, Any]) -> Table:
    numbers = range(1, len(one["header"]))
    return Table(one["title"], one["header"], one["rows"], numbers, note=one["note"])


def _bars(one: Mapping[str, Any]) -> Sequence[Part]:
    """The chart of what was measured. What lacks a value is named, not drawn as zero."""
    rows, title = one["rows"], one["title"]
    there = [
        n for n in range(len(one["names"])) if any(values[n] is not None for _, values in rows)
    ]
    taken = [(label, [values[n] for n in there]) for label, values in rows]
    whole = [(label, values) for label, values in taken if None not in values]
    lacking = [one["names"][n] for n in range(len(one["names"])) if n not in there]
    lacking += [label for label, values in taken if there and None in values]
    parts: list[Part] = []
    if there and whole:
        names = [one["names"][n] for n in there]
        parts.append(Bars(title, names, whole, lambda value: f"{value:.1f}"))
    if lacking:
        parts.append(Paragraph(f"{title}: not measured for {', '.join(lacking)}."))
    return parts


def _histogram(one: Mapping[str, Any]) -> Histogram:
    return Histogram(
        one["title"],
        one["edges"],
        one["counts"],
        one["x_label"],
        one["y_label"],
        marks=[(x, label) for x, label in one["marks"]],
        whole=True,
    )
