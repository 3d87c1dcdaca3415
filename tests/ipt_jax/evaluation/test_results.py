"""Numbers with intervals, checked against what another way of computing them gives."""

import json
import math
import random
from pathlib import Path

import pytest

from ipt_jax.core.errors import UserError
from ipt_jax.evaluation.results import (
    Result,
    bits_per_byte,
    interval,
    read_lm_eval,
    read_results,
    table,
)


def test_interval_is_the_normal_one_and_stays_a_share() -> None:
    assert interval("bits_per_byte", 2.0, 0.1) == pytest.approx((1.804, 2.196), abs=1e-3)
    low, high = interval("acc", 0.02, 0.05)
    assert low == 0.0 and high == pytest.approx(0.118, abs=1e-3)
    assert interval("acc", 0.5, None) == (None, None)


def test_bits_per_byte_error_agrees_with_the_bootstrap() -> None:
    draw = random.Random(1)
    sizes = [draw.randrange(200, 2000) for _ in range(200)]
    items = [(-math.log(2) * size * draw.gauss(2.0, 0.3), size) for size in sizes]
    value, stderr = bits_per_byte(items)
    assert value == pytest.approx(-sum(x for x, _ in items) / math.log(2) / sum(sizes))
    again = [bits_per_byte(draw.choices(items, k=len(items)))[0] for _ in range(2000)]
    mean = sum(again) / len(again)
    spread = math.sqrt(sum((x - mean) ** 2 for x in again) / len(again))
    assert stderr == pytest.approx(spread, rel=0.08)


def test_one_item_has_no_error() -> None:
    assert bits_per_byte([(-math.log(2) * 30, 10)]) == (pytest.approx(3.0), None)


def test_lm_eval_folder_is_read(tmp_path: Path) -> None:
    raw = {
        "results": {
            "qa": {"alias": "qa", "acc,none": 0.5, "acc_stderr,none": 0.1},
            "ppl": {"bits_per_byte,none": 9.9, "bits_per_byte_stderr,none": "N/A"},
            "gsm": {"exact_match,strict": 0.25, "exact_match_stderr,strict": 0.05},
        },
        "n-samples": {t: {"original": 30, "effective": n} for t, n in (("qa", 30), ("ppl", 2))},
        "higher_is_better": {"qa": {"acc": True}, "ppl": {"bits_per_byte": False}},
    }
    (tmp_path / "results_1.json").write_text(json.dumps(raw))
    lines = [{"bits_per_byte": [-math.log(2) * 20, 10]}, {"bits_per_byte": [-math.log(2) * 80, 20]}]
    (tmp_path / "samples_ppl_1.jsonl").write_text("\n".join(map(json.dumps, lines)))
    results, own = read_lm_eval(tmp_path, "m")
    assert own == raw
    by_task = {r.task: r for r in results}
    assert (by_task["qa"].value, by_task["qa"].n, by_task["qa"].higher_is_better) == (0.5, 30, True)
    assert by_task["ppl"].value == pytest.approx(100 / 30) and by_task["ppl"].stderr
    assert not by_task["ppl"].higher_is_better
    assert by_task["gsm"].metric == "exact_match,strict" and by_task["gsm"].high is not None


def test_results_file_round_trip_and_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(UserError, match=r"no .*results\.json"):
        read_results(path)
    results = [Result("m", "t", "acc", 0.5, 0.1, 0.3, 0.7, 10)]
    path.write_text(json.dumps({"table": table(results)}))
    assert read_results(path) == results
    for bad in ("{", '{"table": [{"model": "m"}]}', "{}", "[]"):
        path.write_text(bad)
        with pytest.raises(UserError, match=r"results\.json"):
            read_results(path)
    with pytest.raises(UserError, match="lm-eval left no"):
        read_lm_eval(tmp_path / "none", "m")
