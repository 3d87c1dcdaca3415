"""The parts a report page is made of, and the page: one file, no address, no script.

Every string given to a part is data and is escaped here; no part takes HTML.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Protocol

from ipt_jax.core.records import atomic_write

_STYLE = Path(__file__).with_name("report.css")


class Part(Protocol):
    """Anything that can write itself as HTML, with all text escaped."""

    def html(self) -> str: ...


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of prose."""

    text: str

    def html(self) -> str:
        return f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Note:
    """A statement the reader must not miss."""

    title: str
    text: str

    def html(self) -> str:
        return f'<aside class="note"><b>{escape(self.title)}</b> {escape(self.text)}</aside>'


@dataclass(frozen=True)
class Facts:
    """Headline numbers: (value, what it is)."""

    facts: Sequence[tuple[str, str]]

    def html(self) -> str:
        cells = "".join(
            f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>"
            for value, what in self.facts
        )
        return f'<dl class="facts">{cells}</dl>'


@dataclass(frozen=True)
class Table:
    """A table; columns named in `numbers` (by position) are set right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    numbers: Sequence[int] = ()
    total: bool = False
    """Whether the last row sums up the others."""
    note: str = ""

    def html(self) -> str:
        if not self.rows:
            return f'<p class="empty">{escape(self.title)}: none.</p>'
        head = f"<thead>{self._row('th', self.header)}</thead>" if any(self.header) else ""
        body = "".join(
            self._row("td", row, "total" if self.total and row is self.rows[-1] else "")
            for row in self.rows
        )
        note = f'<p class="under">{escape(self.note)}</p>' if self.note else ""
        return (
            f'<div class="table"><table><caption>{escape(self.title)}</caption>'
            f"{head}<tbody>{body}</tbody></table></div>{note}"
        )

    def _row(self, tag: str, cells: Sequence[object], kind: str = "") -> str:
        kinds = [' class="number"' if c in self.numbers else "" for c in range(len(cells))]
        inner = "".join(
            f"<{tag}{number}>{escape(say(cell))}</{tag}>"
            for number, cell in zip(kinds, cells, strict=True)
        )
        return f'<tr class="{kind}">{inner}</tr>' if kind else f"<tr>{inner}</tr>"


@dataclass(frozen=True)
class Sample:
    """A document and the pairs made from it, folded under its title."""

    title: str
    documents: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    """(text, [(instruction, response)])."""
    opened: bool = False

    def html(self) -> str:
        inner = []
        for text, pairs in self.documents:
            inner.append(f'<blockquote class="document">{escape(text)}</blockquote>')
            inner.append('<ol class="pairs">')
            inner += [
                f'<li><p class="instruction">{escape(instruction)}</p>'
                f'<p class="response">{escape(response)}</p></li>'
                for instruction, response in pairs
            ]
            inner.append("</ol>")
        opened = " open" if self.opened else ""
        return (
            f'<details class="sample"{opened}><summary>{escape(self.title)}</summary>'
            f"{''.join(inner)}</details>"
        )


@dataclass(frozen=True)
class Section:
    """A titled run of parts; the page's contents line links to it."""

    title: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    def html(self) -> str:
        inner = "".join(part.html() for part in self.parts)
        return f'<section id="{self.anchor}"><h2>{escape(self.title)}</h2>{inner}</section>'


def page(title: str, subtitle: str, opening: Sequence[Part], sections: Sequence[Section]) -> str:
    """The whole HTML document."""
    links = "".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in sections)
    # The policy forbids scripts and any request, whatever a model wrote into a sample.
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head>"
        f'<body><header><h1>{escape(title)}</h1><p class="subtitle">{escape(subtitle)}</p>'
        f"<nav>{links}</nav></header><main>{''.join(part.html() for part in opening)}"
        f"{''.join(section.html() for section in sections)}</main></body></html>\n"
    )


def write_page(path: Path, html: str) -> Path:
    """Write `html` to `path` in one step and give `path` back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, html)
    return path


def say(value: object) -> str:
    """A table cell's text: integers with thousands separators, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
