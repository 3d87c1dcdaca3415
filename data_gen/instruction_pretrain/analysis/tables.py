"""Tables and charts as plain values, for Markdown, the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ABSENT = "–"


@dataclass(frozen=True)
class Table:
    """A table whose cells are text."""

    title: str
    """Above it."""
    header: tuple[str, ...]
    """One for each column."""
    rows: tuple[tuple[str, ...], ...]
    """Cells as they are shown; ABSENT for what was not measured."""
    note: str = ""
    """Below it: what the numbers are."""


@dataclass(frozen=True)
class BarChart:
    """One bar a name for each label; None where nothing was measured, which is no zero."""

    title: str
    """Above it."""
    names: tuple[str, ...]
    """Of the bars of one label."""
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    """Label and values."""


@dataclass(frozen=True)
class Counts:
    """A histogram: how many values lie between two edges, one edge more than counts."""

    title: str
    """Above it."""
    edges: tuple[float, ...]
    """Ascending; the last count takes in the last edge."""
    counts: tuple[int, ...]
    """One for each gap."""
    x_label: str
    """What is counted along x."""
    y_label: str
    """What is counted."""
    marks: tuple[tuple[float, str], ...] = ()
    """(x, label) of lines, such as the paper's mean."""


@dataclass(frozen=True)
class Absent:
    """What could not be measured."""

    what: str
    """A table or figure of the paper, or a part of it."""
    why: str
    """The reason, and what would bring it."""


def cell(value: float | int | None, digits: int = 1) -> str:
    """A number as a table says it."""
    if value is None:
        return ABSENT
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def per_cent(share: float | None, digits: int = 1) -> str:
    """A share between 0 and 1 in per cent."""
    return ABSENT if share is None else f"{100 * share:.{digits}f}"


def markdown(table: Table) -> str:
    """Title, table and note; what would end a cell is escaped."""
    lines = [table.header, ["---", *("---:" for _ in table.header[1:])], *table.rows]
    body = "\n".join("| " + " | ".join(map(_escaped, line)) + " |" for line in lines)
    note = f"\n\n{table.note}" if table.note else ""
    return f"### {table.title}\n\n{body}{note}\n"


def absent_table(absent: Sequence[Absent]) -> Table:
    """What was not measured, and why."""
    rows = tuple((one.what, one.why) for one in absent)
    return Table("Not measured", ("What", "Why"), rows)


def mapping_text(counts: Mapping[str, int]) -> str:
    """Counts by name in one line."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
