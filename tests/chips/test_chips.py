"""Attention and the train step compiled by the chips' own compilers: `make chips`.

No chip is needed. What the compilers made is held against golden figures; after a change that is
meant to change them: `python -m tests.chips.test_chips` (a quarter of an hour).
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "chips.json"
ENVIRONMENTS = {"gpu": ROOT / ".chips/cuda/bin/python", "tpu": ROOT / ".chips/tpu/bin/python"}
# The longest first. Compiling for v6e takes twice as long as for v5p; whole 8B does not fit there.
STEPS = (
    " 4×tpu_v5p",
    "(500m_instruct 8×tpu_v6e|8×tpu_v6e --adapter)",
    " 8×h200",
    " 8×a100_80",
    " 1×h200",
)
ATTENTION = ("h200", "tpu_v5p", "a100_80", "b200", "tpu_v6e")
MEMORY = 0.02  # of the golden bytes: the compilers' passes are not all deterministic

pytestmark = pytest.mark.chips


def rows(chip: str, *arguments: str) -> dict[str, dict]:
    """What tools/chips.py finds, by case."""
    python = ENVIRONMENTS["tpu" if "tpu" in chip else "gpu"]
    if not python.exists():
        pytest.skip(f"{python.relative_to(ROOT)} is not there; make chips makes it")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        done = subprocess.run(
            [str(python), "tools/chips.py", *arguments, "--rows", str(file)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and file.exists(), done.stderr[-3000:]
        found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {name_of(row): row for row in found}


def name_of(row: dict) -> str:
    if "step" in row:
        return row["step"]
    return "{device} {backend} {mask} {head_width} {group}".format(**row)


def kept(row: dict) -> dict:
    """What is golden of a row."""
    names = ("temporary_bytes", "collectives", "kernels", "attention")
    return {key: row[key] for key in names if row.get(key)}


def compare(found: dict[str, dict]) -> None:
    assert GOLDEN.exists(), f"no {GOLDEN.name}: python -m tests.chips.test_chips writes it"
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert found, "no case was compiled"
    for name, row in found.items():
        assert "failed" not in row, f"{name}: {row.get('failed')}"
        for kernel, figures in row.get("kernels", {}).items():
            assert figures["spilled_bytes"] == 0, f"{name}: {kernel} spills: {figures}"
        assert name in golden, f"{name} has no golden figures"
        expected = golden[name]
        assert row["temporary_bytes"] == pytest.approx(
            expected["temporary_bytes"], rel=MEMORY, abs=1e6
        ), name
        # One that nobody expected is a tensor that moves for nothing.
        assert kept(row).get("collectives") == expected.get("collectives"), name
        assert kept(row).get("kernels") == expected.get("kernels"), name
        assert row.get("attention") == expected.get("attention"), name


@pytest.mark.parametrize("some", STEPS)
def test_every_step_compiles_and_moves_what_is_expected(some):
    found = rows(some, "steps", "--only", some)
    compare(found)
    # Fused attention by default, everywhere.
    assert {row["attention"] for row in found.values()} <= {"pallas_hopper", "pallas", "splash"}


@pytest.mark.parametrize("chip", ATTENTION)
def test_every_backend_compiles_for_its_chip_and_spills_nothing(chip):
    compare(rows(chip, "attention", "--device", chip))


SCAN = r"""
import re, sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from ipt_jax.attention.backends import attention
from ipt_jax.attention.spec import AttentionSpec
from ipt_jax.chips.devices import DEVICES
from ipt_jax.chips.topology import compiled_for, described_devices
from ipt_jax.models.sharding import MeshConfig, make_mesh
mesh = make_mesh(MeshConfig(), described_devices(DEVICES["h200"], 1))
whole = NamedSharding(mesh, PartitionSpec())
policy = jax.checkpoint_policies.save_only_these_names("attention")
def loss(x, ids):
    def layer(x, _):
        spec = AttentionSpec(segments=True)
        return x + attention(x, x, x, spec, ids, "pallas_hopper"), None
    y, _ = jax.lax.scan(jax.checkpoint(layer, policy=policy, prevent_cse=False), x, None, 4)
    return jnp.sum(y.astype(jnp.float32))
x = jax.ShapeDtypeStruct((2, 1024, 4, 64), jnp.bfloat16, sharding=whole)
ids = jax.ShapeDtypeStruct((2, 1024), jnp.int32, sharding=whole)
text = compiled_for(mesh, jax.jit(jax.grad(loss)), x, ids).as_text()
print(*(len(re.findall(rf"custom-call\([^\n]*attention_{name}", text)) for name in sys.argv[1:]))
"""


def test_a_scan_over_layers_runs_each_hopper_kernel_once():
    """XLA once fused the forward kernel with what the scan stores, and ran a copy for use."""
    python = ENVIRONMENTS["gpu"]
    if not python.exists():
        pytest.skip(f"{python.relative_to(ROOT)} is not there; make chips makes it")
    done = subprocess.run(
        [str(python), "-c", SCAN, "forward", "dq", "dkv"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["1", "1", "1"], done.stderr[-2000:]


def main(only: str = "") -> None:
    """Write the golden figures anew, of all chips or of those whose name matches."""
    jobs = [(some, "steps", "--only", some) for some in STEPS]
    jobs += [(chip, "attention", "--device", chip) for chip in ATTENTION]
    golden = json.loads(GOLDEN.read_text(encoding="utf-8")) if only else {}
    with ThreadPoolExecutor(2) as two:
        for found in two.map(lambda job: rows(*job), [j for j in jobs if re.search(only, j[0])]):
            for name, row in found.items():
                print(f"{name}: {row.get('failed', row.get('seconds'))}", flush=True)
            golden |= {name: kept(row) for name, row in found.items()}
            text = json.dumps(dict(sorted(golden.items())), indent=1, ensure_ascii=False)
            GOLDEN.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
