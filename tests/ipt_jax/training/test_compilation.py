"""The compilation cache across two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CODE = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from ipt_jax.training.compilation import enable_compilation_cache
counts = {"cache_hits": 0, "cache_misses": 0}
def count(name, **_):
    if name.rsplit("/", 1)[-1] in counts:
        counts[name.rsplit("/", 1)[-1]] += 1
jax.monitoring.register_event_listener(count)
jax.config.update("jax_platforms", "cpu")
jnp.zeros(7).block_until_ready()  # made before the cache is asked for: does no harm
enable_compilation_cache(Path(sys.argv[1]))
step = jax.jit(lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c @ c), None), x, length=3)[0],
               donate_argnums=0)
x = jnp.eye(64) + 0.01
for _ in range(3):
    x = step(x)
print(counts["cache_hits"], counts["cache_misses"], float(x.sum()).hex())
"""


def start(folder: Path) -> tuple[list[str], str]:
    # Without the folder that all tests share.
    environment = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    done = subprocess.run(
        [sys.executable, "-c", CODE, folder],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


def test_the_second_process_compiles_nothing_and_computes_the_same(tmp_path):
    folder = tmp_path / "deep" / "cache"
    (hits, misses, result), _ = start(folder)
    assert hits == "0" and int(misses) >= 2
    assert folder.stat().st_mode & 0o077 == 0, "others could put code there"
    kept = {path.name for path in folder.iterdir()}
    (hits_again, misses_again, result_again), errors = start(folder)
    if "doesn't match the machine type" in errors:
        pytest.skip("this jaxlib refuses its own CPU programs on this processor")
    assert (hits_again, misses_again) == (misses, "0")
    assert result_again == result
    assert {path.name for path in folder.iterdir()} == kept
