"""What the guard skipped, with the records that were in it: skipped.jsonl in the run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ipt_jax.core.errors import RunStopped
from ipt_jax.core.files import append_lines
from ipt_jax.data.pipeline import MixtureRows
from ipt_jax.training.jsonl_log import drop_later_lines

EXIT_CODE = 3
NOTHING_LEARNT = "no token to learn"


class SkipLog:
    """Writes a line for each skipped batch and says when there were too many in a row."""

    def __init__(
        self,
        folder: Path,
        rows: Callable[[], MixtureRows],
        *,
        rows_per_batch: int,
        stop_after: int,
        first_position: int,
        write: bool,
    ):
        """`rows` is called at the first skip: the whole run's rows.

        Lines past `first_position` are dropped: those batches will come again.
        """
        self._path, self._rows, self._write = folder / "skipped.jsonl", rows, write
        self._rows_per_batch, self._stop_after = rows_per_batch, stop_after
        self.too_many = False
        self._in_a_row: list[str] = []
        if write:
            drop_later_lines(self._path, first_position)

    def record(self, position: int, metrics: Mapping[str, Any]) -> None:
        """Note batch number `position`, from 1, if its metrics (host values) say it was skipped."""
        if not metrics["skipped"]:
            self._in_a_row.clear()
            return
        self.too_many |= int(metrics["skipped_in_a_row"]) >= self._stop_after
        figures = {key: float(metrics[key]) for key in ("loss", "gradient_norm")}
        if not metrics["learnt_tokens"].any():
            reason = NOTHING_LEARNT
        elif all(map(math.isfinite, figures.values())):
            reason = "loss spike"
        else:
            reason = "loss or gradient not finite"
        self._in_a_row.append(reason)
        if not self._write:
            return
        start = (position - 1) * self._rows_per_batch
        line = {
            "step": position,
            "reason": reason,
            # JSON has no NaN: such a figure is written as text.
            **{key: x if math.isfinite(x) else str(x) for key, x in figures.items()},
            "records": self._rows().records(start, start + self._rows_per_batch),
        }
        append_lines(self._path, json.dumps(line, ensure_ascii=False) + "\n")

    def stop(self, position: int, not_finite: str) -> RunStopped:
        """The error that ends the run after too many skipped batches in a row.

        `not_finite` names the weights that hold NaN or infinity.
        """
        said = (
            f"stopped after step {position}, saved: the guard skipped {self._stop_after} batches "
            "in a row or more (guard.stop_after)."
        )
        if not_finite:
            said += (
                f" The batches are not at fault: weights hold NaN or infinity ({not_finite}), "
                "and so every loss does. Go back with --resume POSITION to a checkpoint from "
                "before, and lower optimizer.peak_learning_rate in a new run if it comes again."
            )
        elif set(self._in_a_row) == {NOTHING_LEARNT}:
            said += (
                " All their tokens are masked (loss weight 0), so there was nothing to learn. "
                f"{self._path} names their records; see that they have responses where a task "
                "says `loss: responses`. The same command goes on behind them."
            )
        else:
            said += (
                f" {self._path} names their records. If they are sound, lower "
                "optimizer.peak_learning_rate in a new run, or set guard.spike_deviations higher "
                "(0: only what is not finite is skipped) and run the same command again; it goes "
                "on behind them."
            )
        return RunStopped(said, EXIT_CODE)
