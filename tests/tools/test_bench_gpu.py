"""The GPU benchmark, as far as it goes without one: counts, turns, tables, parts that hang."""

import argparse
import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    yield


class Rows(list):
    """Collects what a part emits."""

    def __call__(self, row: str, **values: Any) -> None:
        self.append({"row": row, **values})


def _options(**given: Any) -> argparse.Namespace:
    usual = {
        "rounds": 1,
        "dry_run": True,
        "trace": None,
        "seconds": 60.0,
        "leave_out": [],
        "rows": None,
    }
    return argparse.Namespace(**{**usual, **given})


def test_contestants_are_checked_timed_in_turns_and_counted_by_visible_pairs() -> None:
    import gpu_attention

    rows = Rows()
    case = gpu_attention.Case("packed", 128, 64, tokens=128, width=64)
    gpu_attention.compare(case, rows, rounds=2, dry_run=True, leave_out=["pallas_hopper"])
    names = [(row["contestant"], row["passing"]) for row in rows]
    expected = {(n, p) for n in ("cudnn with mask", "pallas") for p in ("forward", "both")}
    assert set(names) == expected and all(row["row"] == "attention" for row in rows)
    ids = gpu_attention.segment_ids(1, 128)[0]
    pairs = sum(ids[s] == ids[t] for t in range(128) for s in range(t + 1))
    for row in rows:
        flops = {"forward": 4, "both": 14}[row["passing"]] * 64 * pairs
        assert row["tflops"] == pytest.approx(flops / row["milliseconds"] * 1e3 / 1e12)
        assert row["error"] < 0.01 and row["to_cudnn"] > 0
    assert [row["to_cudnn"] for row in rows if row["contestant"] != "pallas"] == [1.0, 1.0]


def test_a_wrong_contestant_and_one_that_breaks_get_no_speed_but_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import gpu_attention

    def broken(*_: Any) -> Any:
        raise RuntimeError("no such instruction\nand more")

    found = {
        "cudnn": lambda q, k, v, ranges, mask: q * 1.0 + 0 * k * v,
        "other": broken,
    }
    monkeypatch.setattr(gpu_attention, "contestants", lambda *_: found)
    rows = Rows()
    case = gpu_attention.Case("causal", 32, 64, tokens=32, width=64)
    gpu_attention.compare(case, rows, rounds=1, dry_run=True, leave_out=[])
    assert [row["row"] for row in rows] == ["failed"] * 3
    assert "forward is wrong: distance" in rows[0]["reason"]
    assert rows[2]["reason"] == "RuntimeError: no such instruction"


