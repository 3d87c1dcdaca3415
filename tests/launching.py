"""Launch scripts and tools in this process: what a user would see of them, without a start each."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from ipt_jax.core import configuration
from ipt_jax.core.configuration import run_main
from ipt_jax.core.errors import UserError
from ipt_jax.training import startup

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Ended:
    """How a script ended."""

    code: int
    out: str
    err: str
    error: UserError | None
    """What it told its user, before it became text."""

    @property
    def said(self) -> str:
        """The last line of what it told."""
        return self.err.strip().splitlines()[-1]

    @property
    def key(self) -> str | None:
        """The key that the error names."""
        return self.error.key if self.error else None


def launch(script: str, *arguments: str | Path) -> Ended:
    """Run `launch/train.py` or another script, named from the root, as from there with arguments.

    What a process decides once for itself stays as it is here: give `--compilation_cache null`
    to a training.
    """
    errors: list[UserError] = []
    out, err, code = io.StringIO(), io.StringIO(), 0

    def noting(main: Callable[[], int | None]) -> None:
        def run() -> int | None:
            try:
                return main()
            except UserError as error:
                errors.append(error)
                raise

        run_main(run)

    with (
        contextlib.chdir(ROOT),
        mock.patch.object(sys, "argv", [script, *map(str, arguments)]),
        mock.patch.object(sys, "path", [str(ROOT / Path(script).parent), *sys.path]),
        mock.patch.object(configuration, "run_main", noting),
        mock.patch.object(startup, "configure_malloc"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Ended(code, out.getvalue(), err.getvalue(), errors[0] if errors else None)


def refused(script: str, *arguments: str | Path) -> Ended:
    """The same of a script that must end with exit code 2 and one paragraph, its last line."""
    ended = launch(script, *arguments)
    assert ended.code == 2 and "Traceback" not in ended.err, f"{ended.code}\n{ended.err}"
    assert ended.said.startswith("error: ")
    if ended.error is not None:  # else a full disk, or no permission
        assert ended.said == f"error: {' '.join(str(ended.error).split())}"
    return ended
