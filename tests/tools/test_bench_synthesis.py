"""The benchmark of synthesis: the runner does the work it is measured for."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, "tools/bench_synthesis.py", *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_runner_is_measured_against_the_engine_alone():
    found = run("runner", "--requests", "200", "--latency_ms", "20", "--rounds", "2")
    low, median, high = found["speed under the runner to bare"]
    assert 0 < low <= median <= high < 3
    # The stub answers alike, so both get the same tokens: what differs is time.
    for name in ("bare", "under the runner"):
        figures = found[name]
        tokens = figures["output tokens/s"] / figures["requests/s"]
        assert tokens > 0.5 and figures["ms of processor time a request"] > 0


def test_a_run_goes_on_where_it_was_stopped():
    found = run("resume", "--documents", "10000")
    assert found["documents"] == 10000 and found["ledger MB"] > 0.5
    assert 0 < found["seconds to the first request"] < found["seconds to make them"]
