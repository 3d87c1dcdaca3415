"""Figures as values; each writes itself as the data and layout that plotly draws.

Colours are names of the page's style sheet (`--c0`), which a page puts in when it draws, so that
one figure serves light and dark. Every text from outside goes through `_label`, for plotly reads
`<b>` and `<a href>` in its texts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ipt_jax.core.report.numbers import ABSENT, format_number

SERIES_COLOURS = 6  # --c0 … --c5
_BAR_COLOURS = ("--bar", "--c2")  # unlike the series, for bars compare kinds of number, not runs
_LONGEST_LABEL = 24  # letters; the whole label shows on hover
_MARK_ROW = 15  # pixels from one row of marks' labels to the next
_FEW_COLUMNS = 12  # of which each has a tick

type Plot = dict[str, Any]
"""plotly's `data` and `layout`."""
type Marks = Sequence[tuple[float, str]]
"""(x, label) of dashed lines across a figure."""


@dataclass(frozen=True)
class Figure:
    """Something to be drawn under a title."""

    title: str

    def plot(self) -> Plot | None:
        """What plotly draws; None where there is nothing."""
        raise NotImplementedError

    def legend(self) -> Sequence[tuple[str, str]]:
        """(name, colour) of what is drawn, where names are needed."""
        return ()


@dataclass(frozen=True)
class Series:
    """A named line; x and y of equal length, of which what is not finite is left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    like: int | None = None
    """Number of the series that this one is the reference of: its colour, dashed, no points."""

    def points(self) -> list[tuple[float, float]]:
        pairs = zip(self.x, self.y, strict=True)
        return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


@dataclass(frozen=True)
class Lines(Figure):
    """Lines over a shared x axis: the raw points faint, their smoothed course on top.

    At each of `marks` a dashed line stands and the smoothing begins anew.
    """

    series: Sequence[Series]
    x_label: str
    y_label: str
    height: int = 300
    smooth: bool = True
    marks: Marks = ()
    most: float | None = None
    """What y cannot exceed; the axis ends there."""
    logarithmic: bool = False
    """Both axes; all points are then above 0."""

    def plot(self) -> Plot | None:
        traces: list[dict[str, Any]] = []
        for number, one in enumerate(self.series):
            colour, points = _colour(number if one.like is None else one.like), one.points()
            if one.like is not None:
                line = {"color": colour, "width": 1.4, "dash": "6px,4px"}
                traces.append(_curve(points, line=line, opacity=0.8, hoverinfo="skip"))
                continue
            if self.smooth or len(points) == 1:
                faint = {"color": colour, "size": 4, "opacity": 0.28}
                traces.append(_curve(points, mode="markers", marker=faint, hoverinfo="skip"))
            said = {"name": _label(one.name), "hovertemplate": "%{y:.4~g}"}
            borders = [-math.inf, *sorted(x for x, _ in self.marks), math.inf]
            for low, high in itertools.pairwise(borders):
                part = [(x, y) for x, y in points if low < x <= high]
                y_values = [y for _, y in part]
                course = smoothed(y_values) if self.smooth else y_values
                part = [*zip((x for x, _ in part), course, strict=True)]
                traces.append(_curve(part, line={"color": colour, "width": 2.2}, **said))
        traces = [trace for trace in traces if trace["x"]]
        axes: list[Plot] = [{}, {}]
        if self.logarithmic and traces:
            found = [[v for trace in traces for v in trace[name]] for name in ("x", "y")]
            axes = [_logarithmic(min(values), max(values)) for values in found]
        layout = _axes(self, axes[0], {**axes[1], "maxallowed": self.most})
        return {"data": traces, "layout": layout | {"hovermode": "x unified"}} if traces else None

    def legend(self) -> Sequence[tuple[str, str]]:
        named = [(n, one) for n, one in enumerate(self.series) if one.like is None]
        return [(one.name, _colour(n)) for n, one in named]


@dataclass(frozen=True)
class Bars(Figure):
    """Horizontal bars: for each label one value for each of `names`, on a common scale.

    What was not measured, None, is no bar of zero: a dash stands in its place.
    """

    names: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float | None]]]
    """(label, values)."""
    number: Callable[[float], str] = format_number
    """How a value is written beside its bar."""

    def plot(self) -> Plot | None:
        traces = []
        for n, colour in enumerate(self._colours()):
            found = [values[n] for _, values in self.rows]
            values = [x if x is not None and math.isfinite(x) else None for x in found]
            trace = {
                "name": _label(self.names[n]),
                "x": [float(x or 0) for x in values],
                "y": [*range(len(values))],
                "text": [ABSENT if x is None else self.number(x) for x in values],
                "hovertext": [_label(label) for label, _ in self.rows],
                "hovertemplate": "%{hovertext}: %{text}<extra></extra>",
                "marker": {"color": colour},
            }
            outside = {"textposition": "outside", "constraintext": "none", "cliponaxis": False}
            traces.append({"type": "bar", "orientation": "h", **trace, **outside})
        step = 14 * len(self.names) + 14
        layout = {
            **_rows([label for label, _ in self.rows], step, 4, 4),
            "xaxis": {"visible": False, "rangemode": "tozero"},
            **{"bargap": 14 / step, "bargroupgap": 0.15, "barcornerradius": 2},
        }
        return {"data": traces, "layout": layout} if self.rows else None

    def legend(self) -> Sequence[tuple[str, str]]:
        named = zip(self.names, self._colours(), strict=True)
        return [*named] if len(self.names) > 1 else ()

    def _colours(self) -> Sequence[str]:
        few = len(self.names) <= len(_BAR_COLOURS)
        return [_BAR_COLOURS[n] if few else _colour(n) for n in range(len(self.names))]


@dataclass(frozen=True)
class Intervals(Figure):
    """A dot for each value and a whisker over its interval; a dashed line at each of `marks`."""

    rows: Sequence[tuple[str, float, float | None, float | None]]
    """(label, value, low, high)."""
    marks: Marks = ()

    def plot(self) -> Plot | None:
        traces = []
        for row, (label, value, low, high) in enumerate(self.rows):
            colour, said = _colour(row), f"{_label(label)}: {value:.4g}"
            trace = _curve([(value, row)], mode="markers", marker={"color": colour, "size": 10})
            if low is not None and high is not None:
                ends = {"array": [high - value], "arrayminus": [value - low], "color": colour}
                trace["error_x"] = {"type": "data", "symmetric": False, "width": 5, **ends}
                said += f" ({low:.4g} to {high:.4g})"
            traces.append({**trace, "text": [said], "hovertemplate": "%{text}<extra></extra>"})
        above = 4 + (_MARK_ROW + 3) * len(self.marks)
        layout = {
            **_rows([label for label, *_ in self.rows], 32, above, 30),
            **_marked(self.marks, 32 * len(self.rows)),
            "xaxis": {"nticks": 6},
        }
        return {"data": traces, "layout": layout} if traces else None


@dataclass(frozen=True)
class Histogram(Figure):
    """Columns of counts between `edges`, one edge more; a dashed line at each of `marks`."""

    edges: Sequence[float]
    """Ascending; the last count takes in the last edge."""
    counts: Sequence[int]
    x_label: str
    y_label: str
    marks: Marks = ()
    logarithmic: bool = False
    """The x axis; all edges are then above 0."""
    whole: bool = False
    """Whether x counts: a column then holds the numbers from its edge to before the next."""
    colour: int = 0
    height: int = 220

    def plot(self) -> Plot | None:
        gaps = [*itertools.pairwise(self.edges)]
        # What counts stands in the middle of its column where columns hold one number each.
        single = self.whole and not self.logarithmic and gaps[0][1] - gaps[0][0] == 1
        trace = {
            "type": "bar",
            "x": [low if single else (low + high) / 2 for low, high in gaps],
            "width": [high - low for low, high in gaps],
            "y": [int(count) for count in self.counts],
            "marker": {"color": _colour(self.colour), "line": {"color": "--page", "width": 1}},
            "opacity": 0.85,
            "hovertext": [self._between(low, high) for low, high in gaps],
            "hovertemplate": "%{hovertext}: %{y:,}<extra></extra>",
        }
        axis: Plot = {}
        if self.logarithmic:
            ends = [math.log10(self.edges[0]), math.log10(self.edges[-1])]
            axis = {**_logarithmic(self.edges[0], self.edges[-1]), "range": ends}
        elif self.whole and len(gaps) <= _FEW_COLUMNS:
            axis = {"tickvals": [low for low, _ in gaps]}
        layout = _axes(self, axis, {})
        return {"data": [trace], "layout": layout} if any(self.counts) else None

    def _between(self, low: float, high: float) -> str:
        if not self.whole:
            return f"{format_number(low)} to {format_number(high)}"
        return f"{int(low):,}" if high - low <= 1 else f"{int(low):,} to {int(high) - 1:,}"


@dataclass(frozen=True)
class Sunburst(Figure):
    """Shares of a whole in rings: groups within, their members around them; a click opens one."""

    groups: Sequence[tuple[str, Sequence[tuple[str, int]]]]
    """(label, [(label of a member, count)])."""
    unit: str
    """What is counted."""
    height: int = 460

    def plot(self) -> Plot | None:
        total = sum(count for _, inner in self.groups for _, count in inner)
        if not total:
            return None
        rows = [("all", "", self.unit, total)]
        for number, (label, inner) in enumerate(self.groups):
            rows.append((str(number), "all", label, sum(count for _, count in inner)))
            rows += [(f"{number}/{n}", str(number), *one) for n, one in enumerate(inner)]
        ids, parents, labels, counts = zip(*(row for row in rows if row[-1]), strict=True)
        trace = {
            "type": "sunburst",
            **{"ids": ids, "parents": parents, "labels": [*map(_label, labels)], "values": counts},
            "branchvalues": "total",
            "hovertemplate": "%{label}: %{value:,} (%{percentRoot:.1%})<extra></extra>",
            "marker": {"line": {"color": "--page", "width": 1}},
            "insidetextfont": {"color": "--card"},
        }
        layout = {"height": self.height, "margin": {"l": 0, "r": 0, "t": 8, "b": 8}}
        # Shades that plotly would make of the colours are too dark or too light to be written on.
        layout["extendsunburstcolors"] = False
        return {"data": [trace], "layout": layout}


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


def _label(text: str) -> str:
    """Text as plotly writes it letter by letter: no tags, no entities, no formulas in $."""
    return escape(text, quote=False).replace("$", "&#36;")


def _colour(number: int) -> str:
    return f"--c{number % SERIES_COLOURS}"


def _curve(points: Sequence[tuple[float, float]], **more: Any) -> dict[str, Any]:
    x, y = [float(x) for x, _ in points], [float(y) for _, y in points]
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, **more}


def _axes(figure: Lines | Histogram, x_axis: Plot, y_axis: Plot) -> Plot:
    """The layout of a figure over an x axis, its height without the rows of marks."""
    above, below = 10 + _MARK_ROW * len(figure.marks), 44
    return {
        "height": figure.height + above,
        "margin": {"l": 64, "r": 90 if figure.marks else 16, "t": above, "b": below},
        "xaxis": {"title": {"text": _label(figure.x_label)}, "showgrid": False, **x_axis},
        "yaxis": {"title": {"text": _label(figure.y_label)}, "nticks": 6, **y_axis},
        **_marked(figure.marks, figure.height - below, x_axis.get("type") == "log"),
    }


def _logarithmic(low: float, high: float) -> Plot:
    """An axis with ticks at 1, 2 and 5, or at the powers of ten where they are many."""
    ticks = "D2" if math.log10(high / low) < 4 else 1
    return {"type": "log", "dtick": ticks, "tickformat": "~s"}


def _rows(labels: Sequence[str], step: int, above: int, below: int) -> Plot:
    """The layout of a figure with a row for each label, the first on top."""
    cut = [t if len(t) <= _LONGEST_LABEL else f"{t[: _LONGEST_LABEL - 1]}…" for t in labels]
    axis = {"tickvals": [*range(len(labels))], "ticktext": [*map(_label, cut)]}
    axis |= {"range": [len(labels) - 0.5, -0.5], "fixedrange": True, "showgrid": False}
    return {
        "height": above + step * len(labels) + below,
        "margin": {"l": 190, "r": 70, "t": above, "b": below},
        "yaxis": {**axis, "tickfont": {"color": "--ink"}},
    }


def _marked(marks: Marks, pixels: int, logarithmic: bool = False) -> Plot:
    """A dashed line at each mark through the `pixels` of the plot and up to its label.

    A label stands right of its line, the leftmost highest: no line crosses one at any width.
    """
    style = {"type": "line", "yref": "paper", "y0": 0}
    style["line"] = {"color": "--soft", "width": 1, "dash": "4px,3px"}
    shapes, labels = [], []
    for row, (x, text) in enumerate(sorted(marks, reverse=True), 1):
        top = 1 + _MARK_ROW * row / pixels
        shapes.append({**style, "x0": x, "x1": x, "y1": top})
        # plotly wants the logarithm in labels, and the number itself in lines.
        at = {"x": math.log10(x) if logarithmic else x, "xanchor": "left", "xshift": 2}
        at |= {"yref": "paper", "y": top, "yanchor": "top", "showarrow": False}
        labels.append({"text": _label(text), **at})
    return {"shapes": shapes, "annotations": labels}
