"""The dry run: every config compiles without data, and what cannot fit is refused."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ipt_jax.configuration import parse_config
from ipt_jax.data.config import load_mixture
from ipt_jax.training.config import TrainConfig

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs" / "train").glob("*.yaml"))

# Instruction Pre-Training, Table 14: steps, tokens a batch, peak learning rate, warm-up, row.
TABLE_14 = {
    "ipt_500m": (200_000, 0.5e6, 3e-4, 2000, 2048),
    "ipt_1_3b": (100_000, 1.0e6, 2e-4, 2000, 2048),
}


def read(path: Path) -> TrainConfig:
    return parse_config(TrainConfig, ["--config", str(path)], prog="test", description="")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_fits_together(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = read(path)
    config.check()
    assert load_mixture(config.data).tasks
    paper = next((v for name, v in TABLE_14.items() if path.stem.startswith(name)), None)
    if paper is not None:
        steps, batch_tokens, rate, warmup, row = paper
        assert config.steps == steps
        assert config.batch_tokens == pytest.approx(batch_tokens, rel=0.05)
        assert config.optimizer.peak_learning_rate == rate
        assert (config.optimizer.warmup_steps, config.data.row_tokens) == (warmup, row)
        assert config.model.decoder().dropout == 0.1
        assert (config.optimizer.beta1, config.optimizer.beta2) == (0.9, 0.95)
        assert (config.optimizer.weight_decay, config.optimizer.clip_norm) == (0.1, 1.0)


def dry_run(*options: str) -> subprocess.CompletedProcess:
    config = "configs/train/ipt_500m_instruct.yaml"
    return subprocess.run(
        [sys.executable, "launch/train.py", "--config", config, "--dry_run", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_dry_run_needs_no_data_and_adds_up(tmp_path):
    done = dry_run("--data.root", str(tmp_path / "nowhere"), "--dry_run_devices", "4")
    assert done.returncode == 0, done.stderr
    assert "567,854,592 parameters" in done.stdout and "200,000 steps" in done.stdout
    # 4 bytes a parameter and 8 of moments, split over 4 devices; norms are whole on each.
    assert "parameters 0.57, optimiser 1.14" in done.stdout
    assert "16 rows of 2048 tokens a device and piece, 4 piece(s)" in done.stdout
    tokens, gigaflops = 524288 * 200_000, float(re.search(r"([\d.]+) GFLOPs", done.stdout)[1])  # type: ignore[index]
    hours = tokens * gigaflops * 1e9 / (989e12 * 0.4 * 4) / 3600
    assert float(re.search(r"([\d.]+) hours on h100", done.stdout)[1]) == pytest.approx(
        hours, rel=0.01
    )  # type: ignore[index]


def test_what_cannot_fit_is_refused():
    kept = ("--model.overrides", "{remat: none}", "--accumulation_steps", "1")
    done = dry_run("--dry_run_device", "a100_40", *kept)
    assert done.returncode == 2
    assert "more than 90% of the 40 GB" in done.stderr and "accumulation_steps" in done.stderr
    assert "known are a100_40" in dry_run("--dry_run_device", "a100").stderr


def test_eight_billion_on_256_devices_keeps_activations_on_their_devices():
    options = ("--model.preset", "llama3_8b", "--data.row_tokens", "4096", "--batch_tokens")
    devices = ("--dry_run_devices", "256", "--dry_run_device", "h200")
    done = dry_run(*options, "2097152", "--accumulation_steps", "2", *devices)
    assert done.returncode == 0, done.stderr
    # Were the residual stream or the logits copied to every device, this would be 300 GB.
    assert float(re.search(r"memory a device ([\d.]+) GB", done.stdout)[1]) < 15  # type: ignore[index]
    assert "1 rows of 4096 tokens a device" in done.stdout
