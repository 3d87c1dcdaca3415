"""Large blocks that are freed and asked for again cost no page faults."""

import subprocess
import sys
from pathlib import Path

import pytest

from ipt_jax.training.host_memory import configure_malloc

ROOT = Path(__file__).parents[3]
CODE = """
import resource, sys
import numpy as np
from ipt_jax.training.host_memory import configure_malloc
kept = configure_malloc() if sys.argv[1] == "keep" else None
np.ones(4 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(4 << 20)  # 32 MB, 8192 pages
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(what: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", CODE, what], cwd=ROOT, capture_output=True, text=True, check=True
    )
    kept, count = done.stdout.split()
    return kept, int(count)


def test_beside_an_accelerator_nothing_is_changed(tmp_path):
    (tmp_path / "nvidia0").touch()
    assert configure_malloc(tmp_path) is False


def test_freed_memory_is_kept():
    kept, count = faults("keep")
    if kept == "False":
        pytest.skip("this C library cannot be told to keep freed memory")
    _, without = faults("leave")
    assert count < 1000 and count * 10 < max(without, 10_000)
