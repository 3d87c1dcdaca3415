"""The tool that shows a batch, on real shards."""

import subprocess
import sys
from pathlib import Path

import pytest

from ipt_jax.records import Record, ShardWriter

ROOT = Path(__file__).parents[2]


def test_a_batch_is_shown_with_sources_and_rates(tmp_path: Path) -> None:
    pytest.importorskip("mistral_common", reason="carries the Mistral tokenizer")
    for name in ("plain", "augmented"):
        with ShardWriter(tmp_path / name) as writer:
            for number in range(20):
                writer.write(Record(f"{name}/{number}", f"{name} text {number} " * 9, name))
    command = [sys.executable, "tools/show_batch.py", "--data.root", str(tmp_path)]
    command += ["--data.mixture", "configs/mixtures/quickstart_instruct.yaml"]
    ran = subprocess.run(
        [*command, "--data.row_tokens", "128"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "COLUMNS": "100"},
    )
    assert ran.returncode == 0, ran.stderr
    assert "┃ plain ·" in ran.stdout and "augmented text" in ran.stdout
    assert "plain: asked 4" in ran.stdout or "plain: asked 5" in ran.stdout
    wrong = subprocess.run(
        [*command, "--data.row_token", "128"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert wrong.returncode == 2
    assert "row_tokens" in wrong.stderr
