"""Every command of the README runs, in order, in a copy of the project."""

import contextlib
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from ipt_jax.chains.quickstart import QuickstartConfig, scaled
from ipt_jax.core.configuration import parse_config

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)

# Of the quickstart: documents enough for some pairs, and three steps of each training.
SHORT = ["--minutes", "0.7", "--training.train_tokens", "60000"]
LEDGER = "runs/quickstart/synthesis/ledger.sqlite"
# Runs one command after another in one process, as each would run in its own, and tells what they
# printed, when it ended and with what. Starts are most of what so small runs take.
IN_ONE_PROCESS = """
import contextlib, io, json, runpy, sys, time
told, *commands = json.load(sys.stdin)
printed = []
for sys.argv in commands:
    out, code = io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    printed.append((out.getvalue(), time.time_ns(), code))
with open(told, "w") as file:
    json.dump(printed, file)
"""
# Ctrl-C as soon as the first completions are in the ledger.
STOPPED = f"""
import os, signal
from data_gen.stages.ledger import Ledger
from tests.test_readme import LEDGER, kept
commit = Ledger.commit
def stopping(self):
    commit(self)
    if kept(LEDGER):
        Ledger.commit = commit
        os.kill(os.getpid(), signal.SIGINT)
Ledger.commit = stopping
{IN_ONE_PROCESS}
"""


def shorter(cache: Path) -> dict[str, list[str]]:
    """What is added to a script's command so that it ends soon; else it stays as it is printed.

    Sizes are those of the small quickstart, whose folder they find, as printed ones find a whole's.
    """
    with contextlib.chdir(ROOT):
        arguments = ["--config", "configs/quickstart.yaml", *SHORT]
        sizes = scaled(parse_config(QuickstartConfig, arguments, prog="", description=""))
    short = [*SHORT, "--evaluation.limit", "8"]
    engine = {"engine.cache_folder": str(cache), "engine.max_tokens": "128"}
    return {
        "launch/quickstart.py": [*short, *(f"--synthesis.{k}={v}" for k, v in engine.items())],
        "launch/synthesize.py": [
            f"--fraction={sizes.synthesis.fraction}",
            *(f"--{k}={v}" for k, v in engine.items()),
        ],
        "launch/train.py": ["--train_tokens", str(sizes.training.train_tokens)],
        "launch/evaluate.py": ["--limit", "8"],
    }


def commands() -> list[list[str]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for block in BLOCK.findall(text) for line in block.splitlines() if line.strip()]
    return [shlex.split(line) for line in lines]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The files that git would give a new user (and those not yet committed)."""
    folder = tmp_path_factory.mktemp("checkout") / "ipt-jax"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("needs the git repository to know which files belong to the project")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():  # listed, but deleted and not yet committed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def run(checkout: Path, program: str, *commands: list[str]) -> list[tuple[str, int, int]]:
    """What each of them printed, when it ended as st_mtime_ns, and its exit code."""
    told = checkout / "printed.json"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps([str(told), *commands]),
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}{done.stderr[-3000:]}"
    return json.loads(told.read_text())


def test_the_two_make_commands_do_what_the_readme_says():
    assert commands()[:2] == [["make", "quickstart"], ["make", "test"]]
    shown = subprocess.run(
        ["make", "--dry-run", "--always-make", "quickstart", "test"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "launch/quickstart.py" in shown and "-m pytest" in shown
    assert "pip sync" in shown and "locks/cpu.txt" in shown


def kept(ledger: str) -> int:
    """Completions in it."""
    if not Path(ledger).exists():
        return 0
    with contextlib.closing(sqlite3.connect(ledger, timeout=30)) as connection:
        try:
            return connection.execute("select count(*) from completions").fetchone()[0]
        except sqlite3.OperationalError:
            return 0  # the table is not made yet


def test_every_command_runs_in_order_and_quickstart_goes_on_where_it_stopped(checkout, smollm2):
    """The commands after `make quickstart` find its folder as it left it."""
    added = shorter(smollm2.parent)
    quickstart = ["launch/quickstart.py", *added["launch/quickstart.py"]]
    asked, dry = [], []
    for program, *command in commands()[2:]:
        assert program == "python", f"the README has a command that this test cannot run: {program}"
        if "--dry_run" in command:  # pretends to have devices: in a process of its own
            dry.append(command)
        elif "--method" in command:
            asked.append(command)
        else:
            asked.append([*command, *added.get(command[0], [])])
    assert len(dry) == 1
    scripts = {f"launch/{name}.py" for name in ("synthesize", "train", "convert", "evaluate")}
    assert scripts <= {command[0] for command in asked}
    commands_run = [quickstart, quickstart, quickstart, *asked]
    stopped, *finished = run(checkout, STOPPED, *commands_run)
    assert stopped[2] == 130 and "goes on from here" in stopped[0]
    for command, (said, _, code) in zip(commands_run[1:], finished, strict=True):
        assert code == 0, f"{command} {said[-3000:]}"
    (first, ended, _), (again, *_), *_ = finished
    assert again.count("skipped") >= 4
    report = Path(re.search(r"report: (.*)", first)[1])  # type: ignore[index]
    page = report.read_text(encoding="utf-8")
    assert report == checkout / "runs/quickstart/report.html"
    folder = checkout / "runs/quickstart"
    summary = json.loads((folder / "synthesis/summary.json").read_text())
    parts = ("documents_augmented", "documents_plain", "documents_rejected")
    assert summary["documents_in"] == 292 == sum(summary[part] for part in parts)
    assert summary["documents_augmented"] > 0 and summary["pairs"] > 0
    tokens = {
        name: json.loads((folder / f"train_{name}/summary.json").read_text())["tokens"]
        for name in ("vanilla", "instruct")
    }
    assert tokens["vanilla"] == tokens["instruct"] > 0
    assert "not which data makes the better model" in page and "<svg" in page
    # The second run left what the first had made; of the other a command makes an export anew.
    weights = folder / "train_instruct/export/model.safetensors"
    assert weights.stat().st_mtime_ns < ended
    assert (folder / "train_vanilla/export/model.safetensors").exists()
    [(said, _, code)] = run(checkout, IN_ONE_PROCESS, *dry)
    assert code == 0, said[-3000:]
    assert (checkout / "runs/converted/checkpoints").is_dir()
    results = json.loads((folder / "evaluation/results.json").read_text())
    assert {row["task"] for row in results["table"]} >= {"sample_continuation"}


def test_the_preset_table_is_true():
    from ipt_jax.models.config import PRESETS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.MULTILINE)
    shown = {name: [cell.strip() for cell in cells.split("|")][:5] for name, cells in rows}
    assert shown == {
        name: [
            f"{p.parameter_count():,}", str(p.layers), str(p.width),
            f"{p.heads} ({p.kv_heads})", f"{p.vocabulary_size:,}",
        ]
        for name, p in PRESETS.items()
    }  # fmt: skip


def test_every_path_of_the_readme_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link
    tree = re.search(r"^```\nipt_jax/.*?^```", text, re.MULTILINE | re.DOTALL)
    assert tree
    parent = ""
    for line in tree[0].splitlines()[1:-1]:
        name = line.split()[0]
        path = parent + name if line.startswith("  ") else name
        assert (ROOT / path).exists(), path
        if not line.startswith("  "):
            parent = name
