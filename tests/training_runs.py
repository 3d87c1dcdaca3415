"""Small real training runs on real text, in this process or in several."""

import dataclasses
import functools
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tokenizers.implementations import ByteLevelBPETokenizer

from ipt_jax.core.configuration import as_yaml
from ipt_jax.core.records import Record, ShardWriter
from ipt_jax.data.mixture import DataConfig
from ipt_jax.models.config import ModelConfig
from ipt_jax.training.checkpoints import CheckpointConfig
from ipt_jax.training.config import TrainConfig
from ipt_jax.training.metrics import MetricsConfig
from ipt_jax.training.optimizer import OptimizerConfig

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "data_gen" / "sample_corpus" / "documents.jsonl"
STEPS, BATCH_TOKENS = 24, 512
# Of a tokenizer trained on the corpus: Mistral's 32,000 would be most of so small a model's work.
VOCABULARY = 1024


@functools.cache
def _tokenizer_json() -> str:
    trained = ByteLevelBPETokenizer()
    trained.train(
        str(CORPUS), VOCABULARY, show_progress=False, special_tokens=["<unk>", "<s>", "</s>"]
    )
    return trained.to_str()


def write_tokenizer(folder: Path) -> Path:
    """A small tokenizer as Hugging Face saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer.json").write_text(_tokenizer_json())
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def write_shards(folder: Path) -> Path:
    """50 documents as `raw`, 30 as `augmented`."""
    lines = CORPUS.read_text(encoding="utf-8").splitlines()[:80]
    for name, part in (("raw", lines[:50]), ("augmented", lines[50:])):
        with ShardWriter(folder / name) as writer:
            for document in map(json.loads, part):
                writer.write(Record(document["id"], document["text"], document["source"]))
    return folder


def make_config(shards: Path, folder: Path, **changes) -> TrainConfig:
    """24 steps of 8 rows of 64 tokens, a line of metrics each, a checkpoint every 5."""
    mixture = {
        "tasks": {name: {"source": name} for name in ("raw", "augmented")},
        "rates": {"raw": 0.8, "augmented": 0.2},
        "root": str(shards),
    }
    config = TrainConfig(
        run_folder=folder,
        model=ModelConfig("tiny", {"vocabulary_size": VOCABULARY}),
        data=DataConfig(
            mixture=mixture, tokenizer=str(write_tokenizer(shards / "tokenizer")), row_tokens=64
        ),
        optimizer=OptimizerConfig(peak_learning_rate=1e-2, warmup_steps=2),
        checkpoints=CheckpointConfig(every_steps=5),
        metrics=MetricsConfig(every_steps=1, tensorboard=False),
        batch_tokens=BATCH_TOKENS,
        train_tokens=BATCH_TOKENS * STEPS,
        compilation_cache=None,
    )
    return dataclasses.replace(config, **changes)


def write_config(config: TrainConfig, path: Path) -> Path:
    path.write_text(as_yaml(config))
    return path


def with_devices(count: int) -> dict[str, str]:
    """The environment of a process with so many virtual devices, which compiles as quickly."""
    flags = os.environ.get("XLA_FLAGS", "")
    flags = f"{flags} --xla_force_host_platform_device_count={count}".strip()
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


# A script in a process that sends itself a signal before a step: from outside it could be late.
SIGNALLED = """
import os, runpy, sys
from ipt_jax.training.hooks import Profiler
number, at, *sys.argv = sys.argv[1:]
def before_step(self, position, does=Profiler.before_step):
    does(self, position)
    if position == int(at):
        os.kill(os.getpid(), int(number))
Profiler.before_step = before_step
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(
    config: Path, *options: str, devices: int = 1, signal: tuple[int, int] | None = None
) -> subprocess.Popen:
    """launch/train.py in a process of its own with so many virtual devices.

    `signal` is what it sends to itself, and before which step.
    """
    run = () if signal is None else ("-c", SIGNALLED, *map(str, signal))
    train = str(ROOT / "launch" / "train.py")
    return subprocess.Popen(
        [sys.executable, *run, train, "--config", str(config), *options],
        cwd=ROOT,
        env=with_devices(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start_several(
    config: Path,
    count: int,
    *options: str,
    devices: int = 1,
    signal: tuple[int, int] | None = None,
) -> list[subprocess.Popen]:
    """`count` processes of one run, with `devices` each, that find each other on localhost.

    The last of them sends itself the signal.
    """
    address = f"localhost:{free_port()}"
    joined = ("--processes.coordinator", address, "--processes.count", str(count))
    return [
        start(
            config,
            *(*joined, "--processes.index", str(index), *options),
            devices=devices,
            signal=signal if index == count - 1 else None,
        )
        for index in range(count)
    ]


def finish(processes: list[subprocess.Popen], timeout: float = 600) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each; none is left running."""
    try:
        deadline = time.monotonic() + timeout
        said = [p.communicate(timeout=max(1, deadline - time.monotonic())) for p in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *texts) for p, texts in zip(processes, said, strict=True)]


def wait_for_steps(folder: Path, steps: int, process: subprocess.Popen) -> None:
    """Return when the run has written so many lines of metrics."""
    metrics, patience = folder / "metrics.jsonl", time.monotonic() + 900
    while not metrics.exists() or metrics.read_text().count("\n") < steps:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < patience
        time.sleep(0.002)


def positions(run: Path) -> list[int]:
    """Of the checkpoints that a run has."""
    return sorted(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdecimal())


def figures(folder: Path, key: str = "loss") -> dict[int, float]:
    """One figure of each step."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {entry["step"]: entry[key] for entry in map(json.loads, lines)}