def test_turns_alternate_and_the_first_round_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on only while something is called: a takes 2 s, b takes 4 s."""
    import gpu_attention

    calls: list[str] = []
    work = {name: partial(calls.append, name) for name in ("a", "b")}
    clock = SimpleNamespace(perf_counter=lambda: 2.0 * calls.count("a") + 4.0 * calls.count("b"))
    monkeypatch.setattr(gpu_attention, "time", clock)
    found = gpu_attention.alternate(work, rounds=3, round_seconds=8.0)
    assert found == {"a": [2.0] * 3, "b": [4.0] * 3}
    assert "".join(calls[:4]) == "aabb"  # compiled, then counted
    assert "".join(calls[4:]) == "aaaabb" + "bbaaaa" + "aaaabb" + "bbaaaa"


def test_packed_rows_have_segments_of_the_asked_mean() -> None:
    import gpu_attention

    ids = gpu_attention.segment_ids(64, 4096, 512)
    assert ids.min() == 1 and (np.diff(ids, axis=1) >= 0).all() and (np.diff(ids, axis=1) < 2).all()
    mean = ids.size / ids.max(1).sum()
    assert 350 < mean < 650


def test_variants_of_the_step_train_the_same_state_in_turns(tmp_path: Path) -> None:
    import gpu_steps

    rows = Rows()
    gpu_steps.measure("ipt_500m", rows, 2, 300, True, tmp_path / "trace")
    kinds = [row["row"] for row in rows]
    assert kinds == ["compiled", "trace", "compiled", "training", "training"], rows
    assert list(Path(rows[1]["folder"]).rglob("*.pb"))
    for row in rows[3:]:
        assert row["tokens_per_second"] > 0 and row["rounds"] == 2 and row["temp_bytes"] > 0
        assert row["mfu_causal"] is None, "no MFU on a device whose peak is not known"
    # Both begin near log V, on the same data with the same mask; the second trains on.
    first, second = (row["loss"] for row in rows if row["row"] == "compiled")
    assert first == pytest.approx(math.log(256), rel=0.02) and second < first
    batch = gpu_steps.batch_of(64, 2, 256)
    starts = np.flatnonzero(np.asarray(batch["positions"][0]) == 0)
    changes = np.flatnonzero(np.diff(np.asarray(batch["segment_ids"][0]))) + 1
    assert starts.tolist() == [0, *changes] and len(starts) > 1


def test_neighbours_are_held_against_a_copy_of_as_many_bytes() -> None:
    import bench_gpu
    import gpu_neighbours
    import jax
    import jax.numpy as jnp

    from ipt_jax.models.config import PRESETS

    found = gpu_neighbours.neighbours(PRESETS["ipt_1_3b"], 1, 2)
    c = PRESETS["ipt_1_3b"]
    least = {name: gpu_neighbours.moved_bytes(one, "forward") for name, one in found.items()}
    tokens, size = 2, 2  # of two bytes a number
    assert least == {
        "RMSNorm": size * (2 * tokens + 1) * c.width,
        "RoPE": size * 2 * tokens * c.heads * c.head_width,
        "SwiGLU": size * 3 * tokens * c.mlp_width,
    }
    assert (
        gpu_neighbours.moved_bytes(found["SwiGLU"], "backward") == size * 5 * tokens * c.mlp_width
    )
    assert gpu_neighbours.moved_bytes(found["RoPE"], "backward") == least["RoPE"]
    passes = gpu_neighbours.passes_of(found["SwiGLU"])
    gate, up = found["SwiGLU"].arrays
    assert jnp.array_equal(passes["forward"](), jax.nn.silu(gate) * up)
    assert [x.shape for x in passes["backward"]()] == [gate.shape, up.shape]

    rows = Rows()
    gpu_neighbours.measure(rows, rounds=2, dry_run=True)
    assert [row["row"] for row in rows] == ["neighbour"] * 6 + ["cross_entropy"]
    for row in rows[:6]:
        assert row["spread"][0] <= row["of_copy"] <= row["spread"][1] and row["of_copy"] > 0
    assert rows[6]["difference"] < 1e-5 and rows[6]["bytes"] > 0
    row = {**rows[0], "milliseconds": 0.0523, "of_copy": 0.914, "spread": [0.9, 0.92]}
    row["gigabytes_per_second"] = 3412.2
    ending = {**rows[6], "milliseconds": 21.0, "to_at_once": 1.25}
    ending |= {"bytes": 0.21e9, "bytes_at_once": 4.2e9}
    lines = bench_gpu.neighbours_table({"neighbour": [row], "cross_entropy": [ending]})
    assert "| RMSNorm | forward | 0.0523 | 3,412 | 0.91 (0.90, 0.92) |" in lines
    assert lines[-2].endswith("1.25 of the speed with all logits at once, 0.21 GB beside 4.20 GB.")


def test_the_lines_of_both_tables_of_sizes_are_printed() -> None:
    import bench_gpu
    import gpu_attention
    import jax

    from ipt_jax.attention import block_sizes

    rows = Rows()
    gpu_attention.tiles(64, rows, 60.0, dry_run=True)
    (row,) = rows
    assert row["row"] == "tiles" and row["line"].count("1 timed, 0 did not run, 0 not tried") == 3
    (key, sizes), *_ = eval("{" + row["line"] + "}", vars(block_sizes)).items()
    assert key == (jax.devices()[0].device_kind, 64, 2) and jax.__version__ in sizes.measured
    assert sizes.forward == sizes.d_query == sizes.d_key_value == block_sizes.Tile(32, 32)
    rows("tuning", line="    128: Tuning(),")
    text = bench_gpu.render(rows, _options())
    assert text.count("## Sizes") == 1 and "TABLE in `ipt_jax/attention/block_sizes.py`" in text
    assert "    128: Tuning()," in text.splitlines()
    assert any(line.startswith("    # d_key_value: ") for line in text.splitlines())


def test_only_sizes_that_can_be_built_are_tried() -> None:
    import gpu_attention

    from ipt_jax.attention.pallas_hopper import HEAD_WIDTHS, TUNINGS, Tiles, fits

    counts = {}
    for width in HEAD_WIDTHS:
        for kernel in ("forward", "dq", "dkv"):
            tried = list(gpu_attention.candidates(kernel, width))
            counts[width, kernel] = len(tried)
            assert len(set(tried)) == len(tried)
            assert all(fits(kernel, width, tiles) for tiles in tried)
            assert getattr(TUNINGS[width], kernel) in tried
    assert [counts[128, kernel] for kernel in ("forward", "dq", "dkv")] == [8, 4, 3]
    # Results take the place of rows only where they must.
    assert Tiles(64, 2) in (found := list(gpu_attention.candidates("dkv", 128)))
    assert [tiles.in_place for tiles in found] == [False, True, True]


def test_all_parts_together_fit_into_the_time() -> None:
    import bench_gpu

    assert sum(part.seconds for part in bench_gpu.PARTS) <= bench_gpu.ALL_SECONDS < 720
    kinds = {part.name for part in (*bench_gpu.PARTS, *bench_gpu.MORE_PARTS)}
    assert {f"{kind}:{width}" for kind in ("autotune", "tiles") for width in (64, 128)} <= kinds


WORKER = """
import sys, time
name = sys.argv[sys.argv.index("--part") + 1]
print('noise')
print('ROW {"row": "attention", "contestant": "x"}', flush=True)
if name == "probe:pallas":
    time.sleep(3600)
