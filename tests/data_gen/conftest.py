"""Shared parts: golden files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"


@pytest.fixture(scope="session")
def golden() -> Any:
    """Read a golden file by name; skips where the folder is absent."""

    def read(name: str) -> Any:
        path = GOLDEN / name
        if not path.is_file():
            pytest.skip(f"no golden file {path}")
        return json.loads(path.read_text(encoding="utf-8"))

    return read
