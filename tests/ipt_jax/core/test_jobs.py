"""A graph of jobs: each once for the same inputs, in order, side by side where they may be."""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ipt_jax.core.errors import RunStopped, UserError
from ipt_jax.core.jobs import Job, job_seconds, run_jobs
from ipt_jax.core.run_folder import FolderRefused


def inputs(value: Any = 1) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    return lambda results: {"value": value, **results}


def test_a_job_is_skipped_only_when_nothing_changed(tmp_path):
    output, runs = tmp_path / "out", []

    def work(results):
        runs.append(1)
        output.write_text("x")
        return {"run": len(runs)}

    def job(value):
        return run_jobs(tmp_path, [Job("a", work, inputs(value), [output])])["a"]

    assert job(1) == {"run": 1}
    assert job(1) == {"run": 1}  # from before
    assert job(2) == {"run": 2}  # other inputs
    output.unlink()
    assert job(2) == {"run": 3}  # its output is gone
    assert set(job_seconds(tmp_path)) == {"a"}


def test_results_reach_the_jobs_that_wait_for_them_and_count_among_their_inputs(tmp_path):
    runs = []

    def note(name, value, results):
        runs.append((name, dict(results)))
        return value

    def graph(value):
        return [
            Job("c", partial(note, "c", 3), inputs(), after=["b"]),
            Job("b", partial(note, "b", 2), inputs(), after=["a"]),
            Job("a", partial(note, "a", value), inputs(value)),
        ]

    assert run_jobs(tmp_path, graph(1)) == {"a": 1, "b": 2, "c": 3}
    assert runs == [("a", {}), ("b", {"a": 1}), ("c", {"b": 2})]
    run_jobs(tmp_path, graph(7))
    assert [name for name, _ in runs[3:]] == ["a", "b"]  # what c waits for came out the same


def test_an_interrupted_job_is_not_done_and_those_before_it_are(tmp_path):
    def interrupted(results):
        raise KeyboardInterrupt

    first = Job("first", lambda results: 1, inputs())
    with pytest.raises(KeyboardInterrupt):
        run_jobs(tmp_path, [first, Job("a", interrupted, inputs(), after=["first"])])
    assert set(job_seconds(tmp_path)) == {"first"}
    again = Job("a", lambda results: "now", inputs(), after=["first"])
    assert run_jobs(tmp_path, [first, again])["a"] == "now"


def meet(folder: Path, name: str, results: Mapping[str, Any]) -> int:
    """Ends only when the other one runs at the same time."""
    (folder / name).touch()
    deadline = time.monotonic() + 600
    while len(list(folder.glob("job *"))) < 2:
        assert time.monotonic() < deadline, "they did not run side by side"
        time.sleep(0.01)
    return os.getpid()


def test_jobs_that_do_not_wait_for_each_other_run_side_by_side(tmp_path):
    jobs = [Job(name, partial(meet, tmp_path, name), inputs()) for name in ("job 1", "job 2")]
    found = run_jobs(tmp_path, jobs, workers=2)
    assert len({*found.values(), os.getpid()}) == 3
    assert run_jobs(tmp_path, jobs) == found


def refuse(results: Mapping[str, Any]) -> None:
    raise FolderRefused(Path("runs/x"), "differs", "made otherwise", ["seed"])


def stop(results: Mapping[str, Any]) -> None:
    raise RunStopped("the guard stopped it", 3)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_job_raises_is_raised_whole(tmp_path, workers):
    with pytest.raises(FolderRefused, match="runs/x: made otherwise") as refused:
        run_jobs(tmp_path, [Job("a", refuse, inputs())], workers=workers)
    assert (refused.value.reason, refused.value.differs) == ("differs", ("seed",))
    with pytest.raises(RunStopped, match="the guard stopped it") as stopped:
        run_jobs(tmp_path, [Job("a", stop, inputs())], workers=workers)
    assert stopped.value.code == 3


def test_a_job_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match=r"missing"):
        run_jobs(tmp_path, [Job("a", lambda results: None, inputs(), [tmp_path / "missing"])])
    (tmp_path / "stages.json").write_text("{")
    with pytest.raises(UserError, match=r"stages\.json"):
        run_jobs(tmp_path, [])


@pytest.mark.parametrize("after", [["b"], ["a"], ["nowhere"]])
def test_a_graph_that_cannot_end_is_refused(tmp_path, after):
    jobs = [
        Job("a", lambda results: None, inputs(), after=after),
        Job("b", lambda results: None, inputs(), after=["a"]),
    ]
    with pytest.raises(ValueError, match="'a', 'b'"):
        run_jobs(tmp_path, jobs)
