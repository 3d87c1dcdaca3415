"""What the chips' own compilers make of attention and of the train step; nothing runs.

    .chips/cuda/bin/python tools/chips.py attention --device h200 --rows rows.jsonl
    .chips/tpu/bin/python tools/chips.py steps --only v5p --rows rows.jsonl

Needs the environment of the chip's compiler (`make chips` makes both). A row for each case goes to
`--rows` when it is there: bytes of temporaries, collectives by kind, and registers, spilled bytes
and shared memory of our kernels; a case that does not compile has the reason.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Before JAX: it compiles for what is not here, and Mosaic writes what the assembler says.
os.environ["JAX_PLATFORMS"] = "cpu"
DUMP = tempfile.mkdtemp(prefix="chips-")
os.environ |= {"MOSAIC_GPU_DUMP_TO": DUMP, "MOSAIC_GPU_DUMP_PTXAS": "1"}

from ipt_jax.core.errors import importing  # noqa: E402

with importing():
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from ipt_jax.attention.backends import attention
    from ipt_jax.attention.spec import AttentionSpec
    from ipt_jax.chips.devices import DEVICES
    from ipt_jax.chips.topology import compiled_for, described_devices
    from ipt_jax.core.configuration import parse_config
    from ipt_jax.core.errors import UserError, did_you_mean
    from ipt_jax.models.sharding import MeshConfig, make_mesh
    from ipt_jax.training.config import TrainConfig
    from ipt_jax.training.dry_run import compile_ahead

ROOT = Path(__file__).parent.parent
COLLECTIVES = "all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute"
MASKS = {
    "causal": AttentionSpec(),
    "window": AttentionSpec(window=512),
    "segments": AttentionSpec(segments=True),
    "both": AttentionSpec(segments=True, window=512),
}
# Chip -> its backends, each with the masks that it does.
CASES: dict[str, dict[str, tuple[str, ...]]] = {
    "h200": {
        "pallas_hopper": tuple(MASKS),
        "cudnn_packed": ("segments", "both"),
        "cudnn": ("causal", "window"),
        "pallas": tuple(MASKS),
    },
    "a100_80": {"pallas": tuple(MASKS), "cudnn": ("causal", "window")},
    "b200": {"cudnn_packed": ("segments", "both"), "pallas": ("segments",)},
    "tpu_v5p": {"splash": tuple(MASKS)},
    "tpu_v6e": {"splash": ("segments",)},
}
WIDTHS, GROUPS = (64, 96, 128), (1, 4)
LORA = ("--adapter.rank", "64", "--adapter.base_dtype", "bfloat16")


@dataclass(frozen=True)
class Step:
    """A config's step on some devices."""

    config: str
    """Of configs/train."""
    device: str
    count: int
    options: tuple[str, ...] = ()
    """As on the command line of launch/train.py."""

    @property
    def name(self) -> str:
        """For a person, and to choose by."""
        return " ".join([self.config, f"{self.count}×{self.device}", *self.options])


_FSDP = ("--mesh.data", "1", "--mesh.fsdp", "-1")
_TENSOR = ("--mesh.data", "-1", "--mesh.fsdp", "1", "--mesh.tensor", "2")
_MODELS = {
    "ipt_500m_instruct": (),
    "ipt_1_3b_instruct": (),
    "llama3_8b_finance": (),
    "llama3_8b_finance with adapters": LORA,
}
STEPS = tuple(
    Step(name.split(" ")[0], device, count, (*options, *mesh))
    for name, options in _MODELS.items()
    for device, count, mesh in (
        ("h200", 1, _FSDP),
        ("h200", 8, _FSDP),
        ("h200", 8, _TENSOR),
        ("a100_80", 8, _FSDP),
        ("tpu_v5p", 4, _FSDP),
        ("tpu_v6e", 8, _FSDP),
    )
)


def attention_rows(device: str, only: str) -> Iterator[dict[str, Any]]:
    """Every case of a chip: forward and backward of two rows, one program."""
    mesh = make_mesh(MeshConfig(), described_devices(DEVICES[device], 1))
    cases = (
        (backend, mask, width, group)
        for backend, masks in CASES[device].items()
        for mask, width, group in itertools.product(masks, WIDTHS, GROUPS)
        if mask != "both" or (width, group) == (128, 4)  # as Mistral has them
    )
    for backend, mask, width, group in cases:
        name = f"{backend} {mask} {width} {group}"
        if re.search(only, name):
            about = {"device": device, "backend": backend, "mask": mask}
            run = _attention(MASKS[mask], backend)
            arrays = _arrays(mesh, MASKS[mask], width, group)
            # A kernel of Triton that spills has no program.
            spills = {"xla_gpu_fail_ptx_compilation_on_register_spilling": True}
            options = spills if DEVICES[device].gpu else None
            row = _timed(lambda: compiled_for(mesh, run, *arrays, options=options))  # noqa: B023
            yield {**about, "head_width": width, "group": group, **row, "kernels": _kernels()}


