"""Counts between edges, for the charts of a corpus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ipt_jax.core.report.figures import Histogram

_COLUMNS = 40


def histogram(
    title: str,
    values: Sequence[int],
    x_label: str,
    y_label: str,
    marks: tuple[tuple[float, str], ...] = (),
) -> Histogram:
    """Columns of whole numbers, all equally wide; one a number where there are few.

    The last column takes in what lies past the 99th percentile, as its label says.
    """
    found = np.asarray(values, np.int64)
    if not len(found):
        return Histogram(title, (0.0, 1.0), (0,), x_label, y_label)
    end = int(np.quantile(found, 0.99, method="higher"))
    width = max(1, -(-(end + 1) // _COLUMNS))
    edges = np.arange(0, end + 1 + width, width)
    counts, _ = np.histogram(np.minimum(found, end), edges)
    longest = int(found.max())
    more = f" (last column: up to {longest:,})" if longest >= edges[-1] else ""
    return Histogram(
        title,
        tuple(map(float, edges)),
        tuple(map(int, counts)),
        x_label + more,
        y_label,
        tuple((x, label) for x, label in marks if edges[0] <= x <= edges[-1]),
        whole=True,
    )
