"""Charts as inline SVG, drawn here so that a page needs no script and no other file.

Colours, strokes and type come from the page's style sheet (classes s0, s1, …), so that one chart
serves light, dark and print. Everything written into a chart is escaped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

SERIES_COLOURS = 6  # classes s0 … s5 in the style sheet
BAR_COLOURS = 2  # b0 and b1: unlike the series, for bars compare kinds of number, not runs
WIDTH = 720
_LETTER = 7  # about the width of a letter of a label
_ROW = 14  # from one row of labels to the next


@dataclass(frozen=True)
class Series:
    """A named line; x and y of equal length."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    like: int | None = None
    """Number of the series that this one is the reference of: its colour, dashed, no points."""


@dataclass(frozen=True)
class LineChart:
    """Lines over a shared x axis: the raw points faint, their smoothed course on top.

    At each of `marks`, (x, label), a dashed line stands and the smoothing begins anew.
    """

    title: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    height: int = 300
    smooth: bool = True
    marks: Sequence[tuple[float, str]] = ()
    most: float = math.inf
    """What y cannot exceed; the axis ends there."""

    def html(self) -> str:
        left, right, top, bottom = 56, 16, 30, 44
        points = [(x, y) for s in self.series for x, y in zip(s.x, s.y, strict=True)]
        points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        if not points:
            return f'<p class="empty">{escape(self.title)}: nothing was measured.</p>'
        x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points), 6)
        y_ticks = ticks(min(y for _, y in points), max(y for _, y in points), 5)
        y_ticks = [y for y in y_ticks if y <= self.most]
        to_x = _scale(min(x_ticks[0], points[0][0]), x_ticks[-1], left, WIDTH - right)
        to_y = _scale(y_ticks[0], y_ticks[-1], self.height - bottom, top)
        body = []
        for y in y_ticks:
            at = f"{to_y(y):.1f}"
            body.append(
                f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{at}" y2="{at}"/>'
            )
            body.append(_text(left - 8, to_y(y) + 4, short(y), "tick end"))
        for x in x_ticks:
            body.append(_text(to_x(x), self.height - bottom + 18, short(x), "tick middle"))
        middle = (left + WIDTH - right) / 2
        body.append(_text(middle, self.height - 6, self.x_label, "label middle"))
        body.append(_text(4, 12, self.y_label, "label"))
        marks = _placed([(to_x(x), label) for x, label in self.marks])
        body += _drawn(marks, top - 6, self.height - bottom)
        for number, s in enumerate(self.series):
            colour = f"s{(number if s.like is None else s.like) % SERIES_COLOURS}"
            pairs = [p for p in zip(s.x, s.y, strict=True) if all(map(math.isfinite, p))]
            if s.like is not None:
                path = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in pairs)
                body.append(f'<polyline class="curve asked {colour}" points="{path}"/>')
                continue
            if self.smooth or len(pairs) == 1:
                body += [
                    f'<circle class="raw {colour}" cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="1.8"/>'
                    for x, y in pairs
                ]
            for part in self._parts(pairs):
                line = smoothed([y for _, y in part]) if self.smooth else [y for _, y in part]
                drawn = zip((x for x, _ in part), line, strict=True)
                path = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in drawn)
                body.append(f'<polyline class="curve {colour}" points="{path}"/>')
        chart = _svg(self.title, WIDTH, self.height, "".join(body), "line-chart")
        return figure(self.title, chart, [s.name for s in self.series if s.like is None])

    def _parts(self, pairs: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
        """The points between one mark and the next."""
        borders = [-math.inf, *sorted(x for x, _ in self.marks), math.inf]
        parts = [
            [(x, y) for x, y in pairs if low < x <= high]
            for low, high in itertools.pairwise(borders)
        ]
        return [part for part in parts if part]


@dataclass(frozen=True)
class Bars:
    """Horizontal bars: for each label one value for each of `names`, on a common scale."""

    title: str
    names: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float]]]
    say: Callable[[float], str] = field(default=lambda value: short(value))

    def html(self) -> str:
        bar, gap, left, right, top = 14, 14, 190, 76, 6
        most = max((v for _, values in self.rows for v in values), default=0) or 1
        step = bar * len(self.names) + gap
        height = top + step * len(self.rows)
        body = []
        for row, (label, values) in enumerate(self.rows):
            y = top + row * step
            body.append(
                _text(left - 10, y + bar * len(values) / 2 + 4, _cut(label, 27), "name end", label)
            )
            for number, value in enumerate(values):
                width = max(1.0, value / most * (WIDTH - left - right))
                at = y + number * bar
                body.append(
                    f'<rect class="bar b{number % BAR_COLOURS}" x="{left}" y="{at + 1}" '
                    f'width="{width:.1f}" height="{bar - 2}" rx="2"/>'
                )
                body.append(_text(left + width + 6, at + bar - 3, self.say(value), "tick"))
        chart = _svg(self.title, WIDTH, height, "".join(body), "bars")
        return figure(self.title, chart, self.names if len(self.names) > 1 else (), "b")


