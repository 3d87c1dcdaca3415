"""The walls between the rooms, read from the source and tried in a fresh interpreter."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest

from tools.floors import BEGIN, END, circle, imports, module_graph, room_graph, table

ROOT = Path(__file__).parent.parent
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "grain"}
TORCH = {"torch", "transformers", "vllm", "lm_eval", "sentence_transformers", "accelerate", "peft"}
OURS = {"ipt_jax", "data_gen", "launch", "tools", "tests"}
# Folder -> what it may import of ours beside itself. The roof is chains.
MAY_IMPORT = {
    "ipt_jax/core": set(),
    "ipt_jax/chips": {"ipt_jax.core"},
    "ipt_jax/data": {"ipt_jax.core"},
    "ipt_jax/attention": {"ipt_jax.core", "ipt_jax.chips"},
    "ipt_jax/models": {"ipt_jax.core", "ipt_jax.chips", "ipt_jax.attention"},
    "ipt_jax/hf": {"ipt_jax.core", "ipt_jax.models"},
    "ipt_jax/training": {
        *("ipt_jax.core", "ipt_jax.chips", "ipt_jax.attention", "ipt_jax.models"),
        *("ipt_jax.data", "ipt_jax.hf"),
    },
    "ipt_jax/evaluation": {"ipt_jax.core"},
    "ipt_jax/chains": {"ipt_jax", "data_gen"},
    "data_gen": {"ipt_jax.core"},
    "launch": {"ipt_jax", "data_gen"},
    "tools": {"ipt_jax", "data_gen"},
}
# Folder -> libraries that nothing in it may import.
FORBIDDEN = {
    "ipt_jax/core": JAX | TORCH,
    **dict.fromkeys(
        (f"ipt_jax/{room}" for room in "chips data attention models hf training".split()), TORCH
    ),
    "data_gen": JAX,
}
VERIFY = "ipt_jax/hf/verify.py"  # parity with transformers and peft, only behind --verify
SEQIO = "ipt_jax.data.seqio_registry"  # TensorFlow: seqio's users import it, nothing of ours does


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def within(module: str, names: set[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in names)


@functools.cache
def imported(folder: str) -> list[tuple[str, str]]:
    """Place and name of each import in a folder."""
    assert files(folder), f"{folder} is gone; mend this test"
    found = []
    for path in files(folder):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        where = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8")
        found += [(f"{where}:{line}", name) for line, name in imports(text, package)]
    return found


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_room_uses_its_own_floor_and_those_below(folder: str) -> None:
    allowed = MAY_IMPORT[folder] | {folder.replace("/", ".")} - {"launch", "tools"}
    crossings = [
        f"{where} imports {name}"
        for where, name in imported(folder)
        if within(name, OURS) and (not within(name, allowed) or within(name, {SEQIO}))
    ]
    assert crossings == []


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_room_does_without_the_other_stack(folder: str) -> None:
    crossings = [
        f"{where} imports {name}"
        for where, name in imported(folder)
        if within(name, FORBIDDEN[folder]) and not where.startswith(f"{VERIFY}:")
    ]
    assert crossings == []


def test_every_room_has_its_walls() -> None:
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "ipt_jax").glob("*/*.py")}
    assert rooms == {folder for folder in MAY_IMPORT if folder.startswith("ipt_jax/")}


@pytest.fixture(scope="module")
def modules() -> dict[str, set[str]]:
    return module_graph()


def test_nothing_imports_in_a_circle(modules: dict[str, set[str]]) -> None:
    assert circle(modules) == []
    assert circle(room_graph(modules)) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_the_page_draws_these_floors(modules: dict[str, set[str]]) -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    drawn = page.partition(BEGIN)[2].partition(END)[0]
    assert drawn == table(room_graph(modules)), (
        "draw them anew: python tools/floors.py --write docs/architecture.md"
    )


def test_launch_scripts_are_wiring() -> None:
    for path in files("launch"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60, path


def test_imports_are_read_as_python_reads_them() -> None:
    source = "import a.b\nfrom . import c\nfrom ..d import e\ndef f():\n    from torch import nn\n"
    assert [name for _, name in imports(source, "p.q")] == ["a.b", "p.q.c", "p.d.e", "torch.nn"]
    assert within("torch.nn", {"torch"}) and not within("torchtitan", {"torch"})


@pytest.mark.parametrize(
    ("brought", "absent"),
    [
        (
            "ipt_jax.core.records, ipt_jax.core.tokenizers, ipt_jax.data.token_run, "
            "ipt_jax.evaluation.harness, ipt_jax.evaluation.page",
            {"jax", "torch", "tensorflow", "datasets", "pyarrow"},
        ),
        ("data_gen", {"jax", "tensorflow"}),
        (
            "ipt_jax.core.errors, ipt_jax.core.run_folder, "
            "ipt_jax.core.report.page, ipt_jax.core.report.markdown",
            {"jax", "torch", "numpy", "jinja2", "plotly"},
        ),
        (
            "ipt_jax.training.loop, ipt_jax.hf.export",
            {"torch", "transformers", "tensorflow", "seqio", "datasets", "pyarrow"},
        ),
    ],
)
def test_what_an_import_brings_along(brought: str, absent: set[str]) -> None:
    code = f"import sys, {brought}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert not absent & set(done.stdout.split())
