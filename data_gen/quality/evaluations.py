"""Evaluation sets as texts, for decontamination."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ipt_jax.core import json_lines
from ipt_jax.core.bounds import Config
from ipt_jax.core.errors import UserError, did_you_mean

evaluation_error = partial(UserError, key="evaluations")


@dataclass(frozen=True)
class EvaluationFile(Config):
    """Where an evaluation set lies and what of it is text."""

    name: str = ""
    """Heads its column in the table; the same name for several files joins them."""
    path: str = ""
    """.jsonl, or .json with a list or a mapping of examples; .gz too."""
    fields: list[str] = field(default_factory=lambda: ["question"])
    """Fields that make an example's text, joined by newlines; `a.b` for one within another. Those
    that an example has as null are left out."""


@dataclass(frozen=True)
class EvaluationExample:
    """One example of an evaluation set."""

    set_name: str
    """Its evaluation set."""
    id: str
    """Its own id or key, else its place in the file."""
    text: str
    """What decontamination looks for."""


def load_evaluations(files: Sequence[EvaluationFile]) -> list[EvaluationExample]:
    """Every example of the files, in order.

    Raises UserError where a file is missing, empty or not JSON, or an example lacks a field.
    """
    if not files:
        raise evaluation_error(
            "decontamination needs evaluation sets: name at least one in `evaluations`."
        )
    return [example for file in files for example in _load(file)]


def _load(file: EvaluationFile) -> list[EvaluationExample]:
    path = Path(file.path).expanduser()
    if not file.name or not file.fields:
        raise evaluation_error(
            f"the evaluation '{file.path}' needs a `name` and at least one of `fields`.",
            path=file.path,
        )
    try:
        with gzip.open(path) if path.name.endswith(".gz") else open(path, "rb") as content:
            rows = _rows(content, path.name.removesuffix(".gz").endswith(".jsonl"))
    except FileNotFoundError as error:
        raise evaluation_error(
            f"there is no evaluation file {path}: correct `evaluations`.", path=path
        ) from error
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise evaluation_error(
            f"the evaluation file {path} cannot be read ({error}): give .jsonl, or .json with a "
            "list or a mapping of examples.",
            path=path,
        ) from error
    if not rows:
        raise evaluation_error(f"the evaluation file {path} holds no example.", path=path)
    return [
        EvaluationExample(file.name, key, _text(row, file.fields, key, path)) for key, row in rows
    ]


def _rows(content: Any, lines: bool) -> list[tuple[str, Any]]:
    if lines:
        rows = []
        for number, line in enumerate(json_lines.read_lines(content), 1):
            if line is None:
                raise ValueError(f"line {number}: {json_lines.too_long()}")
            if line.strip():
                rows.append(json_lines.parse_json(line.decode("utf-8-sig")))
    else:
        rows = json_lines.parse_json(content.read().decode("utf-8-sig"))
        if isinstance(rows, Mapping):
            return [(str(key), row) for key, row in rows.items()]
        if not isinstance(rows, list):
            raise ValueError(f"it holds a {type(rows).__name__}")
    return [(_id(row, number), row) for number, row in enumerate(rows, 1)]


def _id(row: Any, number: int) -> str:
    given = row.get("id") if isinstance(row, Mapping) else None
    return str(given) if isinstance(given, str | int) and given != "" else str(number)


def _text(row: Any, fields: Sequence[str], key: str, path: Path) -> str:
    found = []
    for name in fields:
        value = row
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                known = list(value) if isinstance(value, Mapping) else []
                raise UserError(
                    f"example {key} of {path} has no field '{name}'. {did_you_mean(part, known)}",
                    key=name,
                    path=path,
                    record=key,
                )
            value = value[part]
        found += _strings(value)
    return "\n".join(found)


def _strings(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [text for inner in value.values() for text in _strings(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _strings(inner)]
    return [str(value)]
