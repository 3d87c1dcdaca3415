"""Seconds that each test file takes on an idle machine (budget.json): what is light, what grew.

`IPT_BUDGET=write make test` on an idle machine writes it anew. Nothing fails by it: no verdict
hangs on the machine's speed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

BUDGET = Path(__file__).with_name("budget.json")
LIGHT_SECONDS = 10.0  # a file of `make check`
OVER, LEAST_SECONDS = 1.5, 5.0  # so much more than its budget, and more than that, is told


def budgets() -> dict[str, float]:
    """Seconds by file; files of less than half a second are not in it."""
    return json.loads(BUDGET.read_text(encoding="utf-8")) if BUDGET.exists() else {}


def spent(stats: Mapping[str, Iterable[Any]]) -> dict[str, float]:
    """Seconds by file of a run, setups and teardowns included, most first."""
    seconds = Counter[str]()
    for reports in stats.values():
        for report in reports:
            if hasattr(report, "duration"):
                seconds[report.nodeid.partition("::")[0]] += report.duration
    return {file: round(took, 1) for file, took in seconds.most_common() if took >= 0.5}


def over_budget(took: Mapping[str, float], allowed: Mapping[str, float]) -> list[str]:
    """A line for each file that took much longer than its budget."""
    return [
        f"{file}: {seconds:.0f} s, budget {allowed.get(file, 0):.0f} s"
        for file, seconds in took.items()
        if seconds > max(OVER * allowed.get(file, 0), LEAST_SECONDS)
    ]


def write(took: Mapping[str, float]) -> None:
    """Make this run the budget."""
    BUDGET.write_text(json.dumps(dict(sorted(took.items())), indent=1) + "\n", encoding="utf-8")