@dataclass(frozen=True)
class Histogram:
    """Columns of counts between `edges`, one edge more; a dashed line at each of `marks`."""

    title: str
    edges: Sequence[float]
    counts: Sequence[int]
    x_label: str
    y_label: str
    marks: Sequence[tuple[float, str]] = ()
    """(x, label)."""
    logarithmic: bool = False
    """The x axis; all edges are then above 0."""
    whole: bool = False
    """Whether x counts: a column then holds the numbers from its edge to before the next."""
    colour: int = 0
    height: int = 200

    def html(self) -> str:
        left, right, bottom = 56, 16, 44
        if not any(self.counts):
            return f'<p class="empty">{escape(self.title)}: nothing was counted.</p>'
        scale = math.log10 if self.logarithmic else float
        along = _scale(scale(self.edges[0]), scale(self.edges[-1]), left, WIDTH - right)
        # What counts stands in the middle of its column where columns hold one number each.
        single = self.whole and not self.logarithmic and self.edges[1] - self.edges[0] == 1

        def to_x(x: float) -> float:
            return along(scale(x + 0.5 if single else x))

        marks = _placed([(to_x(x), label) for x, label in self.marks])
        top = 30 + _ROW * max((mark.row + 1 for mark in marks), default=0)
        y_ticks = ticks(0, max(self.counts), 4)
        to_y = _scale(0, y_ticks[-1], self.height + top - bottom, top)
        body = [_text(4, 12, self.y_label, "label")]
        for y in y_ticks:
            at = f"{to_y(y):.1f}"
            body.append(
                f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{at}" y2="{at}"/>'
            )
            body.append(_text(left - 8, to_y(y) + 4, short(y), "tick end"))
        for x in self._x_ticks():
            body.append(_text(to_x(x), to_y(0) + 18, short(x), "tick middle"))
        middle = (left + WIDTH - right) / 2
        body.append(_text(middle, self.height + top - 6, self.x_label, "label middle"))
        for (low, high), count in zip(itertools.pairwise(self.edges), self.counts, strict=True):
            if not count:
                continue
            x, end = along(scale(low)), along(scale(high))
            width, height = max(end - x - 1, 1), max(to_y(0) - to_y(count), 1)
            body.append(
                f'<rect class="column s{self.colour % SERIES_COLOURS}" x="{x:.1f}" '
                f'y="{to_y(0) - height:.1f}" width="{width:.1f}" height="{height:.1f}">'
                f"<title>{escape(self._said(low, high))}: {count:,}</title></rect>"
            )
        body += _drawn(marks, 28, to_y(0))
        chart = _svg(self.title, WIDTH, self.height + top, "".join(body), "histogram")
        return figure(self.title, chart, ())

    def _x_ticks(self) -> list[float]:
        low, high = self.edges[0], self.edges[-1]
        if not self.logarithmic:
            found = [x for x in ticks(low, high, 8) if low <= x < high + (not self.whole)]
            return [x for x in found if x == int(x)] if self.whole else found
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [m * 10.0**power for power in powers for m in steps]
            found = [x for x in found if low <= x <= high]
            if len(found) <= 12:
                break
        return found

    def _said(self, low: float, high: float) -> str:
        if not self.whole:
            return f"{short(low)} to {short(high)}"
        return f"{int(low):,}" if high - low <= 1 else f"{int(low):,} to {int(high) - 1:,}"


