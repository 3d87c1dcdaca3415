"""A longer job as a small graph of named ones: what is still good is skipped, the rest is made."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from ipt_jax.core.files import atomic_write
from ipt_jax.core.json_lines import load_json, read_object
from ipt_jax.core.run_folder import RUN_FILES, RunFolder

_NAME = "stages.json"
Results = Mapping[str, Any]
"""What jobs gave back, by name; JSON."""


@dataclass(frozen=True)
class Job:
    """A piece of a longer job."""

    name: str
    work: Callable[[Results], Any]
    """Given the results of the jobs in `after`; gives back JSON. What of an interrupted one can go
    on, it decides itself. It is pickled where jobs run side by side."""
    inputs: Callable[[Results], Mapping[str, Any]]
    """What the result depends on, results of `after` included; asked when those are there."""
    outputs: Sequence[Path] = ()
    """Files that are there afterwards; where one is gone, the job runs again."""
    after: Sequence[str] = ()
    """Jobs that have to be done before."""


def hold_jobs(
    folder: Path, kind: str, folders: Sequence[str], *, first: str, fresh: bool
) -> RunFolder:
    """The folder of a longer job of `kind`; `folders`: those of its jobs, of which `first` is one.

    What a job may go on with, its own folder says. Raises FolderRefused as RunFolder.open.
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


def run_jobs(folder: Path, jobs: Sequence[Job], *, workers: int = 1) -> dict[str, Any]:
    """Do every job after those that it names, and give back all results.

    One that was done with the same inputs, whose outputs are there, is skipped. A job is entered
    in `folder/stages.json` only after its work has returned. With several workers, jobs that do
    not wait for each other run side by side in processes of their own.

    Raises:
      UserError: `stages.json` cannot be read; and what the jobs raise.
      ValueError: a job waits for one that there is not, or for itself.
    """
    _check_order(jobs)
    done, results, left = _read(folder), dict[str, Any](), list(jobs)
    running: dict[Future[Any], tuple[Job, Any, float]] = {}

    def enter(job: Job, wanted: Any, result: Any, started: float) -> None:
        missing = [str(path) for path in job.outputs if not path.exists()]
        if missing:
            raise RuntimeError(f"job {job.name} ended without writing {', '.join(missing)}")
        seconds = round(time.perf_counter() - started, 2)
        done[job.name] = {"inputs": wanted, "seconds": seconds, "result": result}
        atomic_write(folder / _NAME, json.dumps(done, indent=1))
        results[job.name] = result

    context = multiprocessing.get_context("spawn")  # a fork of a process with JAX in it may hang
    pool = ProcessPoolExecutor(workers, context) if workers > 1 else None
    try:
        while left or running:
            ready = [job for job in left if {*job.after} <= results.keys()]
            for job in ready[: workers - len(running)]:
                left.remove(job)
                given = {name: results[name] for name in job.after}
                wanted = json.loads(json.dumps(job.inputs(given), default=str, sort_keys=True))
                if (before := _still_good(job, done.get(job.name), wanted)) is not None:
                    results[job.name] = before["result"]
                    continue
                print(f"── {job.name}", flush=True)
                started = time.perf_counter()
                if pool is None:
                    enter(job, wanted, job.work(given), started)
                else:
                    running[pool.submit(job.work, given)] = job, wanted, started
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                job, wanted, started = running.pop(future)
                enter(job, wanted, future.result(), started)
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    return results


def job_seconds(folder: Path) -> dict[str, float]:
    """How long each finished job took when it last ran."""
    return {name: done["seconds"] for name, done in _read(folder).items()}


def _check_order(jobs: Sequence[Job]) -> None:
    graph = {job.name: job.after for job in jobs}
    try:
        named = {*TopologicalSorter(graph).static_order()}
    except CycleError:
        named = set()
    if named != graph.keys() or len(graph) < len(jobs):
        raise ValueError(f"jobs that wait for what is not there, or twice of one name: {[*graph]}")


def _still_good(job: Job, before: dict[str, Any] | None, wanted: Any) -> dict[str, Any] | None:
    if not before or before["inputs"] != wanted or not all(p.exists() for p in job.outputs):
        return None
    print(f"── {job.name}: done before in {before['seconds']:.0f} s, skipped", flush=True)
    return before


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    return read_object(folder / _NAME, "delete it, and every job is checked anew")


def _before_markers(folder: Path, first: str) -> dict[str, str] | None:
    """Whether an earlier version ran its jobs here, beginning with `first`."""
    try:
        done = load_json(folder / _NAME)
        ours = all({"inputs", "result", "seconds"} <= job.keys() for job in done.values())
    except (OSError, ValueError, AttributeError):
        return None
    return {} if ours and first in done else None
