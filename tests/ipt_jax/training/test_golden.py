"""The losses of 50 steps, held fixed: nothing that changes training goes unnoticed.

After a change that is meant to change them: python -m tests.ipt_jax.training.test_golden
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import pytest

from ipt_jax.models.config import ModelConfig
from ipt_jax.training.loop import train
from tests.training_runs import ROOT, figures, make_config, write_shards

GOLDEN = ROOT / "tests" / "golden" / "losses_of_50_steps.json"
KEYS = ("loss", "gradient_norm", "learning_rate")


def run(folder: Path) -> dict[str, dict[str, float]]:
    """Dropout, grouped heads, a window, packed segments, accumulation, guard: all at once."""
    config = make_config(
        write_shards(folder / "shards"),
        folder / "run",
        model=ModelConfig("tiny", {"vocabulary_size": 32000, "dropout": 0.1, "window": 48}),
        train_tokens=512 * 50,
        accumulation_steps=2,
    )
    settings = {"peak_learning_rate": 3e-3, "warmup_steps": 10, "z_loss": 1e-4}
    optimizer = dataclasses.replace(config.optimizer, **settings)
    data = dataclasses.replace(config.data, tokenizer="mistral-7b-v0.1")
    train(dataclasses.replace(config, optimizer=optimizer, data=data))
    found = {key: figures(folder / "run", key) for key in KEYS}
    return {key: {str(step): x for step, x in steps.items()} for key, steps in found.items()}


def test_fifty_steps_give_the_figures_on_record(tmp_path):
    expected, found = json.loads(GOLDEN.read_text()), run(tmp_path)
    assert len(found["loss"]) == 50
    for key, tolerance in zip(KEYS, (1e-4, 1e-3, 1e-6), strict=True):
        # Other processors add in another order, which 50 steps make larger.
        assert found[key] == pytest.approx(expected[key], rel=tolerance), key


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(run(Path(folder)), indent=1) + "\n")
        sys.stdout.write(f"wrote {GOLDEN}\n")