@dataclass(frozen=True)
class Whiskers:
    """A dot for each value and a whisker over its interval; a dashed line at `reference`."""

    title: str
    rows: Sequence[tuple[str, float, float | None, float | None]]
    """(label, value, low, high)."""
    reference: float | None = None
    reference_label: str = ""

    def html(self) -> str:
        left, right, top, step, bottom = 190, 40, 22, 30, 30
        numbers = [n for row in self.rows for n in row[1:] if n is not None]
        numbers += [] if self.reference is None else [self.reference]
        if not numbers:
            return f'<p class="empty">{escape(self.title)}: nothing was measured.</p>'
        marks = ticks(min(numbers), max(numbers), 5)
        to_x = _scale(marks[0], marks[-1], left, WIDTH - right)
        height = top + step * len(self.rows) + bottom
        body = []
        for mark in marks:
            at = f"{to_x(mark):.1f}"
            body.append(
                f'<line class="grid" x1="{at}" x2="{at}" y1="{top}" y2="{height - bottom}"/>'
            )
            body.append(_text(to_x(mark), height - 10, short(mark), "tick middle"))
        if self.reference is not None:
            at = f"{to_x(self.reference):.1f}"
            body.append(
                f'<line class="reference" x1="{at}" x2="{at}" y1="{top - 4}" '
                f'y2="{height - bottom}"/>'
            )
            body.append(_text(to_x(self.reference), 12, self.reference_label, "tick middle"))
        for number, (label, value, low, high) in enumerate(self.rows):
            y, colour = top + step * number + step / 2, f"s{number % SERIES_COLOURS}"
            body.append(_text(left - 10, y + 4, _cut(label, 27), "name end", label))
            if low is not None and high is not None:
                a, b = f"{to_x(low):.1f}", f"{to_x(high):.1f}"
                body.append(f'<line class="whisker {colour}" x1="{a}" x2="{b}" y1="{y}" y2="{y}"/>')
                body += [
                    f'<line class="whisker {colour}" x1="{end}" x2="{end}" y1="{y - 5}" '
                    f'y2="{y + 5}"/>'
                    for end in (a, b)
                ]
            body.append(f'<circle class="dot {colour}" cx="{to_x(value):.1f}" cy="{y}" r="5"/>')
        return figure(self.title, _svg(self.title, WIDTH, height, "".join(body), "whiskers"), ())


def smoothed(values: Sequence[float]) -> list[float]:
    """Centred moving average over about a twentieth of the points, narrower towards the ends.

    Centred, so that the line does not lag behind a falling loss.
    """
    widest, out = len(values) // 40, []
    for at in range(len(values)):
        reach = min(widest, at, len(values) - 1 - at)
        window = values[at - reach : at + reach + 1]
        out.append(sum(window) / len(window))
    return out


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that enclose [low, high]."""
    if high <= low:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 10) for n in range(first, last + 1)]


def short(value: float) -> str:
    """A number as an axis says it: 250k, 1.5M, 0.25."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def figure(title: str, chart: str, names: Sequence[str], kind: str = "s") -> str:
    """`chart` with its title, and a legend of `names` in the order of the colours of `kind`."""
    legend = "".join(
        f'<span class="key"><i class="{kind}{number}"></i>{escape(name)}</span>'
        for number, name in enumerate(names[:SERIES_COLOURS])
    )
    legend = f'<span class="legend">{legend}</span>' if legend else ""
    return f"<figure><figcaption><b>{escape(title)}</b>{legend}</figcaption>{chart}</figure>"


def _svg(title: str, width: int, height: float, body: str, kind: str) -> str:
    return (
        f'<svg class="chart {kind}" viewBox="0 0 {width} {height:g}" role="img" '
        f'aria-label="{escape(title)}">{body}</svg>'
    )


def _text(x: float, y: float, text: str, kind: str, hint: str = "") -> str:
    more = f"<title>{escape(hint)}</title>" if hint and hint != text else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}{more}</text>'


@dataclass(frozen=True)
class _Mark:
    """A dashed line at `x` and its label, in a row of labels in which it lies on no other."""

    x: float
    label: str
    middle: float
    row: int


def _placed(marks: Sequence[tuple[float, str]]) -> list[_Mark]:
    placed: list[_Mark] = []
    ends: list[float] = []  # of each row of labels
    for x, label in sorted(marks):
        half = _LETTER * len(label) / 2
        middle = min(max(x, half), WIDTH - half)
        row = next((n for n, end in enumerate(ends) if end < middle - half), len(ends))
        ends[row : row + 1] = [middle + half + _LETTER]
        placed.append(_Mark(x, label, middle, row))
    return placed


def _drawn(marks: Sequence[_Mark], top: float, bottom: float) -> list[str]:
    body = []
    for mark in marks:
        x, y = f"{mark.x:.1f}", top + _ROW * mark.row
        body.append(
            f'<line class="reference" x1="{x}" x2="{x}" y1="{y + 4:.1f}" y2="{bottom:.1f}"/>'
        )
    # After all lines, so that none crosses a label.
    return body + [_text(m.middle, top + _ROW * m.row, m.label, "mark middle") for m in marks]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)
