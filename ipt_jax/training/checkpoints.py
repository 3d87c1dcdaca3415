"""Checkpoints: the state tree and the run's progress, saved together and asynchronously."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ipt_jax.errors import UserError
from ipt_jax.models.decoder import Params
from ipt_jax.training.state import TrainState

# Orbax logs every save, each default it takes, and what it raises anyway, with its traceback.
logging.getLogger("absl").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class CheckpointConfig:
    """How often the state is saved and how many saves are kept."""

    every_steps: int = 1000
    """Save after every so many updates, and after the last."""
    keep: int = 2
    """How many of the newest saves stay on disk."""


class Checkpoints:
    """The `checkpoints/` folder of one run; use as a context manager."""

    def __init__(self, folder: Path, config: CheckpointConfig):
        self.folder = folder.resolve()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=config.keep, save_interval_steps=config.every_steps
            ),
        )

    def latest_step(self) -> int | None:
        """The newest finished save, or None."""
        return self._manager.latest_step()

    def save(
        self, step: int, state: TrainState, progress: dict[str, Any], *, force: bool = False
    ) -> None:
        """Start a save if one is due (or `force`) and `step` is not saved yet; does not wait."""
        if step == self._manager.latest_step():
            return
        self.check_room(state)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
        )
        with self._full_disk_named():
            self._manager.save(step, args=items, force=force)

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state saved at `step`, with the shardings of `abstract`, and its progress.

        Raises:
          UserError: the saved tree does not fit the config.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
        )
        try:
            found = self._manager.restore(step, args=items)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{self.folder / str(step)}: this checkpoint does not fit the config "
                f"({' '.join(str(error).split())[:300]}); restore it with the config it was saved "
                "with (config.yaml in its run folder), or start over with --fresh."
            ) from error
        return found["state"], found["progress"]

    def wait(self) -> None:
        """Return when every started save is on disk."""
        with self._full_disk_named():
            self._manager.wait_until_finished()

    def check_room(self, state: TrainState) -> None:
        """Refuse to begin what would fill the disk; `state` may be abstract.

        Raises:
          UserError: one save, uncompressed, is more than what is free.
        """
        needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise UserError(
                f"{self.folder}: a checkpoint takes up to {needed / 1e6:,.0f} MB, but the disk has "
                f"{free / 1e6:,.0f} MB free; free some space or choose another run_folder, then "
                "run the same command again."
            )

    @contextmanager
    def _full_disk_named(self) -> Iterator[None]:
        """Turn tensorstore's ValueError for a full disk, also of a save before, into an OSError."""
        full = False
        try:
            yield
        except ValueError as error:
            full = "No space left on device" in str(error)
            if not full:
                raise
        if full:  # outside the handler: the writers that failed are freed with their exception
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._full_disk_named():
                self._manager.close()
        except OSError:
            if kind is None:  # else the first error is on its way already
                raise


def load_params(checkpoints: Path) -> tuple[Params, int]:
    """The parameters alone of the newest save in a run's `checkpoints/`, as numpy, and its step.

    Raises:
      UserError: no finished save there.
    """
    if not checkpoints.is_dir():
        raise UserError(f"{checkpoints}: no such folder; name the folder of a training run.")
    with ocp.CheckpointManager(checkpoints.resolve()) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(
                f"{checkpoints}: holds no finished checkpoint; train first, or look whether the "
                "run stopped before its first save (checkpoints.every_steps)."
            )
        folder = checkpoints.resolve() / str(step) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        saved = reader.metadata(folder).item_metadata.tree["params"]
        wanted = {"params": jax.tree.map(lambda _: 0, saved)}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        restored = reader.restore(
            folder,
            args=ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True),
        )
    return restored["params"], step


def save_params(checkpoints: Path, params: Params) -> None:
    """Write a folder that `load_params` reads, as step 0: weights without an optimiser."""
    with ocp.CheckpointManager(checkpoints.resolve()) as manager:
        items = ocp.args.Composite(
            state=ocp.args.StandardSave({"params": params}), progress=ocp.args.JsonSave({})
        )
        manager.save(0, args=items)
