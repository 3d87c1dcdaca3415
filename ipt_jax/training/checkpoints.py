"""Checkpoints: the state tree and the run's progress, saved together and asynchronously.

`checkpoints/` holds one folder for each saved position, named by the number, and beside them:

    N.committing…  being written; a run that is killed leaves it
    N.deleting     no longer kept, on its way out
    damaged/       what could not be used, set aside by a restore and never deleted
    superseded/    newer than the position that a restore was told to go back to

A folder gets its plain name by a rename, once all processes have written all their files and
checksums.json lists them. So a plain name means that everything is there, also after kill -9.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from ipt_jax.core.bounds import Config, NotNegative, Positive
from ipt_jax.core.errors import UserError
from ipt_jax.core.files import sync_folder
from ipt_jax.core.json_lines import load_json
from ipt_jax.models.config import Params
from ipt_jax.training.integrity import LIST_NAME, Corruption, find_corruption, has_list, write_list
from ipt_jax.training.processes import anywhere
from ipt_jax.training.saved_arrays import StreamedArrays, differences, hold, open_saved

# Orbax logs every save, each default it takes, and what it raises anyway, with its traceback.
logging.getLogger("absl").setLevel(logging.CRITICAL)

# Longest that writing or checking one may take; Orbax's 20 minutes are short for 100 GB on NFS.
SAVE_SECONDS = 3600
CHUNK_BYTES = 64 * 2**20
# Random float32 mantissas shrink by 8 % for 2.5 times the processor time.
_AS_IS: dict[str, Any] = {"use_compression": False}
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SAVES = (
    *("#/", "#.committing*/", "#.deleting/", "#.*orbax-checkpoint-tmp*/", ".reading-*/"),
    *(f"{aside}/#{end}/" for aside in ("damaged", "superseded") for end in ("", "-*")),
)
"""Names of what lies in `checkpoints/`, for the marker of a run folder."""
_LEFT_BEHIND = re.compile(r"(\d+)\.(committing|deleting|.*orbax-checkpoint-tmp.*)")
# What Orbax, tensorstore and json raise for files that are not what they should be.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError)


@dataclass(frozen=True)
class CheckpointConfig(Config):
    """How often the state is saved and which saves are kept."""

    every_steps: Positive = 1000
    """Save after every so many batches, and after the last."""
    keep: Positive = 2
    """How many of the newest saves stay on disk."""
    keep_best: NotNegative = 0
    """How many of the best saves stay on disk besides."""
    best_metric: str = "loss"
    """Which are best: by loss or gradient_norm, the mean since the save before."""
    best_mode: Literal["min", "max"] = "min"
    """min: the lowest is best; max: the highest."""


@dataclass(frozen=True)
class Restored:
    """What a run goes on from."""

    position: int
    """Of the checkpoint: batches taken when it was saved."""
    state: Any
    """The tree that was saved, with the shardings that were asked for."""
    progress: dict[str, Any]
    """What was saved beside it."""


class Checkpoints:
    """The `checkpoints/` folder of one run; use as a context manager.

    With several processes all of them make the same calls, and see the same folder.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        arrays: ocp.PyTreeCheckpointHandler | None = None,
    ):
        """`arrays`: what saves them, where they are not jax.Arrays."""
        self.folder = folder.resolve()
        self.config = config
        self.folder.mkdir(parents=True, exist_ok=True)
        self._saved = set(_positions(self.folder))
        self._writing: int | None = None
        self._writer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                state=arrays or ocp.PyTreeCheckpointHandler(**_AS_IS),
                progress=ocp.JsonCheckpointHandler(),
                metrics=ocp.JsonCheckpointHandler(),
            ),
            async_options=ocp.AsyncOptions(timeout_secs=SAVE_SECONDS),
            temporary_path_class=_committed_by(self._commit),
        )

    def save(
        self,
        position: int,
        state: Any,
        progress: dict[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Start to save unless `position` is saved already; returns when `state` may change.

        Waits for the save before, if that is still being written, and raises what went wrong
        with it.

        Raises:
          UserError: too little room, or `metrics` without the one that checkpoints are kept by.
          OSError: the disk is full; the checkpoints that were there still are.
        """
        if position in self._saved:
            return
        if self.config.keep_best and metrics and self.config.best_metric not in metrics:
            raise UserError(
                f"checkpoints.best_metric={self.config.best_metric!r}: there is no such metric; "
                f"there are {', '.join(metrics)}.",
                key="checkpoints.best_metric",
            )
        with self._full_disk_named():
            self._writer.wait_until_finished()  # before there is any talk of room
        self.check_room(state)
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state, save_args=jax.tree.map(_chunks, state)),
            progress=ocp.args.JsonSave(progress),
            metrics=ocp.args.JsonSave({k: float(v) for k, v in (metrics or {}).items()}),
        )
        self._saved.add(position)
        self._writing = position
        with self._full_disk_named():
            self._writer.save(self.folder / f"{position}.committing", items, force=True)

    def wait(self) -> None:
        """Return when every started save is on disk with its checksums."""
        with self._full_disk_named():
            self._writer.wait_until_finished()

    def restore_newest(self, abstract: Any, position: int | None = None) -> Restored | None:
        """The newest checkpoint that is whole, or the one of `position`; None if there is none.

        What is unfinished or damaged is named on stdout with file and reason and moved to
        damaged/, and the one before is taken. Where `position` is given, newer ones are moved to
        superseded/: what is trained from here on will be saved under their numbers. Position 0 is
        the beginning, also where none was saved there.

        Args:
          abstract: ShapeDtypeStructs with the shardings to restore to, on any mesh.

        Raises:
          UserError: the saved tree does not fit `abstract`, or there is no whole checkpoint of
            `position`.
        """
        self.wait()
        first = jax.process_index() == 0
        if first:
            self._tidy()
        while True:
            chosen = _from_first(self._newest_whole(position) if first else None)
            if chosen is None:
                break
            restored, reason = self._read(chosen, abstract)
            if not anywhere(restored is None):
                assert restored is not None
                if first:
                    self._settle(chosen, position)
                self._saved = {chosen}  # the same in every process, whatever each saw on disk
                return restored
            if first:
                self._set_aside(self.folder / str(chosen), reason, "unreadable")
        self._saved = set()
        if position is None:
            return None
        if position == 0:  # the beginning, which needs none
            if first:
                self._put_newer_aside(0, asked=0)
            return None
        there = ", ".join(map(str, _positions(self.folder))) or "none"
        raise UserError(f"no whole checkpoint {position}; there are: {there}.", path=self.folder)

    def all_lost(self) -> bool:
        """Whether there were whole checkpoints and all of them are damaged; all processes ask."""
        damaged = self.folder / "damaged"
        names = [path.name for path in damaged.iterdir()] if damaged.exists() else []
        lost = not _positions(self.folder) and any("unfinished" not in name for name in names)
        return _from_first(int(lost)) == 1

    def has(self, position: int) -> bool:
        """Whether the save of `position` is on disk, whole."""
        return position in _positions(self.folder)

    def best(self) -> int | None:
        """The position with the best `best_metric` of those on disk; None if none has it."""
        return next(iter(self._ranked()), None)

    def check_room(self, state: Any) -> None:
        """Refuse to begin what would fill the disk; `state` may be abstract.

        Raises:
          UserError: one save is more than what is free.
        """
        needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise UserError(
                f"a checkpoint takes up to {needed / 1e6:,.0f} MB, but the disk has "
                f"{free / 1e6:,.0f} MB free",
                path=self.folder,
                advice="free space or choose another run_folder, then run the same command again",
            )

    def _commit(self, folder: Path) -> None:
        """In process 0's background thread, when all processes have written their files."""
        self._list_and_rename(folder)
        kept = {*sorted(_positions(self.folder))[-self.config.keep :]}
        kept |= set(self._ranked()[: self.config.keep_best])
        for position in set(_positions(self.folder)) - kept:
            # First out of sight: a run that is killed now leaves nothing half deleted behind.
            os.rename(self.folder / str(position), self.folder / f"{position}.deleting")
        for leaving in self.folder.glob("*.deleting"):
            if not leaving.stem.isdecimal():
                continue  # someone else's
            shutil.rmtree(leaving, ignore_errors=True)  # what stays is tried again next time

    def _list_and_rename(self, folder: Path) -> None:
        # Process 0 sums up the files of all processes: it reads what the shared file system has
        # got, and no second agreement between the processes is needed.
        write_list(folder)
        os.rename(folder, folder.with_suffix(""))
        sync_folder(self.folder)

    def _tidy(self) -> None:
        """Deal with what a run that was killed left behind."""
        for path in sorted(self.folder.iterdir()):
            match = _LEFT_BEHIND.fullmatch(path.name)
            if match is None:
                continue
            if match[2] == "deleting":
                shutil.rmtree(path, ignore_errors=True)
            elif match[2] == "committing" and not (self.folder / match[1]).exists():
                # Orbax had written everything, and the list would have been made from these same
                # bytes. The restore then reads the whole of it before it is relied upon.
                print(
                    f"{path}: whole, but the run was stopped before its checksums were written; "
                    "they are now.",
                    flush=True,
                )
                self._list_and_rename(path)
            else:
                self._set_aside(path, f"{path}: the run was stopped while writing it", "unfinished")

    def _newest_whole(self, position: int | None) -> int | None:
        def damaged(found: int, damage: Corruption) -> None:
            self._set_aside(self.folder / str(found), str(damage), damage.slug)

        return _newest_whole(self.folder, position, damaged)

    def _settle(self, chosen: int, asked: int | None) -> None:
        """Put everything newer than the restored checkpoint out of the way."""
        if not has_list(self.folder / str(chosen)):
            write_list(self.folder / str(chosen))  # it has just been read as a whole
        self._put_newer_aside(chosen, asked)

    def _put_newer_aside(self, chosen: int, asked: int | None) -> None:
        for newer in _positions(self.folder):
            if newer <= chosen:
                continue
            path = self.folder / str(newer)
            if asked is None:
                self._set_aside(path, f"{path}: has no list of checksums", "no-list")
            else:
                self._set_aside(
                    path, f"{path}: newer than {chosen}, as asked for", "", "superseded"
                )

    def _set_aside(self, path: Path, reason: str, slug: str, where: str = "damaged") -> None:
        (self.folder / where).mkdir(exist_ok=True)
        name = path.name.split(".")[0] + (f"-{slug}" if slug else "")
        target, number = self.folder / where / name, 1
        while target.exists():
            number += 1
            target = self.folder / where / f"{name}-{number}"
        os.rename(path, target)
        print(f"{reason}; set aside as {target} (delete it when you like).", flush=True)

    def _read(self, position: int, abstract: Any) -> tuple[Restored | None, str]:
        """The checkpoint, or None and why it cannot be read."""
        folder = self.folder / str(position)
        items = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(
                abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract)
            ),
            progress=ocp.args.JsonRestore(),
        )
        try:
            wrong = differences(folder / "state", abstract)
            if wrong:
                raise UserError(
                    f"this checkpoint does not fit the config ({'; '.join(wrong)})",
                    path=folder,
                    advice="take the config.yaml of its run folder, or start over with --fresh",
                )
            found = self._writer.restore(folder, items)
        except _UNREADABLE as error:
            return None, f"{folder}: cannot be read ({' '.join(str(error).split())[:300]})"
        return Restored(position, found["state"], found["progress"]), ""

    def _ranked(self) -> list[int]:
        """Positions from best to worst, those without the metric left out; of equals, the newer."""
        sign = 1 if self.config.best_mode == "min" else -1
        ranked = []
        for position in _positions(self.folder):
            path = self.folder / str(position) / "metrics" / "metadata"
            try:
                value = float(load_json(path)[self.config.best_metric])
            except (OSError, ValueError, KeyError, TypeError):
                continue  # saved without metrics; a damaged one is a restore's business
            if math.isfinite(value):
                ranked.append((sign * value, -position))
        return [-negative for _, negative in sorted(ranked)]

    @contextmanager
    def _full_disk_named(self) -> Iterator[None]:
        """Turn tensorstore's ValueError for a full disk, also of a save before, into an OSError."""
        code = None
        try:
            yield
        except (ValueError, OSError) as error:
            said = str(error)
            code = next((c for c in _DISK_FULL if os.strerror(c) in said), None)
            if code is None:
                raise
        if code is not None:  # outside the handler: writers that failed go with their exception
            if jax.process_index() == 0:
                # Never was a checkpoint, and fills the disk.
                for path in self.folder.glob(f"{self._writing}.committing*"):
                    shutil.rmtree(path, ignore_errors=True)
            self._saved.discard(self._writing)
            raise OSError(code, os.strerror(code), str(self.folder))

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and jax.process_count() > 1:
            return  # closing waits for the other processes, which may be waiting for this one
        try:
            with self._full_disk_named():
                self._writer.close()
        except OSError:
            if kind is None:  # else the first error is on its way already
                raise


