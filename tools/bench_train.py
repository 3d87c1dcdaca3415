"""Training speed on this machine: ratios of pairs, measured alternately in one run.

    python tools/bench_train.py step --size S
    python tools/bench_train.py overhead
    python tools/bench_train.py restart

step: the train step (forward, backward, clipping, AdamW; float32) against transformers and torch.
overhead: what metrics and asynchronous checkpoints add to it. restart: from process start to the
first step after a restore, with a warm compilation cache and without one.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ipt_jax.core.errors import importing

with importing():
    from bench_workers import SIZES  # beside this file

ROOT = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("bench_workers.py")
# Threads that wait do not spin: a waiting contender must not slow down the one that runs.
QUIET = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
# On processors that are not Intel's MKL takes AVX2 kernels; this makes it look at what they can.
SHIM = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"
# What ipt_jax.training.startup sets, for a process that does not.
MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}
CONTENDERS = (
    "ours",
    "torch",
    "torch tuned",
    "torch tuned, same memory settings",
    "torch tuned and compiled",
)
BESIDES = {"ours": "", "ours with metrics": "metrics", "ours with a checkpoint": "checkpoint"}


class Contender:
    """A worker process that runs steps when told."""

    def __init__(self, kind: str, size: str, environment: Mapping[str, str]):
        self.kind = kind
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), kind, size],
            env={**os.environ, **QUIET, "PYTHONPATH": str(ROOT), **environment},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about = self._answer()

    def steps(self, count: int, besides: str = "") -> dict[str, float]:
        """Seconds a step, by the clock and of processor time."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count} {besides}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"error: the contender {self.kind!r} ended; its message is above.")

    def end(self) -> None:
        """Stop the process."""
        self._process.kill()
        self._process.wait()


def step(size: str, rounds: int, steps: int, folder: Path) -> dict[str, Any]:
    """Our train step and torch's, each in a process of its own."""
    shim = make_shim(folder)
    contenders = {}
    for kind in CONTENDERS:
        if "tuned" in kind and shim is None:
            print(f"{kind}: left out, there is no C compiler (cc) to tune it with")
            continue
        environment = {"LD_PRELOAD": str(shim)} if "tuned" in kind else {}
        if "memory" in kind:
            environment |= MEMORY
        contenders[kind] = Contender(kind, size, environment)
        print(f"{kind}: {contenders[kind].about['parameters']:,} parameters", flush=True)
    work = {kind: lambda c=contender: c.steps(steps) for kind, contender in contenders.items()}
    table = alternate(work, rounds, "torch", contenders["ours"].about["tokens"])
    for contender in contenders.values():
        contender.end()
    return {"size": size, "rounds": rounds, "steps_a_round": steps, "contenders": table}


def overhead(size: str, rounds: int, steps: int) -> dict[str, Any]:
    """The train step bare, with metrics, and with one checkpoint in so many steps.

    All in one process: two of the same program already differ by more than what is looked for.
    """
    worker = Contender("ours", size, {})
    work = {kind: lambda b=besides: worker.steps(steps, b) for kind, besides in BESIDES.items()}
    table = alternate(work, rounds, "ours", worker.about["tokens"])
    worker.end()
    return {"size": size, "rounds": rounds, "steps_a_round": steps, "contenders": table}


def alternate(
    work: Mapping[str, Callable[[], dict[str, float]]], rounds: int, base: str, tokens: int
) -> dict[str, dict[str, Any]]:
    """Do all of it `rounds` times, in turns; every ratio is within one round."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in work}
    names = list(work)
    for number in range(rounds + 1):
        turn = number % len(names)
        for kind in names[turn:] + names[:turn]:
            measured = work[kind]()
            if number:  # the first round warms up
                found[kind].append(measured)
    table = {}
    for kind, measured in found.items():
        seconds = statistics.median(m["wall"] for m in measured)
        table[kind] = {"tokens_per_second": round(tokens / seconds, 1)}
        for clock in ("wall", "cpu"):
            pairs = zip(found[base], measured, strict=True)
            table[kind][f"{clock}_speed_to_{base}"] = spread(
                [a[clock] / b[clock] for a, b in pairs]
            )
    return table


def make_shim(folder: Path) -> Path | None:
    """A library that makes MKL use this processor's best kernels; None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    source, library = folder / "shim.c", folder / "shim.so"
    source.write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def restart(rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds from the start of launch/train.py to its first step after a restore."""
    import yaml

    from ipt_jax.core.records import Record, ShardWriter

    corpus = ROOT / "data_gen" / "sample_corpus" / "documents.jsonl"
    with ShardWriter(folder / "raw") as writer:
        for document in map(json.loads, corpus.read_text(encoding="utf-8").splitlines()):
            writer.write(Record(document["id"], document["text"], document["source"]))
    config = {
        "run_folder": str(folder / "run"),
        "model": {"preset": "quickstart"},
        "data": {
            "mixture": {"root": str(folder), "tasks": {"raw": {"source": "raw"}}},
            "row_tokens": 256,
        },
        "batch_tokens": 2048,
        "train_tokens": 2048 * 100_000,
        "metrics": {"every_steps": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    warm = folder / "warm"
    first_step(folder, warm)  # makes the checkpoint to restore, and warms the cache
    seconds: dict[str, list[float]] = {"warm cache": [], "empty cache": []}
    for number in range(rounds):
        seconds["warm cache"].append(first_step(folder, warm))
        seconds["empty cache"].append(first_step(folder, folder / f"empty{number}"))
    pairs = zip(seconds["empty cache"], seconds["warm cache"], strict=True)
    return {
        "rounds": rounds,
        "seconds_to_first_step": {name: spread(values) for name, values in seconds.items()},
        "empty_to_warm": spread([a / b for a, b in pairs]),
    }


def first_step(folder: Path, cache: Path) -> float:
    """Start the run, note when its first step is printed, and stop it with a checkpoint."""
    command = [sys.executable, "launch/train.py", "--config", str(folder / "config.yaml")]
    since = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--compilation_cache", str(cache)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    seconds = None
    for line in process.stdout:
        if line.startswith("step ") and seconds is None:
            seconds = time.perf_counter() - since
            process.send_signal(signal.SIGTERM)
    errors = process.communicate()[1]
    if seconds is None or process.returncode != 128 + signal.SIGTERM:
        raise SystemExit(f"error: launch/train.py ended with {process.returncode}: {errors}")
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, quartiles, maximum."""
    quartiles = statistics.quantiles([*values, *values], method="inclusive")  # of one value too
    ordered = (min(values), *quartiles, max(values))
    names = ("min", "lower quartile", "median", "upper quartile", "max")
    return {name: round(value, 3) for name, value in zip(names, ordered, strict=True)}


def environment() -> dict[str, Any]:
    """What the figures hold for."""
    names = ("jax", "jaxlib", "torch", "transformers", "orbax-checkpoint")
    packages = {name: metadata.version(name) for name in names}
    return {"processors": os.cpu_count(), "machine": platform.processor(), "packages": packages}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("step", "overhead", "restart"))
    parser.add_argument("--size", choices=tuple(SIZES), default="S")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="a round; default 5, and 20 for overhead")
    parser.add_argument("--output", type=Path, help="JSON file to write as well")
    options = parser.parse_args()
    steps = options.steps or (20 if options.what == "overhead" else 5)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        if options.what == "restart":
            found = restart(options.rounds, Path(folder))
        elif options.what == "overhead":
            found = overhead(options.size, options.rounds, steps)
        else:
            found = step(options.size, options.rounds, steps, Path(folder))
    text = json.dumps({"what": options.what, **found, "environment": environment()}, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
