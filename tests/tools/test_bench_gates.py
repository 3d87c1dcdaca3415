"""The benchmark of the gates: every contender runs on the same documents, ratios are of rounds."""

import json
from pathlib import Path

from tests.launching import launch


def test_contenders_run_and_absent_peers_are_named(tmp_path: Path) -> None:
    data, out = tmp_path / "documents.jsonl", tmp_path / "figures.json"
    texts = [" ".join(f"word{number * k % 97}" for k in range(60)) + "." for number in range(40)]
    texts[7] = texts[3]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    ended = launch("tools/bench_gates.py", "--data", data, "--rounds", "3", "--output", out)
    assert ended.code == 0, ended.err
    figures = json.loads(out.read_text())
    assert figures["documents"] == 40 and figures["rounds"] == 3
    for job in figures["jobs"].values():
        ours = next(iter(job.values()))
        assert set(ours["ours_to_it"].values()) == {1.0}
        for contender in job.values():
            ratio = contender["ours_to_it"]
            assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
            assert contender["documents_per_second"]["min"] > 0
    exact = figures["jobs"]["exact, whole text"]
    assert exact["ours"]["found"] == exact["set of texts"]["found"] == 1
    assert figures["jobs"]["MinHash, candidates verified"]["ours"]["found"] >= 1
    overlap = figures["jobs"]["8-gram overlap"]
    assert overlap["set of tuples"]["found"] == overlap["isdisjoint(zip)"]["found"]
    peers = {"datasketch", "datatrove"}
    ran = peers & set(figures["jobs"]["MinHash, raw text to candidates"])
    assert ran | set(figures["left_out"]) == peers
    for name in figures["left_out"]:
        assert f"{name} left out: " in ended.out
