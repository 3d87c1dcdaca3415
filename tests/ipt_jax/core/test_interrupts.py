"""Ctrl-C during the imports of a script."""

from __future__ import annotations

import ast
import os
import signal
import sys
from pathlib import Path

import pytest

from ipt_jax.core.errors import INTERRUPTED, importing

ROOT = Path(__file__).parents[3]
DOORS = sorted((ROOT / "launch").glob("*.py"))
TOOLS = [path for path in sorted((ROOT / "tools").glob("*.py")) if "__main__" in path.read_text()]
QUICK = {*sys.stdlib_module_names, "ipt_jax.core.errors"}  # what may be imported outside


@pytest.mark.parametrize("door", [*DOORS, *TOOLS], ids=lambda path: path.stem)
def test_every_door_imports_where_an_interrupt_is_caught(door: Path) -> None:
    names = [
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.parse(door.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    if door in DOORS:
        assert [name for name in names if name != "__future__"] == ["ipt_jax.core.errors"]
    packages = {name if name in QUICK else str(name).partition(".")[0] for name in names}
    assert packages <= QUICK


def test_an_interrupt_ends_the_process_with_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as end, importing():
        signal.raise_signal(signal.SIGINT)
    assert end.value.code == INTERRUPTED
    assert capsys.readouterr().err == "\nStopped before anything was begun.\n"
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
    with importing():
        signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
