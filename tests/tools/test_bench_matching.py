"""The benchmark of matching: its contenders run, and the table of capacity adds up."""

import json
from pathlib import Path

import pytest

from tests.launching import launch, refused


def test_figures_are_added_and_make_a_table_of_capacity(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="ipt-jax[matching]")
    out = tmp_path / "figures.json"
    given = ("--rounds", "3", "--width", "16", "--output", out)
    ended = launch("tools/bench_matching.py", "pooling", *given)
    assert ended.code == 0, ended.err
    store = ("--store", tmp_path / "store", "--model", "hashed-words", "--output", out)
    ended = launch("tools/bench_matching.py", "index", *store, "--count", "300", "--recall", "0.8")
    assert ended.code == 0, ended.err
    figures = json.loads(out.read_text())
    assert figures["pooling"]["loop, 128 tokens"]["to loop, 128 tokens"] == [1, 1, 1]
    flat, *others = figures["index"].values()
    assert flat["vectors"] == 300 and len(others) >= 5
    for found in others:
        assert found["recall_at_10"] > 0.5 and found["queries_per_second"] > 0
    rates = (
        "--documents_per_second",
        "1000",
        "--descriptions_per_second",
        "5000",
        "--queries_per_second",
        "2000",
        "--figures",
        out,
    )
    ended = launch("tools/bench_matching.py", "capacity", *rates, "--output", out)
    assert ended.code == 0, ended.err
    table = json.loads(out.read_text())["capacity"]
    assert table["embedding 1B documents"] == "278 encoder hours"
    assert table["embedding them"] == "1 encoder hours"
    assert table["6B queries"] == "833 machine hours"
    assert table["vectors of 18M descriptions, on disk"] == "2.3 GB"
    assert refused("tools/bench_matching.py", "capacity").key == "bytes_per_vector"
