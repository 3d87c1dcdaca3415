"""WikiTableQuestions: questions on tables, which are told as rows of plain text."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

from data_gen.corpus.dataset_files import (
    UNREADABLE,
    DataFile,
    Files,
    Located,
    by_file,
    converted,
    unquoted_rows,
)
from data_gen.instruction_pretrain.collection.base import Question
from data_gen.instruction_pretrain.formats import Pair
from ipt_jax.core.rejection import Reason

_COLUMNS = ["id", "utterance", "context", "targetValue"]
_ESCAPED = re.compile(r"\\([np\\])")
_MEANT = {"n": "\n", "p": "|", "\\": "\\"}


@by_file
def table_records(files: Files, file: DataFile) -> Iterator[Located]:
    """Questions with their tables, which lie in files of their own, told as text."""
    tables = {"/".join(one.name.split("/")[-3:]): one for one in files.find("csv/*/*.csv")}
    told: dict[str, tuple[str, str]] = {}

    def record(cells: Any) -> dict[str, str] | None:
        if cells == _COLUMNS:
            return None
        if len(cells) != len(_COLUMNS):
            raise ValueError(f"has not the columns {', '.join(_COLUMNS)}")
        found = dict(zip(_COLUMNS, cells, strict=True))
        context = found["context"]
        if context not in told:
            told[context] = _told(tables.get(context))
        text, problem = told[context]
        return {**found, "table": text, "problem": problem}

    return converted(unquoted_rows(file), record)


def _told(file: DataFile | None) -> tuple[str, str]:
    """A table's text, and what is wrong with its file."""
    if file is None:
        return "", "is missing"
    try:
        return _text(file.text()), ""
    except UNREADABLE as error:
        return "", f"cannot be read: {error}"


def _text(table: str) -> str:
    """One line a row, the header's first. These files escape a quote by a backslash."""
    lines = io.StringIO(table, newline="")
    read = csv.reader(lines, doublequote=False, escapechar="\\")
    return "\n".join(" | ".join(" ".join(cell.split()) for cell in row) for row in read)


def table_questions(record: Any) -> Iterator[Question | Reason]:
    """Several right values are one answer."""
    if record["problem"]:
        yield Reason("no_context", f"the table {record['context']} {record['problem']}")
        return
    values = [_unescaped(value) for value in record["targetValue"].split("|")]
    pair = Pair(_unescaped(record["utterance"]), ", ".join(values))
    yield Question(record["table"], pair)


def _unescaped(cell: str) -> str:
    return _ESCAPED.sub(lambda match: _MEANT[match[1]], cell)
