"""The benchmark of training: contenders that take turns, ratios that add up."""

import json
import sys
from pathlib import Path

import pytest

from tests.launching import ROOT, launch


def test_contenders_take_turns_and_ratios_are_of_pairs(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    sizes = ("--size", "tiny", "--rounds", "3", "--steps", "20", "--output", out)
    ended = launch("tools/bench_train.py", "overhead", *sizes)
    assert ended.code == 0, ended.err
    found = json.loads(out.read_text())
    assert found["rounds"] == 3 and found["environment"]["packages"]["jax"]
    contenders = found["contenders"]
    assert list(contenders) == ["ours", "ours with metrics", "ours with a checkpoint"]
    assert set(contenders["ours"]["wall_speed_to_ours"].values()) == {1.0}
    for figures in contenders.values():
        ratio = figures["cpu_speed_to_ours"]
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
        assert figures["tokens_per_second"] > 0
    # What it prints is what it writes.
    assert json.loads(ended.out[ended.out.index("{") :]) == found


def test_a_contender_that_fails_is_named(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from bench_train import Contender
    finally:
        sys.path.pop(0)
    with pytest.raises(SystemExit, match="the contender 'nobody' ended"):
        Contender("nobody", "tiny", {})
