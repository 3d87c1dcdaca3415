"""Processes forked from one that has done the trainer's imports: three seconds less each.

They are as real as those that start anew, with an id, memory and an end of their own: they can be
signalled, killed and waited for as those of `subprocess`.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "data_gen.methods",
        "ipt_jax.training.loop",
        "ipt_jax.training.dry_run",
        "ipt_jax.training.startup",
    ]
)


class Forked:
    """A process that calls `target`, with what the tests use of `subprocess.Popen`."""

    def __init__(self, target: Callable[..., Any], *arguments: Any, env: Mapping[str, str] = {}):
        self._said = [tempfile.TemporaryFile("w+", errors="replace") for _ in range(2)]  # noqa: SIM115
        paths = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in self._said]
        self._process: Any = _CONTEXT.Process(target=_call, args=(paths, env, target, arguments))
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote to stdout and stderr, once it has ended."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0)
        for file in self._said:
            file.seek(0)
        out, err = (file.read() for file in self._said)
        return out, err


def run_script(path: str, *arguments: str) -> None:
    """As `python path *arguments`: a target."""
    sys.argv = [path, *arguments]
    sys.path.insert(0, os.path.dirname(path))
    runpy.run_path(path, run_name="__main__")


def _call(
    paths: list[str], env: Mapping[str, str], target: Callable[..., Any], arguments: tuple
) -> None:
    for number, path in enumerate(paths, 1):
        os.dup2(os.open(path, os.O_WRONLY), number)
    os.environ.update(env)
    if "JAX_PLATFORMS" in env:  # which JAX read when it was imported
        jax.config.update("jax_platforms", env["JAX_PLATFORMS"])
    try:
        target(*arguments)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out
