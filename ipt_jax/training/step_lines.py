"""Files of JSON lines, each of a batch, and what becomes of them when a run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ipt_jax.records import atomic_write


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; one that a kill cut short is left out, no file has none."""
    return [json.loads(line) for line in _whole(path)]


def drop_later_lines(path: Path, position: int) -> list[dict[str, Any]]:
    """Keep the lines whose `step` is at most `position`, and give them: later ones come again."""
    kept = [line for line in _whole(path) if json.loads(line)["step"] <= position]
    if path.exists():
        atomic_write(path, "".join(f"{line}\n" for line in kept))
    return [json.loads(line) for line in kept]


def _whole(path: Path) -> list[str]:
    if not path.exists():
        return []
    # Not splitlines(): an id may hold other characters that it takes for the end of a line.
    return path.read_text(encoding="utf-8").split("\n")[:-1]
