"""Plot what a mixture holds and what its rows are made of: one HTML page and a table here.

    python tools/data_report.py --data.mixture configs/mixtures/ipt_general.yaml \
        --output report.html --batches 500 --rows 64

Lengths come from the length indexes, which are counted first where there are none. Rates, fill,
epochs and loss are those of the first batches, which are made just as a training gets them: with
its rows a batch and its number of batches they are those of the run. Checksums are not compared.
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ipt_jax.core.errors import importing

with importing():
    import numpy as np

    from ipt_jax.core.bounds import Config, Positive
    from ipt_jax.core.configuration import parse_config, run_main
    from ipt_jax.core.report.figures import SERIES_COLOURS, Bars, Histogram, Lines, Series
    from ipt_jax.core.report.markdown import text_table
    from ipt_jax.core.report.numbers import format_cell, format_number, format_percent
    from ipt_jax.core.report.page import write_page
    from ipt_jax.core.report.values import (
        Facts,
        Note,
        Paragraph,
        Part,
        Report,
        Section,
        Table,
    )
    from ipt_jax.core.terminal import visible
    from ipt_jax.data.pipeline import DataConfig, open_mixture
    from ipt_jax.data.statistics import QUANTILES, Survey, survey
    from ipt_jax.data.tasks import Mixture

_BINS = 40  # of lengths
_COLUMNS = 60  # of segments a row, at the most
_POINTS = 300  # of a line: more batches are drawn as means of several
_NAMED = 200  # damaged records on the page; the rest is counted
_SHARE = "share of tokens"


@dataclass(frozen=True)
class DataReportConfig(Config):
    """What to look at. Raises UserError for a value that cannot be."""

    output: Path
    """The HTML file to write."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data, as in a training config."""
    batches: Positive = 100
    """N: batches to make, from the first."""
    rows: Positive = 8
    """B: rows in a batch."""


def overview(found: Survey) -> Table:
    """The figures of each task, as on the terminal."""
    asked = found.asked.mean(axis=0)
    counts = found.tokens.sum(axis=0)
    realised, learnt = counts / max(counts.sum(), 1), found.learnt.sum(axis=0)
    rows = []
    for number, task in enumerate(found.tasks):
        damaged = sum(name == task.name for name, *_ in found.damaged)
        rows.append(
            (
                task.name,
                task.records,
                task.epoch_tokens,
                task.quantile(0.5),
                f"{asked[number]:.2%}",
                f"{realised[number]:.2%}",
                int(counts[number]),
                f"{found.epochs(number):.3g}",
                format_percent(learnt[number] / max(counts[number], 1)),
                damaged,
            )
        )
    total = int(counts.sum())
    rows.append(
        (
            "in all",
            sum(task.records for task in found.tasks),
            sum(task.epoch_tokens for task in found.tasks),
            "",
            "",
            "",
            total,
            "",
            format_percent(learnt.sum() / max(total, 1)),
            len(found.damaged),
        )
    )
    header = ("task", "records", "tokens an epoch", "median length", "asked", "realised")
    header += ("tokens", "epochs", "with loss", "damaged")
    return Table("Tasks", header, rows, total=True)


def tokens_section(found: Survey) -> Section:
    counts, asked = found.tokens.sum(axis=0), found.asked.mean(axis=0)
    bars = [(task.name, (asked[n] * counts.sum(), counts[n])) for n, task in enumerate(found.tasks)]
    return Section(
        "Tokens of each task",
        [Bars("Tokens in the batches made", ("asked", "realised"), bars), overview(found)],
    )


