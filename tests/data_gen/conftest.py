"""Shared parts: golden files, and the small model as it is loaded once a process."""

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


@pytest.fixture(scope="session")
def bfloat16_engine(smollm2: Path) -> Any:
    """SmolLM2 as a user has it."""
    from data_gen.engines.transformers import TransformersEngine

    return TransformersEngine(smollm2, batch_size=4, context_tokens=2048, sort_window=6)


@pytest.fixture(scope="session")
def float_engine(smollm2: Path) -> Any:
    """SmolLM2 in float32, where a batch does not change the likeliest token nor a draw."""
    from data_gen.engines.transformers import TransformersEngine

    engine = TransformersEngine(smollm2, batch_size=3)
    engine._model.float()
    return engine


@pytest.fixture(scope="session")
def reference(smollm2: Path) -> Any:
    """The same model as transformers runs it, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2, dtype="float32")
