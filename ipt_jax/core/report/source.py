"""The JSON files that reports are made from, as the stages of a run left them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipt_jax.core.errors import UserError
from ipt_jax.core.json_lines import parse_json

AGAIN = "run the stage that writes it again."


@dataclass(frozen=True)
class SourceFile:
    """An object that a stage wrote; `file[key]` names file and key where the key is missing."""

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> SourceFile:
        return cls.of(path, read_source(path))

    @classmethod
    def lines(cls, path: Path) -> Iterator[SourceFile]:
        """Of a .jsonl file."""
        for number, line in enumerate(_bytes(path).splitlines(), 1):
            if line:
                yield cls.of(path, _parsed(f"{path}, line {number}", line))

    @classmethod
    def of(cls, path: Path, values: Any) -> SourceFile:
        if not isinstance(values, dict):
            raise UserError(f"{path}: holds {type(values).__name__}, not an object; {AGAIN}")
        return cls(path, values)

    def __getitem__(self, key: str) -> Any:
        try:
            return self.values[key]
        except KeyError as error:
            raise UserError(f"{self.path}: has no '{key}'; {AGAIN}") from error


def read_source(path: Path) -> Any:
    """A JSON file's value. Raises UserError where the file is missing or damaged."""
    return _parsed(str(path), _bytes(path))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: the report needs this file and it is not there; {AGAIN}"
        ) from error


def _parsed(where: str, text: bytes) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error}); {AGAIN}") from error