def rates_section(found: Survey) -> Section:
    """Shares batch by batch; charts of as many tasks as there are colours."""
    steps, shares = thinned(found, found.shares)
    begins = np.asarray([0, *found.stages, len(found.tokens)])
    marks = [(float(step), f"stage from step {step:,}") for step in found.stages]
    parts: list[Part] = []
    for first in range(0, len(found.tasks), SERIES_COLOURS):
        numbers = range(first, min(first + SERIES_COLOURS, len(found.tasks)))
        lines = [Series(found.tasks[n].name, steps, shares[:, n].tolist()) for n in numbers]
        for place, n in enumerate(numbers):
            asked = np.repeat(found.asked[begins[:-1], n], 2).tolist()
            ends = np.repeat(begins, 2)[1:-1].tolist()
            lines.append(Series("", ends, asked, like=place))
        title = "Realised rates, batch by batch; asked dashed"
        parts.append(Lines(title, lines, "batches", _SHARE, marks=marks))
    so_far = np.cumsum(found.tokens, axis=0)[-1] / max(found.tokens.sum(), 1)
    worst = int(np.argmax(np.abs(so_far - found.asked.mean(axis=0))))
    gap = so_far[worst] - found.asked[:, worst].mean()
    parts.append(
        Paragraph(
            f"Over all {len(found.tokens):,} batches the task furthest from its rate is "
            f"{found.tasks[worst].name}, by {100 * gap:+.3f} percentage points."
        )
    )
    return Section("Rates over the run", parts)


