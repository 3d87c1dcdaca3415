"""Every command of the README runs, in order, in a copy of the project."""

import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)

# What a test adds to a command so that it ends soon; the command itself stays as it is printed.
SHORTER = {
    "launch/synthesize.py": ["--limit", "40", "--engine.max_tokens", "160"],
    "launch/train.py": ["--train_tokens", "16384"],
    "launch/evaluate.py": ["--limit", "8"],
    "launch/quickstart.py": ["--minutes", "0.7", "--evaluation.limit", "8"],
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


def run(checkout: Path, command: list[str], timeout: float = 600) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, (
        f"{shlex.join(command)}\n{done.stdout[-1000:]}{done.stderr[-3000:]}"
    )
    return done.stdout


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


def test_every_other_command_runs_in_order(checkout):
    ran = []
    for program, *command in commands()[2:]:
        assert program == "python", f"the README has a command that this test cannot run: {program}"
        other = {"--dry_run", "--method"} & {*command}  # of one document in a second, or none
        shorter = [] if other else SHORTER.get(command[0], [])
        run(checkout, [*command, *shorter])
        ran.append(command[0])
    scripts = {f"launch/{name}.py" for name in ("synthesize", "train", "convert", "evaluate")}
    assert scripts <= set(ran)
    summary = json.loads((checkout / "runs/quickstart/synthesis/summary.json").read_text())
    parts = ("documents_augmented", "documents_plain", "documents_rejected")
    assert summary["documents_in"] == 40 == sum(summary[part] for part in parts)
    assert summary["documents_augmented"] > 0 and summary["pairs"] > 0
    assert (checkout / "runs/quickstart/train_vanilla/export/model.safetensors").exists()
    assert (checkout / "runs/converted/checkpoints").is_dir()
    results = json.loads((checkout / "runs/quickstart/evaluation/results.json").read_text())
    assert {row["task"] for row in results["table"]} >= {"sample_continuation"}


def stop_while_synthesising(checkout: Path, command: list[str]) -> None:
    """Ctrl-C as soon as the first completions are in the ledger."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    ledger = checkout / "runs/quickstart/synthesis/ledger.sqlite"
    patience = time.monotonic() + 900
    while kept(ledger) == 0:
        assert process.poll() is None and time.monotonic() < patience
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130 and "goes on from here" in said


def kept(ledger: Path) -> int:
    if not ledger.exists():
        return 0
    with closing(sqlite3.connect(ledger, timeout=30)) as connection:
        try:
            return connection.execute("select count(*) from completions").fetchone()[0]
        except sqlite3.OperationalError:
            return 0  # the table is not made yet


def test_quickstart_stopped_finished_and_skipped(checkout):
    shutil.rmtree(checkout / "runs", ignore_errors=True)
    command = ["launch/quickstart.py", *SHORTER["launch/quickstart.py"]]
    stop_while_synthesising(checkout, command)
    printed = run(checkout, command)
    report = Path(re.search(r"report: (.*)", printed)[1])  # type: ignore[index]
    page = report.read_text(encoding="utf-8")
    assert report == checkout / "runs/quickstart/report.html"
    folder = checkout / "runs/quickstart"
    summary = json.loads((folder / "synthesis/summary.json").read_text())
    parts = ("documents_augmented", "documents_plain", "documents_rejected")
    assert summary["documents_in"] == 292 == sum(summary[part] for part in parts)
    tokens = {
        name: json.loads((folder / f"train_{name}/summary.json").read_text())["tokens"]
        for name in ("vanilla", "instruct")
    }
    assert tokens["vanilla"] == tokens["instruct"] > 0
    assert "not which data makes the better model" in page and "<svg" in page
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    again = run(checkout, command)
    assert again.count("skipped") >= 4
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


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