def load_params(checkpoints: Path, position: int | None = None) -> tuple[Params, int]:
    """The parameters alone, of the newest whole save in a run's `checkpoints/` or of `position`.

    Nothing is moved, for a run may be using the folder: what is damaged is named on stdout, and
    the one before is taken. What the run deletes meanwhile stays readable, by links in
    `checkpoints/.reading-*` that last as long as the arrays (or, after kill -9, until removed).

    Returns:
      The parameters as SavedArrays, that read from the disk what is asked of them, and the
      position of the save.

    Raises:
      UserError: no whole save there.
    """
    if not checkpoints.is_dir():
        raise UserError(
            "no such folder", path=checkpoints, advice="name the folder of a training run"
        )
    held = hold(checkpoints.resolve())
    folder = checkpoints.resolve() if held is None else Path(held.name)

    def name_damage(number: int, damage: Corruption) -> None:
        file = checkpoints / damage.file.relative_to(folder)
        print(f"{file} {damage.reason}; {number} is not used.")

    found = _newest_whole(folder, position, name_damage)
    for other in _positions(folder) if held else ():
        if other != found:
            shutil.rmtree(folder / str(other))
    if found is None and position is not None:
        there = ", ".join(map(str, _positions(checkpoints))) or "none"
        raise UserError(f"no whole checkpoint {position}; there are: {there}.", path=checkpoints)
    if found is None:
        raise UserError(
            "holds no finished checkpoint",
            path=checkpoints,
            advice="train first; the first save may not have come yet (checkpoints.every_steps)",
        )
    return open_saved(folder / str(found) / "state", held)["params"], found


