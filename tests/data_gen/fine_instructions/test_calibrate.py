"""Thresholds from judged pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen.fine_instructions.calibrate import JudgedPair, calibrate, load_judged
from ipt_jax.core.errors import UserError


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=5, max_size=60))
def test_the_threshold_is_the_lowest_that_is_precise_enough(found) -> None:
    pairs = [JudgedPair(score / 50, fits) for score, fits in found]

    def precise(threshold: float) -> bool:
        kept = [pair.fits for pair in pairs if pair.score >= threshold]
        return len(kept) >= 5 and sum(kept) / len(kept) >= 0.8

    good = [pair.score for pair in pairs if precise(pair.score)]
    if not good:
        with pytest.raises(UserError) as refused:
            calibrate(pairs, 0.8, least_pairs=5)
        assert refused.value.key == "precision"
        return
    calibration = calibrate(pairs, 0.8, least_pairs=5)
    assert calibration.threshold == min(good)
    row = next(row for row in calibration.table if row.threshold == calibration.threshold)
    assert row.precision >= 0.8
    assert row.found == sum(p.fits for p in pairs if p.score >= row.threshold) / sum(
        p.fits for p in pairs
    )
    counts = [row.pairs for row in calibration.table]
    assert counts == sorted(counts, reverse=True) and counts[0] == len(pairs)


def test_judged_pairs_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"score": 0.5, "fits": 1}\n{"score": 0.7, "fits": false, "id": "x"}\n')
    assert load_judged(path) == [JudgedPair(0.5, True), JudgedPair(0.7, False)]
    for line in ('{"score": 0.5}', '{"score": "x", "fits": 1}', '{"score": 1, "fits": 3}', "{"):
        path.write_text('{"score": 0.5, "fits": 1}\n' + line)
        with pytest.raises(UserError) as refused:
            load_judged(path)
        assert (refused.value.key, refused.value.record) == ("pairs", "2")
    for pairs in ([], [JudgedPair(np.nan, True)] * 30):
        with pytest.raises(UserError) as refused:
            calibrate(pairs)
        assert refused.value.key == "pairs"