if name == "case:causal:4096:128":
    sys.exit("error: it broke")
"""


def test_a_part_that_hangs_or_breaks_keeps_its_rows_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bench_gpu

    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    monkeypatch.setattr(bench_gpu, "WORKER", worker)
    kept = tmp_path / "rows.jsonl"
    hung = bench_gpu.run_process("probe:pallas", 2.0, _options(rows=kept), {}, [])
    assert hung == [
        {"row": "attention", "contestant": "x"},
        {"row": "skipped", "what": "the rest of probe:pallas", "why": "stopped after 2 s"},
    ]
    assert [json.loads(line) for line in kept.read_text().splitlines()] == hung
    broke = bench_gpu.run_process("case:causal:4096:128", 60.0, _options(), {}, [])
    assert broke[1]["why"] == "ended with 1: error: it broke"
    probe = {"row": "probe", "contestant": "pallas_hopper", "good": False}
    good = {**probe, "contestant": "y", "good": True}
    late = {**hung[1], "what": "the rest of probe:y"}  # hung after a row that was good
    assert bench_gpu.left_out([*hung, probe, good, late]) == ["pallas", "pallas_hopper"]


def test_parts_without_time_are_named_and_the_page_says_what_it_holds_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench_gpu

    page = tmp_path / "gpu.md"
    monkeypatch.setattr(bench_gpu, "RESULTS", page)
    options = _options(
        dry_run=False,
        seconds=0.0,
        parts=["case:causal:4096:128", "steps:ipt_500m"],
        write=True,
    )
    bench_gpu.bench(options)
    text = capsys.readouterr().out
    assert text.strip() == page.read_text().strip()
    for what in options.parts:
        assert f"- {what}: no time left" in text
    with pytest.raises(SystemExit, match="--parts nonsense: known are probe:cudnn_packed"):
        bench_gpu.bench(_options(parts=["nonsense"]))


def test_the_page_shows_speed_memory_and_what_failed() -> None:
    import bench_gpu

    about = {"device": "NVIDIA H200", "jax": "1", "jaxlib": "2", "platform": "CUDA 13"}
    case = {"mask": "causal", "length": 4096, "head_width": 128, "passing": "forward"}
    speed = {"tflops": 512.3, "spread": [500.0, 520.0], "milliseconds": 1.234, "error": 0.0021}
    model = {"model": "ipt_500m", "rows": "16 × 2048 dense"}
    rows = [
        {"row": "about", "date": "2026-01-02", **about},
        {"row": "attention", "contestant": "pallas", "to_cudnn": 1.054, **case, **speed},
        {
            "row": "training",
            "contestant": "ours, pallas",
            "tokens_per_second": 158000.4,
            "spread": [150000.0, 160000.0],
            "mfu_causal": 0.501,
            "mfu_full": 0.55,
            "peak_bytes": 50e9,
            "temp_bytes": None,
            **model,
        },
        {"row": "failed", "contestant": "cudnn", "reason": "no plan", **model},
    ]
    text = bench_gpu.render(rows, _options(dry_run=False, rounds=5))
    assert "NVIDIA H200, JAX 1, jaxlib 2, CUDA 13; 2026-01-02" in text
    assert (
        "| causal | 4096 | 128 | forward | pallas | 512 (500, 520) | 1.23 | 1.05 | 0.0021 |" in text
    )
    speeds = "158,000 (150,000, 160,000) | 50.1% | 55.0%"
    assert f"| ipt_500m | 16 × 2048 dense | ours, pallas | {speeds} | 50.0 |  |" in text
    assert "- cudnn, ipt_500m 16 × 2048 dense: no plan" in text


def test_the_page_in_the_repository_claims_nothing_that_was_not_measured() -> None:
    text = (ROOT / "docs" / "results" / "gpu.md").read_text(encoding="utf-8")
    measured = "NVIDIA" in text and "contestants in turns" in text
    assert measured or ("nothing has been measured" in text and "TFLOP/s" not in text)