def newest_list(checkpoints: Path) -> Path | None:
    """The list of checksums of the newest save that has one: it stands for the save's content."""
    saves = reversed(_positions(checkpoints)) if checkpoints.is_dir() else ()
    return next((p for n in saves if (p := checkpoints / str(n) / LIST_NAME).exists()), None)


def save_params(checkpoints: Path, params: Params) -> None:
    """Write a folder that `load_params` reads, as position 0: weights without an optimiser.

    `params`: host arrays, or LazyArrays, that are read part by part.
    """
    streamed = ocp.type_handlers.create_type_handler_registry((object, StreamedArrays()))
    arrays = ocp.PyTreeCheckpointHandler(**_AS_IS, type_handler_registry=streamed)
    with Checkpoints(checkpoints, CheckpointConfig(), arrays) as writer:
        writer.save(0, {"params": params}, {})


def _positions(folder: Path) -> list[int]:
    names = [path.name for path in folder.iterdir() if path.name.isdecimal()]
    return sorted(int(name) for name in names if str(int(name)) == name)


def _newest_whole(
    folder: Path, position: int | None, damaged: Callable[[int, Corruption], None]
) -> int | None:
    """The newest checkpoint (or only that of `position`) whose files are as listed.

    One without a list (saved before there were lists, or the list was lost) is taken only where
    no other is whole: nothing says that it is damaged, and nothing that it is not.
    """
    unlisted = []
    for found in reversed(_positions(folder)):
        if position is not None and found != position:
            continue
        damage = find_corruption(folder / str(found))
        if damage is None:
            return found
        if has_list(folder / str(found)):
            damaged(found, damage)
        else:
            unlisted.append(found)
    if not unlisted:
        return None
    print(f"{folder / str(unlisted[0])}: has no list of checksums, so it is taken unchecked.")
    return unlisted[0]


def _chunks(leaf: Any) -> ocp.SaveArgs:
    """How one array is cut on disk.

    Those with three axes and more are stacked over blocks on the first one, and an export reads
    block by block.
    """
    return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if leaf.ndim > 2 else ())


def _committed_by(commit: Callable[[Path], None]) -> type[Any]:
    """Orbax's way to commit a folder by renaming it, followed by `commit`, as part of the save."""

    class Committed(ocp.path.atomicity.AtomicRenameTemporaryPath):
        async def finalize(self) -> None:
            await super().finalize()
            await asyncio.to_thread(commit, Path(self.get_final()))

    return Committed


def _from_first(number: int | None) -> int | None:
    """Process 0's number, in every process."""
    if jax.process_count() == 1:
        return number
    # Collectives give up after minutes; process 0 may be checking 100 GB.
    wait = ocp.multihost.get_barrier_sync_fn()
    wait(key="checkpoint chosen", timeout_ms=1000 * SAVE_SECONDS)
    sent = np.int32(-1 if number is None else number)
    received = int(multihost_utils.broadcast_one_to_all(sent))
    return None if received < 0 else received
