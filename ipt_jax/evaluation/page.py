"""What models scored, as a section of a page."""

from __future__ import annotations

from collections.abc import Sequence

from ipt_jax.core.report.figures import Intervals
from ipt_jax.core.report.numbers import format_count
from ipt_jax.core.report.values import Paragraph, Part, Section, Table
from ipt_jax.evaluation.results import Result

# What a model that knows nothing scores, by task and metric.
CHANCE = {("sample_continuation", "acc"): 0.25, ("sample_continuation", "acc_norm"): 0.25}


def evaluation_section(results: Sequence[Result]) -> Section:
    """Every number with its 95% confidence interval, as a table and as dots with whiskers."""
    rows = [
        (
            *(r.task, f"{r.metric} {'↑' if r.higher_is_better else '↓'}", r.model),
            *(f"{r.value:.4f}", r.between(), r.items),
        )
        for r in sorted(results, key=lambda r: (r.task, r.metric))
    ]
    header = ("task", "metric", "model", "value", "95% interval", "items")
    note = "↑ higher is better, ↓ lower is better. Intervals are over items, not over seeds. "
    note += "Cut: items whose context did not fit into the model's and lost its beginning."
    parts: list[Part] = [
        Paragraph(
            f"{format_count(len({r.model for r in results}), 'model')} on "
            f"{format_count(len({r.task for r in results}), 'task')}, by lm-evaluation-harness."
        ),
        Table("Scores", header, rows, note, text_columns=3),
    ]
    for task, metric in dict.fromkeys((r.task, r.metric) for r in results):
        dots = [
            (r.model, r.value, r.low, r.high)
            for r in results
            if (r.task, r.metric) == (task, metric)
        ]
        marks = [(CHANCE[task, metric], "chance")] if (task, metric) in CHANCE else []
        parts.append(Intervals(f"{task}: {metric}", dots, marks))
    return Section("Evaluation", parts)
