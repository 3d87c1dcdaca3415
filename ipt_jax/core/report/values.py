"""A report as a value: what any room makes, and `page` and `markdown` render.

Every string of a part is data: the page escapes it. On a page all numbers come from the run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ipt_jax.core.report.figures import Figure


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of our own prose."""

    text: str


@dataclass(frozen=True)
class Note:
    """A statement that the reader must not miss."""

    title: str
    text: str


@dataclass(frozen=True)
class Items:
    """A list, a sentence or so each."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Headline numbers: (value, what it is)."""

    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of cells, written by `format_cell`."""

    title: str
    """Above it; "" for none."""
    header: Sequence[str]
    """One for each column; nothing is shown where all are ""."""
    rows: Sequence[Sequence[object]]
    """Of as many cells as `header`."""
    note: str = ""
    """Below it: what the numbers are."""
    text_columns: int = 1
    """The first columns, which hold text; the others hold numbers and are set right."""
    total: bool = False
    """Whether the last row sums up the others."""


@dataclass(frozen=True)
class Code:
    """A text as it is, such as a prompt."""

    title: str
    text: str


@dataclass(frozen=True)
class Sample:
    """Documents and the pairs made from them, folded under a title."""

    title: str
    documents: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    """(text, [(instruction, response)])."""
    opened: bool = False
    """Whether it is unfolded at first."""


Part = Paragraph | Note | Items | Facts | Table | Code | Sample | Figure


@dataclass(frozen=True)
class Section:
    """A titled run of parts; the page's contents line links to it."""

    title: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Report:
    """A page or a card."""

    title: str
    subtitle: str
    """In a line: of which run, model, data."""
    opening: Sequence[Part]
    """Before the first section."""
    sections: Sequence[Section] = ()
