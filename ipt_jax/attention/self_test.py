"""What `auto` takes on this machine: each candidate tried on its device, in a process of its own.

A kernel can be refused by a driver, crash its process, hang, or give wrong numbers; none of that
may happen to a training run. The first candidate whose packed forward and backward pass agrees
with the reference is taken and remembered.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ipt_jax.attention.backends import CallShape, Choice, attention, choose_backend
from ipt_jax.attention.spec import PADDING, AttentionSpec
from ipt_jax.chips.devices import Target
from ipt_jax.core.files import atomic_write
from ipt_jax.core.json_lines import load_json

ALLOWED = 0.02  # relative distance of output and gradients in 16 bits to the reference in float32
SECONDS = 180.0  # for one candidate: starting JAX, compiling, running
ROWS, KV_HEADS, TOKENS = 2, 2, 512
# What decides whether a kernel compiles, besides JAX and the device's driver.
PACKAGES = (
    *("jax", "jaxlib", "libtpu"),
    *("jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
    *("nvidia-cuda-nvcc", "nvidia-cuda-nvcc-cu12"),
)
_NO_ANSWER = "gave no answer"


@dataclass(frozen=True)
class Tried:
    """What is asked of a candidate."""

    spec: AttentionSpec
    """With segments."""
    dtype: str
    """Of queries, keys and values."""
    head_width: int
    group: int
    """Query heads a key head."""


def choose_by_test(
    asked: Tried,
    row_tokens: int,
    cache: Path | None,
    *,
    ask: Callable[[Sequence[str], float], dict[str, Any]] | None = None,
) -> tuple[Target, Choice]:
    """The target of this machine and the backend that `auto` takes on it.

    JAX must not have been started on the device in this process: it would not leave the others
    memory, and a TPU to nobody else.

    Args:
      asked: the model's attention.
      row_tokens: of the run's rows.
      cache: folder where choices are kept, by device, driver, versions and code; None: nowhere.
      ask: runs this module with arguments within seconds, and returns what it says.
    """
    ask = ask or _in_a_process
    device = ask(["device"], SECONDS)
    if "failed" in device:
        return Target("cpu", "unknown"), Choice("reference", (("all", device["failed"]),))
    target = Target(**{key: device[key] for key in ("platform", "kind", "capability", "cores")})
    if cache is None:
        return target, _choose(asked, row_tokens, target, ask)
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = cache / f"{_key(asked, row_tokens, device)}.json"
    # Processes of one machine that start together: one tries, the others read what it found.
    with open(cache / "lock", "a", encoding="utf-8") as lock:
        with contextlib.suppress(OSError):  # a file system without locks: all of them try
            fcntl.flock(lock, fcntl.LOCK_EX)
        if (kept := _read(file)) is not None:
            return target, kept
        choice = _choose(asked, row_tokens, target, ask)
        # What ended without an answer may be of the moment (no memory left): tried again.
        if not any(_NO_ANSWER in why for _, why in choice.passed_over):
            atomic_write(file, json.dumps(asdict(choice)))
        return target, choice


def _read(file: Path) -> Choice | None:
    try:
        kept = load_json(file)
        return Choice(kept["name"], tuple((name, why) for name, why in kept["passed_over"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _choose(asked: Tried, row_tokens: int, target: Target, ask: Callable) -> Choice:
    def fails(name: str) -> str | None:
        said = ask(["try", name, json.dumps(asdict(asked))], SECONDS)
        far = said.get("distance")
        if far is not None and far < ALLOWED:  # not where it is no number
            return None
        return said.get("failed") or f"is off by {far:.2g} of the reference's size"

    call = CallShape(target, asked.dtype, row_tokens, asked.head_width)
    return choose_backend("auto", asked.spec, call, fails)


def _key(asked: Tried, row_tokens: int, device: dict[str, Any]) -> str:
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        code.update(file.read_bytes())
    about = [asdict(asked), row_tokens, device, code.hexdigest()]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]


def _in_a_process(arguments: Sequence[str], seconds: float) -> dict[str, Any]:
    """What this module prints in a process of its own; `failed` with the reason else."""
    # It takes what memory it needs, beside what already uses the device.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        # A session of its own, so that the compilers that it starts end with it.
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, *arguments],
            env=environment,
            stdout=said,
            stderr=errors,
            start_new_session=True,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it for good
                process.wait(10)
            return {"failed": f"{_NO_ANSWER} within {seconds:g} s"}
        said.seek(0)
        errors.seek(0)
        try:
            return json.loads(said.read().splitlines()[-1])
        except (IndexError, ValueError):
            last = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
            said_last = f"its process ended with {process.returncode}: {last[:300]}"
            return {"failed": f"{_NO_ANSWER}: {said_last}"}


def device_here() -> dict[str, Any]:
    """The first device of this process, and what its kernels depend on."""
    found = dataclasses.replace(Target.of(jax.local_devices()[0]), mesh=None)
    driver = Path("/proc/driver/nvidia/version")
    return {
        **{key: getattr(found, key) for key in ("platform", "kind", "capability", "cores")},
        "driver": driver.read_text().splitlines()[0] if driver.exists() else "",
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def distance_to_reference(backend: str, asked: Tried) -> float:
    """The largest of output, dq, dk, dv: ‖found - reference‖ / ‖reference‖; inf if not finite."""
    heads = KV_HEADS * asked.group
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, d_out = (
        jax.random.normal(key, (ROWS, TOKENS, n, asked.head_width), jnp.float32).astype(asked.dtype)
        for key, n in zip(keys, (heads, KV_HEADS, KV_HEADS, heads), strict=True)
    )
    # A segment of one token, some that cross tiles, padding at an end; and one whole row.
    lengths = (1, 100, 27, 65, 190, TOKENS - 383 - 40, 40)
    first = np.repeat([*range(1, len(lengths)), PADDING], lengths)
    ids = jnp.asarray(np.stack([first, np.ones(TOKENS)]), jnp.int32)

    spec = asked.spec
    if spec.window is not None:  # one that the few tokens here do feel
        spec = dataclasses.replace(spec, window=min(spec.window, 80))

    def run(backend: str, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        out, backward = jax.vjp(lambda q, k, v: attention(q, k, v, spec, ids, backend), *arrays[:3])
        return out, *backward(arrays[3])

    found = jax.jit(run, static_argnums=0)(backend, q, k, v, d_out)
    exact = (x.astype(jnp.float32) for x in (q, k, v, d_out))
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(run, static_argnums=0)("reference", *exact)
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
        if not np.isfinite(a).all():
            return float("inf")
        worst = max(worst, float(np.linalg.norm(a - b) / np.linalg.norm(b)))
    return worst


def main(arguments: Sequence[str]) -> None:
    """`device`, or `try BACKEND ASKED`: one line of JSON."""
    if arguments[0] == "device":
        print(json.dumps(device_here()))
        return
    given = json.loads(arguments[2])
    asked = Tried(**{**given, "spec": AttentionSpec(**given["spec"])})
    print(json.dumps({"distance": distance_to_reference(arguments[1], asked)}))


if __name__ == "__main__":
    main(sys.argv[1:])
