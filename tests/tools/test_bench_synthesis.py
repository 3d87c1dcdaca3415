"""The benchmark of synthesis: the runner does the work it is measured for."""

import json

from tests.launching import launch


def run(*arguments: str) -> dict:
    ended = launch("tools/bench_synthesis.py", *arguments)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_the_runner_is_measured_against_the_engine_alone():
    found = run("runner", "--requests", "200", "--latency_ms", "20", "--rounds", "2")
    low, median, high = found["speed under the runner to bare"]
    assert 0 < low <= median <= high
    # The stub answers alike, so both get the same tokens: what differs is time.
    for name in ("bare", "under the runner"):
        figures = found[name]
        tokens = figures["output tokens/s"] / figures["requests/s"]
        assert tokens > 0.5 and figures["ms of processor time a request"] > 0


def test_a_run_goes_on_where_it_was_stopped():
    found = run("resume", "--documents", "4000")
    assert found["documents"] == 4000 and found["ledger MB"] > 0.1
    assert found["seconds to the first request"] > 0 < found["seconds to make them"]
