"""Stages of a longer job: each is skipped when it was done before with the same inputs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ipt_jax.core.errors import UserError
from ipt_jax.core.files import atomic_write
from ipt_jax.core.json_lines import load_json
from ipt_jax.core.run_folder import RUN_FILES, RunFolder

_NAME = "stages.json"


class Stages:
    """The finished stages of one folder, kept in its `stages.json`.

    A stage is entered there only after its work has returned, so a stage that was interrupted
    runs again; the work itself decides what of it can go on.
    """

    def __init__(self, folder: Path):
        self._path = folder / _NAME
        self._done: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            try:
                self._done = load_json(self._path)
            except ValueError as error:
                raise UserError(
                    f"{self._path}: not valid JSON ({error}); delete it, and every stage is "
                    "checked anew."
                ) from error

    @staticmethod
    def hold(
        folder: Path, kind: str, folders: Sequence[str], *, first: str, fresh: bool
    ) -> RunFolder:
        """The folder of a job of `kind`; `folders`: those of its stages, of which `first` is one.

        What a stage may go on with, its own folder says. Raises FolderRefused as RunFolder.open.
        """
        owns = (*RUN_FILES, _NAME, "report.html")
        return RunFolder.open(
            folder,
            kind,
            {},
            owns=owns,
            folders=folders,
            fresh=fresh,
            legacy=lambda folder: _before_markers(folder, first),
        )

    def run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[Path],
        work: Callable[[], Any],
    ) -> Any:
        """`work()`'s result (JSON), from before if inputs are the same and all outputs exist."""
        wanted = json.loads(json.dumps(inputs, default=str, sort_keys=True))
        done = self._done.get(name)
        if done and done["inputs"] == wanted and all(path.exists() for path in outputs):
            print(f"── {name}: done before in {done['seconds']:.0f} s, skipped", flush=True)
            return done["result"]
        print(f"── {name}", flush=True)
        started = time.perf_counter()
        result = work()
        missing = [str(path) for path in outputs if not path.exists()]
        if missing:
            raise RuntimeError(f"stage {name} ended without writing {', '.join(missing)}")
        seconds = round(time.perf_counter() - started, 2)
        self._done[name] = {"inputs": wanted, "seconds": seconds, "result": result}
        atomic_write(self._path, json.dumps(self._done, indent=1))
        return self._done[name]["result"]

    def seconds(self) -> dict[str, float]:
        """How long each finished stage took when it last ran."""
        return {name: done["seconds"] for name, done in self._done.items()}


def _before_markers(folder: Path, first: str) -> dict[str, str] | None:
    """Whether an earlier version ran its stages here, beginning with `first`."""
    try:
        done = load_json(folder / _NAME)
        ours = all({"inputs", "result", "seconds"} <= stage.keys() for stage in done.values())
    except (OSError, ValueError, AttributeError):
        return None
    return {} if ours and first in done else None