def thinned(found: Survey, values: np.ndarray) -> tuple[list[float], np.ndarray]:
    """Batches, from 1, and values [N, …] of at most about ``_POINTS`` of them.

    More are means of neighbours; none of batches on both sides of a change of rates.
    """
    size = -(-len(values) // _POINTS)
    begins = [0, *found.stages, len(values)]
    at: list[int] = []
    for low, high in itertools.pairwise(begins):
        at += range(low, high, size)
    counts = np.diff([*at, len(values)])
    means = np.add.reduceat(values, at) / counts.reshape(-1, *[1] * (values.ndim - 1))
    middles = np.asarray(at) + (counts + 1) / 2
    return middles.tolist(), means


def lengths_section(found: Survey, row_tokens: int) -> Section:
    edges = found.edges(_BINS)
    parts: list[Part] = []
    for number, task in enumerate(found.tasks):
        marks = [(q, f"{'median' if q == 0.5 else f'{q:.0%}'}") for q in (0.1, 0.5, 0.9, 0.99)]
        parts.append(
            Histogram(
                f"Lengths of {task.name}",
                edges.tolist(),
                task.histogram(edges).tolist(),
                "tokens of an example, BOS and EOS included",
                "examples",
                marks=[
                    (tokens, f"{label} {tokens:,}")
                    for share, label in marks
                    if (tokens := task.quantile(share)) >= edges[0]
                ],
                logarithmic=True,
                whole=True,
                colour=number,
            )
        )
    header = ["task", *(f"{q:.0%}" if 0 < q < 1 else ("most" if q else "least") for q in QUANTILES)]
    header.append(f"longer than a row ({row_tokens:,})")
    rows = [
        (task.name, *(task.quantile(q) for q in QUANTILES), task.longer_than(row_tokens))
        for task in found.tasks
    ]
    parts.append(Table("Lengths in tokens", header, rows))
    return Section("Lengths of examples", parts)


def rows_section(found: Survey, config: DataConfig) -> Section:
    steps, fill = thinned(found, found.fill)
    rows = int(found.segments.sum())
    upto = np.cumsum(found.segments)
    places = found.places * len(found.tokens)
    tokens = int(found.tokens.sum())
    mean = float(found.segments @ np.arange(len(found.segments))) / rows
    facts = [
        ("packing", config.packing),
        ("rows", rows),
        ("tokens in a row", config.row_tokens),
        ("fill", f"{tokens / places:.3%}"),
        ("padding, in tokens", places - tokens),
        ("segments a row, mean", f"{mean:.2f}"),
        ("segments a row, median", int(np.searchsorted(upto, rows / 2))),
        ("segments a row, most", len(found.segments) - 1),
    ]
    lowest = int(np.flatnonzero(found.segments)[0])
    width = -(-(len(found.segments) - lowest) // _COLUMNS)
    begins = np.arange(lowest, len(found.segments), width)
    return Section(
        "Rows",
        [
            Lines(
                "Fill: places that hold tokens",
                [Series(config.packing, steps, (100 * fill).tolist())],
                "batches",
                "% of a batch",
                height=220,
                smooth=False,
                most=100,
            ),
            Histogram(
                "Segments a row",
                [*begins.tolist(), int(begins[-1]) + width],
                np.add.reduceat(found.segments, begins).tolist(),
                "segments",
                "rows",
                whole=True,
                colour=1,
            ),
            Table("Packing", ("", ""), facts),
        ],
    )


def epochs_section(found: Survey) -> Section:
    bars, rows = [], []
    for number, task in enumerate(found.tasks):
        epochs = found.epochs(number)
        bars.append((task.name, (epochs,)))
        if task.max_epochs is not None:
            rows.append((task.name, f"{epochs:.3g}", f"{task.max_epochs:g}"))
    parts: list[Part] = [
        Bars(f"Epochs after {len(found.tokens):,} batches", ("epochs",), bars),
        Table("Sources that may run out", ("task", "epochs", "at most"), rows),
    ]
    return Section("Epochs", parts)


def loss_section(found: Survey) -> Section:
    counts = np.maximum(found.tokens.sum(axis=0), 1)
    shares = found.learnt.sum(axis=0) / counts
    weights = found.weight.sum(axis=0) / np.maximum(found.learnt.sum(axis=0), 1)
    bars = [(task.name, (float(shares[n]),)) for n, task in enumerate(found.tasks)]
    rows = [
        (task.name, int(found.learnt[:, n].sum()), format_percent(shares[n]), f"{weights[n]:.4g}")
        for n, task in enumerate(found.tasks)
    ]
    header = ("task", "targets with loss", "share of tokens", "their mean weight")
    return Section(
        "Loss",
        [
            Bars("Tokens whose target carries loss", ("share",), bars, format_percent),
            Table("Loss", header, rows),
        ],
    )


def damage_section(found: Survey) -> Section:
    rows = [(task, record, visible(what)) for task, record, what in found.damaged]
    left = len(rows) - _NAMED
    note = f"{left:,} more are not listed here." if left > 0 else ""
    header = ("task", "record", "where and what")
    return Section(
        "Damaged records",
        [Table("Records left out", header, rows[:_NAMED], note, text_columns=3)],
    )


def report(found: Survey, config: DataReportConfig, mixture: Mixture) -> Report:
    tokens, places = int(found.tokens.sum()), found.places * len(found.tokens)
    gap = np.abs(found.tokens.sum(axis=0) / max(tokens, 1) - found.asked.mean(axis=0)).max()
    records = sum(task.records for task in found.tasks)
    learnt = format_percent(found.learnt.sum() / max(tokens, 1))
    facts = [
        (format_number(tokens), f"tokens in {len(found.tokens):,} batches of {config.rows:,} rows"),
        (f"{tokens / places:.2%}", f"of the places filled ({config.data.packing})"),
        (f"{100 * gap:.2f}", "percentage points, the largest difference to an asked rate"),
        (learnt, "of the tokens have a target with loss"),
        (format_cell(records), f"records in {len(found.tasks)} tasks"),
        (format_cell(len(found.damaged)), "damaged records left out"),
    ]
    opening: list[Part] = [Facts(facts)]
    if found.damaged:
        text = "What could not be read is listed below; its tokens are in no row."
        opening.append(Note("Some records are damaged.", text))
    return Report(
        f"Data of the mixture {mixture.name}",
        f"mixed by {mixture.by} · tokenizer {config.data.tokenizer} · rows of "
        f"{config.data.row_tokens:,} tokens · seed {config.data.seed}",
        opening,
        [
            tokens_section(found),
            rates_section(found),
            lengths_section(found, config.data.row_tokens),
            rows_section(found, config.data),
            epochs_section(found),
            loss_section(found),
            damage_section(found),
        ],
    )


def _counting(task: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else "\r"
        print(
            f"counting tokens of {visible(task)}: {done:,} of {total:,}", end=end, file=sys.stderr
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Count, write the page and print the table."""
    config = parse_config(DataReportConfig, argv, prog="data_report.py", description=str(__doc__))
    data = open_mixture(config.data, verify=False, progress=_counting)
    found = survey(data, batch_count=config.batches, rows=config.rows)
    path = write_page(config.output, report(found, config, data.mixture))
    print(text_table(overview(found)))
    filled = found.tokens.sum() / (found.places * len(found.tokens))
    print(f"\n{found.segments.sum():,} rows, {filled:.3%} filled ({config.data.packing}): {path}")


if __name__ == "__main__":
    run_main(main)
