"""The JSON files that reports are made from, as the stages of a run left them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipt_jax.core.errors import UserError, require
from ipt_jax.core.json_lines import parse_json, read_object

AGAIN = "run the stage that writes it again."
_ABSENT = f"the report needs this file: {AGAIN}"


@dataclass(frozen=True)
class SourceFile:
    """An object that a stage wrote; `file[key]` names file and key where the key is missing."""

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> SourceFile:
        return cls(path, read_object(path, AGAIN, _ABSENT))

    @classmethod
    def lines(cls, path: Path) -> Iterator[SourceFile]:
        """Of a .jsonl file."""
        for number, line in enumerate(_bytes(path).splitlines(), 1):
            if line:
                values = _parsed(path, line, f"line {number}")
                require(f"line {number}", values, isinstance(values, dict), "an object", path)
                yield cls(path, values)

    def __getitem__(self, key: str) -> Any:
        try:
            return self.values[key]
        except KeyError as error:
            raise UserError(f"has no '{key}'", key=key, path=self.path, advice=AGAIN) from error


def read_source(path: Path) -> Any:
    """A JSON file's value. Raises UserError where the file is missing or damaged."""
    return _parsed(path, _bytes(path))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}", path=path, advice=_ABSENT) from error


def _parsed(path: Path, text: bytes, record: str | None = None) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        said = f"not valid JSON ({error})"
        raise UserError(said, path=path, record=record, advice=AGAIN) from error
