"""Files of JSON lines, each of a batch, and what becomes of them when a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ipt_jax.core.files import atomic_write
from ipt_jax.core.json_lines import parse_json


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; one that a kill cut short is left out, no file has none."""
    return [found for _, found in _whole(path)]


def drop_later_lines(path: Path, position: int) -> list[dict[str, Any]]:
    """Keep the lines whose `step` is at most `position`, and give them: later ones come again."""
    kept = [(line, found) for line, found in _whole(path) if found["step"] <= position]
    if path.exists():
        atomic_write(path, "".join(f"{line}\n" for line, _ in kept))
    return [found for _, found in kept]


def _whole(path: Path) -> list[tuple[str, dict[str, Any]]]:
    if not path.exists():
        return []
    # Not splitlines(): an id may hold other characters that it takes for the end of a line.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    found, broken = [], 0
    for line in lines:
        try:
            values = parse_json(line)
            found.append((line, {**values, "step": int(values["step"])}))
        except (ValueError, TypeError, KeyError):
            broken += 1  # of a power cut: the file grew and its bytes were never written
    if broken:
        print(f"{path}: {broken} line(s) are damaged and left out.", flush=True)
    return found
