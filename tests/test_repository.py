"""What the repository promises: locks with hashes, no addresses, launch scripts that answer."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.launching import ROOT, launch

LOCKS = sorted((ROOT / "locks").glob("*.txt"))
PINNED = re.compile(r"[A-Za-z0-9._-]+(\[[a-z0-9,-]+\])?==\S+( ; .+)? \\")
HASH = re.compile(r" {4}--hash=sha256:[0-9a-f]{64}( \\)?")
LAUNCH = sorted((ROOT / "launch").glob("*.py"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_four_locks_are_there() -> None:
    assert [path.stem for path in LOCKS] == ["cpu", "cuda-synthesis", "cuda-train", "tpu-train"]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_locks_pin_and_hash_everything_and_name_no_address(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "://" not in text and "--index" not in text and "--find-links" not in text
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(lines) > 100
    previous = "first"
    for line in lines:
        if line.startswith(" "):
            assert HASH.fullmatch(line), line
        else:
            assert PINNED.fullmatch(line), line
            assert not previous.endswith("\\"), f"{line} follows a line that goes on"
        assert line.startswith(" ") or previous == "first" or HASH.fullmatch(previous), line
        previous = line


def test_the_cpu_lock_covers_what_the_quickstart_and_the_tests_need() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = list(project["dependencies"])
    for extra in ("synthesis", "tokenizers", "evaluation", "quickstart", "test"):
        asked += extras[extra]
    names = {normal(re.split(r"[\[<>=!~; ]", need)[0]) for need in asked} - {"ipt-jax"}
    lock = (ROOT / "locks" / "cpu.txt").read_text(encoding="utf-8")
    locked = {normal(name) for name in re.findall(r"^([A-Za-z0-9._-]+)(?:\[.*\])?==", lock, re.M)}
    assert names <= locked


def test_extras_are_the_promised_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    promised = "synthesis evaluation seqio ray cuda tpu quickstart test".split()
    assert set(promised) <= set(project["optional-dependencies"])


def test_locks_with_addresses_stay_out() -> None:
    done = subprocess.run(
        ["git", "ls-files", "uv.lock", "pylock*.toml", ".venv", ".tools"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    assert done.stdout.strip() == ""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert {"uv.lock", "pylock*.toml", "/.venv/"} <= set(ignored)


def test_pages_that_are_named_are_there() -> None:
    """In code, configs and pages; links between pages are relative."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    missing = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.suffix not in (".py", ".md", ".yaml", ".toml", ".html") or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        named = {ROOT / page for page in re.findall(r"\bdocs/[\w/]+\.\w+\b", text)}
        if path.suffix == ".md":
            links = re.findall(r"\]\((?!\w+:)([^)#]+)", text)
            named |= {path.parent / link for link in links}
        missing += [f"{name}: {page}" for page in named if not page.exists()]
    assert missing == []


def test_licence_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


def test_make_targets_answer_without_running() -> None:
    for target in ("env", "quickstart", "test", "lint", "types"):
        done = subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr


def test_every_launch_script_answers_help() -> None:
    assert {"quickstart", "synthesize", "train", "convert", "evaluate"} <= {p.stem for p in LAUNCH}
    for path in LAUNCH:
        ended = launch(f"launch/{path.name}", "--help")
        assert ended.code == 0 and "usage" in ended.out.lower(), f"{path}: {ended.err}"
