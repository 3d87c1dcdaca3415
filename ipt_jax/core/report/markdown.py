"""Reports and tables as Markdown, for cards and docs, and tables as text for a terminal."""

from __future__ import annotations

import re

from ipt_jax.core.report.numbers import format_cell
from ipt_jax.core.report.values import Code, Facts, Items, Note, Paragraph, Part, Report, Table
from ipt_jax.core.terminal import visible

# What could begin markup or end a cell. An underscore within a word is none.
_MARKUP = re.compile(r"[\\`*\[\]<>|~]|(?<!\w)_|_(?!\w)")


def markdown(report: Report) -> str:
    """The report, its figures and samples only named. Prose may hold Markdown, cells may not."""
    blocks = [f"# {report.title}", report.subtitle, *map(_part, report.opening)]
    for section in report.sections:
        blocks += [f"## {section.title}", *map(_part, section.parts)]
    return "\n\n".join(filter(None, blocks)) + "\n"


def markdown_table(table: Table) -> str:
    """The rows and the header alone."""
    rules = ["---" if n < table.text_columns else "---:" for n in range(len(table.header))]
    rows = [[_cell(cell) for cell in row] for row in (table.header, *table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rules, *rows[1:]))


def text_table(table: Table) -> str:
    """The rows and the header alone, their columns below each other."""
    rows = [
        [visible(format_cell(cell)).replace("\n", "␊") for cell in row]
        for row in (table.header, *table.rows)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n < table.text_columns else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _part(part: Part) -> str:
    match part:
        case Paragraph():
            return part.text
        case Note():
            return f"> **{part.title}** {part.text}"
        case Items():
            return "\n".join(f"- {text}" for text in part.texts)
        case Facts():
            rows = [(what, value) for value, what in part.facts]
            return markdown_table(Table("", ("", ""), rows))
        case Table():
            shown = markdown_table(part) if part.rows else "None."
            return _joined(part.title and f"### {part.title}", shown, part.note)
        case Code():
            fence = "```"
            while fence in part.text:
                fence += "`"
            return _joined(f"{part.title}:", f"{fence}\n{part.text}\n{fence}")
    return f"{part.title}: on the page."


def _joined(*blocks: str) -> str:
    return "\n\n".join(filter(None, blocks))


def _cell(value: object) -> str:
    """Corpora and models name things as they like: nothing of it is to be read as markup."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(format_cell(value).split()))
