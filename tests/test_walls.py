"""The walls between the packages, read from the source and tried in a fresh interpreter."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "grain"}
TORCH = {"torch", "transformers", "vllm", "lm_eval", "sentence_transformers", "accelerate", "peft"}
OUTSIDE = {"launch", "tools", "tests"}
# Folder -> what nothing in it may import, by leading names.
FORBIDDEN = {
    "ipt_jax": TORCH | OUTSIDE | {"data_gen", "tensorflow", "seqio", "ipt_jax.data.seqio_registry"},
    "ipt_jax/models": {"ipt_jax.training", "ipt_jax.data", "ipt_jax.hf", "ipt_jax.evaluation"},
    "ipt_jax/attention": {
        *("ipt_jax.training", "ipt_jax.data", "ipt_jax.hf", "ipt_jax.evaluation"),
        "ipt_jax.models",
    },
    "ipt_jax/chips": {
        *("ipt_jax.training", "ipt_jax.data", "ipt_jax.hf", "ipt_jax.evaluation"),
        *("ipt_jax.models", "ipt_jax.attention"),
    },
    "ipt_jax/data": {
        *("ipt_jax.models", "ipt_jax.attention", "ipt_jax.training", "ipt_jax.hf"),
        "ipt_jax.evaluation",
    },
    "ipt_jax/evaluation": JAX | {"ipt_jax.training", "ipt_jax.models", "ipt_jax.hf"},
    "ipt_jax/core": JAX,
    "data_gen": JAX | OUTSIDE | {"tensorflow"},
    "launch": OUTSIDE,
    "tools": OUTSIDE,
}
# Folder -> all that it may import of our own packages.
MAY_IMPORT = {
    "ipt_jax/core": {"ipt_jax.core", "ipt_jax.errors"},
    "data_gen": {
        *("ipt_jax.core", "ipt_jax.errors", "ipt_jax.example_proto", "ipt_jax.records"),
        *("data_gen", "ipt_jax.shard_file", "ipt_jax.tokenizers"),
    },
}
# Exceptions, each with its reason.
ALLOWED = {
    # The parity check against transformers and peft, which runs only behind --verify.
    ("ipt_jax/hf/verify.py", "torch"),
    ("ipt_jax/hf/verify.py", "transformers"),
    ("ipt_jax/hf/verify.py", "peft"),
    # Runs as a process of its own, which nothing imports.
    ("ipt_jax/evaluation/lm_eval_process.py", "lm_eval"),
    # seqio is TensorFlow; nothing else imports this file.
    ("ipt_jax/data/seqio_registry.py", "tensorflow"),
    ("ipt_jax/data/seqio_registry.py", "seqio"),
}


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(source: str, package: str = "") -> Iterator[tuple[int, str]]:
    """Line and full name of each module that `source` imports, in functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            # `from ipt_jax import data` names the module ipt_jax.data.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def package_of(path: Path) -> str:
    return ".".join(path.parent.relative_to(ROOT).parts)


def within(module: str, name: str) -> bool:
    return module == name or module.startswith(name + ".")


def crossings(folder: str, forbidden: set[str]) -> list[str]:
    found = []
    for path in files(folder):
        where = path.relative_to(ROOT).as_posix()
        for line, module in imports(path.read_text(encoding="utf-8"), package_of(path)):
            for name in forbidden:
                if within(module, name) and (where, name) not in ALLOWED:
                    found.append(f"{where}:{line} imports {module}")
    return found


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_wall_is_crossed(folder: str) -> None:
    assert files(folder), f"{folder} is gone; mend this test"
    assert crossings(folder, FORBIDDEN[folder]) == []


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_only_these_rooms_of_ours_are_used(folder: str) -> None:
    found = []
    for path in files(folder):
        for line, module in imports(path.read_text(encoding="utf-8"), package_of(path)):
            ours = any(within(module, package) for package in ("ipt_jax", "data_gen", *OUTSIDE))
            if ours and not any(within(module, room) for room in MAY_IMPORT[folder]):
                found.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert found == []


def test_contributing_names_the_same_rooms() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    said = re.search(r"- `data_gen` .* of `ipt_jax` only ([^.]*)\.", text, re.DOTALL)
    rooms = {f"ipt_jax.{name}" for name in re.findall(r"`(\w+)`", said[1] if said else "")}
    assert rooms == MAY_IMPORT["data_gen"] - {"data_gen"}


def test_launch_scripts_are_wiring() -> None:
    for path in files("launch"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 160, path


def test_imports_are_read_as_python_reads_them() -> None:
    source = "import a.b\nfrom . import c\nfrom ..d import e\ndef f():\n    from torch import nn\n"
    assert [name for _, name in imports(source, "p.q")] == ["a.b", "p.q.c", "p.d.e", "torch.nn"]
    assert within("torch.nn", "torch") and not within("torchtitan", "torch")


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("ipt_jax.errors, ipt_jax.records, ipt_jax.tokenizers", {"jax", "torch", "tensorflow"}),
        ("ipt_jax.core.files, ipt_jax.core.run_folder", {"jax", "torch", "numpy"}),
        ("data_gen", {"jax", "tensorflow"}),
        ("ipt_jax.evaluation.harness, ipt_jax.evaluation.report", {"jax", "torch", "tensorflow"}),
        (
            "ipt_jax.training.loop, ipt_jax.hf.export",
            {"torch", "transformers", "tensorflow", "seqio", "datasets", "pyarrow"},
        ),
        ("ipt_jax.data.token_run", {"jax", "torch", "tensorflow", "datasets", "pyarrow"}),
    ],
)
def test_what_an_import_brings_along(modules: str, absent: set[str]) -> None:
    code = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert not absent & set(done.stdout.split())