def _attention(spec: AttentionSpec, backend: str) -> Any:
    @jax.jit
    def both(q: Any, k: Any, v: Any, d_out: Any, ids: Any) -> Any:
        segments = ids if spec.segments else None
        out, backward = jax.vjp(
            lambda q, k, v: attention(q, k, v, spec, segments, backend), q, k, v
        )
        return out, backward(d_out)

    return both


def _arrays(mesh: Any, spec: AttentionSpec, width: int, group: int) -> list[Any]:
    B, T, H = 2, 2048, 8
    shapes = [(B, T, n, width) for n in (H, H // group, H // group, H)]
    sharding = NamedSharding(mesh, PartitionSpec())
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding) for shape in shapes]
    return [*arrays, jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=sharding)]


def step_rows(only: str, hlo: Path | None) -> Iterator[dict[str, Any]]:
    """Every step whose chip's compiler is installed here."""
    for step in STEPS:
        if re.search(only, step.name):
            arguments = [
                *("--config", str(ROOT / "configs/train" / f"{step.config}.yaml")),
                *("--dry_run_device", step.device, "--dry_run_devices", str(step.count)),
                *step.options,
            ]
            config = parse_config(TrainConfig, arguments, prog="chips", description="")
            if "--adapter.rank" in step.options:
                config = replace(config, rows_per_device=1)
            found: list[Any] = []

            def compiled(config: TrainConfig = config, found: list[Any] = found) -> Any:
                found.append(compile_ahead(config))
                return found[0].compiled

            row = {"step": step.name, **_timed(compiled)}
            if found:
                row |= {"attention": found[0].setup.attention.name, "findings": found[0].findings}
                if hlo is not None:
                    file = hlo / f"{re.sub(r'[^a-z0-9]+', '_', step.name)}.hlo"
                    file.write_text(found[0].compiled.as_text(), encoding="utf-8")
            yield row


def _timed(compile_it: Callable[[], Any]) -> dict[str, Any]:
    """Seconds, bytes and collectives of one compilation, or why there is none."""
    begin = time.monotonic()
    try:
        compiled = compile_it()
    except (RuntimeError, ValueError, NotImplementedError, UserError) as error:
        return {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"}
    memory = compiled.memory_analysis()
    kinds = re.findall(rf" ({COLLECTIVES})(?:-start)?\(", compiled.as_text())
    return {
        "seconds": round(time.monotonic() - begin, 1),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "collectives": dict(sorted(collections.Counter(kinds).items())),
    }


def _kernels() -> dict[str, dict[str, int]]:
    """Of the Mosaic kernels that were compiled since the last call, by name."""
    found = {}
    for file in sorted(Path(DUMP).glob("*.ptxas")):
        said = file.read_text(encoding="utf-8", errors="replace")
        spilled = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", said)]
        scratch = re.search(
            r"smem_scratch_bytes=(\d+)", file.with_suffix(".resources.txt").read_text()
        )
        found[re.sub(r"_\d+$", "", file.stem)] = {
            "registers": max(int(n) for n in re.findall(r"Used (\d+) registers", said)),
            "spilled_bytes": sum(spilled),
            "shared_bytes": int(scratch[1]) if scratch else 0,
        }
    for file in Path(DUMP).iterdir():
        file.unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("attention", "steps"))
    parser.add_argument("--device", help=f"of attention: {', '.join(CASES)}")
    parser.add_argument("--only", default="", help="a regular expression on the case's name")
    parser.add_argument("--rows", type=Path, help="file for a line of JSON a case")
    parser.add_argument("--hlo", type=Path, help="of steps: folder for the optimised programs")
    given = parser.parse_args()
    if given.what == "attention" and given.device not in CASES:
        raise SystemExit(
            f"error: --device {given.device}: {did_you_mean(str(given.device), CASES)}"
        )
    try:
        if given.what == "attention":
            rows = attention_rows(given.device, given.only)
        else:
            rows = step_rows(given.only, given.hlo)
        for row in rows:
            line = json.dumps(row)
            print(line, flush=True)
            if given.rows is not None:
                with given.rows.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    finally:
        shutil.rmtree(DUMP, ignore_errors=True)


if __name__ == "__main__":
    main()
