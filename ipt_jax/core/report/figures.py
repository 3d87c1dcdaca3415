"""Figures as values; each writes itself as the data and layout that plotly draws.

Colours are names of the page's style sheet (`--c0`), which a page puts in when it draws, so that
one figure serves light and dark. Every text from outside goes through `_label`, for plotly reads
`<b>` and `<a href>` in its texts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeGuard

from ipt_jax.core.report.numbers import format_number

SERIES_COLOURS = 6  # --c0 … --c5
_BAR_COLOURS = ("--bar", "--c2")  # unlike the series, for bars compare kinds of number, not runs
_LONGEST_LABEL = 24  # letters; the whole label shows on hover
_MARK_ROW = 15  # pixels from one row of marks' labels to the next
_FEW_COLUMNS = 12  # of which each has a tick
_PER_DECADE = ((1, 2, 5), (1, 3), (1,))  # ticks of a logarithmic axis

type Plot = dict[str, Any]
"""plotly's `data` and `layout`."""


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

    def under(self) -> str:
        """What is said below the figure, or in its place."""
        return "" if self.plot() else f"{self.title}: nothing was measured."


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

    At each of `marks`, (x, label), a dashed line stands and the smoothing begins anew.
    """

    series: Sequence[Series]
    x_label: str
    y_label: str
    height: int = 300
    smooth: bool = True
    marks: Sequence[tuple[float, str]] = ()
    most: float | None = None
    """What y cannot exceed; the axis ends there."""

    def plot(self) -> Plot | None:
        traces: list[dict[str, Any]] = []
        for number, one in enumerate(self.series):
            colour = _colour(number if one.like is None else one.like)
            points = one.points()
            if points and one.like is not None:
                line = {"color": colour, "width": 1.4, "dash": "6px,4px"}
                traces.append(_curve(points, line=line, opacity=0.8, hoverinfo="skip"))
            elif points:
                faint = {"color": colour, "size": 4, "opacity": 0.28}
                if self.smooth or len(points) == 1:
                    traces.append(_curve(points, mode="markers", marker=faint, hoverinfo="skip"))
                line = {"color": colour, "width": 2.2}
                said = {"name": _label(one.name), "hovertemplate": "%{y:.4~g}"}
                traces.append(_curve(self._course(points), line=line, **said))
        if not traces:
            return None
        y_axis: dict[str, Any] = {"nticks": 6}
        if self.most is not None:
            y_axis["maxallowed"] = self.most
        layout = _axes(self.height, self.x_label, self.y_label, self.marks, y_axis, {})
        return {"data": traces, "layout": {**layout, "hovermode": "x unified"}}

    def legend(self) -> Sequence[tuple[str, str]]:
        named = [(n, one) for n, one in enumerate(self.series) if one.like is None]
        return [(one.name, _colour(n)) for n, one in named if one.points()]

    def _course(self, points: Sequence[tuple[float, float]]) -> list[tuple[float, float | None]]:
        """The curve, with a gap (None) between what lies before a mark and after it."""
        borders = [-math.inf, *sorted(x for x, _ in self.marks), math.inf]
        course: list[tuple[float, float | None]] = []
        for low, high in itertools.pairwise(borders):
            part = [(x, y) for x, y in points if low < x <= high]
            y_values = [y for _, y in part]
            if part and course:
                course.append((part[0][0], None))
            smooth = smoothed(y_values) if self.smooth else y_values
            course += zip((x for x, _ in part), smooth, strict=True)
        return course


@dataclass(frozen=True)
class Bars(Figure):
    """Horizontal bars: for each label one value for each of `names`, on a common scale.

    What is None was not measured: it is named below the figure, not drawn as zero.
    """

    names: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float | None]]]
    """(label, values)."""
    number: Callable[[float], str] = format_number
    """How a value is written beside its bar."""

    def plot(self) -> Plot | None:
        measured, rows = self._measured(), [row for row in self.rows if any(map(_is_there, row[1]))]
        colours, traces = self._colours(), []
        for place, n in enumerate(measured):
            bars = [
                (row, float(value), _label(label))
                for row, (label, values) in enumerate(rows)
                if _is_there(value := values[n])
            ]
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": _label(self.names[n]),
                    "x": [value for _, value, _ in bars],
                    "y": [row for row, _, _ in bars],
                    "marker": {"color": colours[place]},
                    "text": [self.number(value) for _, value, _ in bars],
                    "textposition": "outside",
                    "constraintext": "none",
                    "cliponaxis": False,
                    "hovertext": [label for _, _, label in bars],
                    "hovertemplate": "%{hovertext}: %{text}<extra></extra>",
                }
            )
        step = 14 * len(measured) + 14
        layout = {
            **_rows([label for label, _ in rows], step, 4, 4),
            "xaxis": {"visible": False, "rangemode": "tozero"},
            **{"bargap": 14 / step, "bargroupgap": 0.15, "barcornerradius": 2},
        }
        return {"data": traces, "layout": layout} if traces else None

    def under(self) -> str:
        measured = self._measured()
        absent = [name for n, name in enumerate(self.names) if n not in measured]
        for label, values in self.rows:
            names = [self.names[n] for n in measured if not _is_there(values[n])]
            if names and len(names) < len(measured):
                label += f" ({', '.join(names)})"
            absent += [label] * bool(names)
        return f"{self.title}: not measured for {', '.join(absent)}." if absent else ""

    def legend(self) -> Sequence[tuple[str, str]]:
        names = [self.names[n] for n in self._measured()]
        return [*zip(names, self._colours(), strict=False)] if len(self.names) > 1 else ()

    def _colours(self) -> Sequence[str]:
        count = len(self._measured())
        return _BAR_COLOURS if count <= len(_BAR_COLOURS) else [*map(_colour, range(count))]

    def _measured(self) -> list[int]:
        """The names that have a value."""
        every = range(len(self.names))
        return [n for n in every if any(_is_there(values[n]) for _, values in self.rows)]


@dataclass(frozen=True)
class Intervals(Figure):
    """A dot for each value and a whisker over its interval; a dashed line at `reference`."""

    rows: Sequence[tuple[str, float, float | None, float | None]]
    """(label, value, low, high)."""
    reference: float | None = None
    reference_label: str = ""

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
        marks = [] if self.reference is None else [(self.reference, self.reference_label)]
        layout = {
            **_rows([label for label, *_ in self.rows], 32, 22 if marks else 4, 30),
            **_marked(marks, 32 * len(self.rows)),
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
    marks: Sequence[tuple[float, str]] = ()
    """(x, label)."""
    logarithmic: bool = False
    """The x axis; all edges are then above 0."""
    whole: bool = False
    """Whether x counts: a column then holds the numbers from its edge to before the next."""
    colour: int = 0
    height: int = 220

    def plot(self) -> Plot | None:
        if not any(self.counts):
            return None
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
            "text": [self._between(low, high) for low, high in gaps],
            "textposition": "none",
            "hovertemplate": "%{text}: %{y:,}<extra></extra>",
        }
        x_axis = self._logarithmic() if self.logarithmic else {}
        if self.whole and len(gaps) <= _FEW_COLUMNS and not self.logarithmic:
            x_axis = {"tickvals": [low for low, _ in gaps]}
        layout = _axes(self.height, self.x_label, self.y_label, self.marks, {"nticks": 5}, x_axis)
        return {"data": [trace], "layout": layout}

    def _logarithmic(self) -> Plot:
        """The x axis with round numbers on it, about a dozen at the most."""
        low, high = self.edges[0], self.edges[-1]
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        at: list[float] = []
        for steps in _PER_DECADE:
            at = [m * 10.0**power for power in powers for m in steps]
            at = [x for x in at if low <= x <= high]
            if len(at) <= 12:
                break
        ends = [math.log10(low), math.log10(high)]
        words = [format_number(x) for x in at]
        return {"type": "log", "range": ends, "tickvals": at, "ticktext": words}

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
        groups = [(label, [one for one in inner if one[1]]) for label, inner in self.groups]
        groups = [(label, inner) for label, inner in groups if inner]
        rows = [("all", "", self.unit, sum(n for _, inner in groups for _, n in inner))]
        for number, (label, inner) in enumerate(groups):
            rows.append((str(number), "all", label, sum(count for _, count in inner)))
            rows += [(f"{number}/{n}", str(number), *one) for n, one in enumerate(inner)]
        ids, parents, labels, counts = zip(*rows, strict=True)
        trace = {
            "type": "sunburst",
            "ids": ids,
            "parents": parents,
            "labels": [*map(_label, labels)],
            "values": counts,
            "branchvalues": "total",
            "hovertemplate": "%{label}: %{value:,} (%{percentRoot:.1%})<extra></extra>",
            "marker": {"line": {"color": "--page", "width": 1}},
            "insidetextfont": {"color": "--card"},
        }
        layout = {"height": self.height, "margin": {"l": 0, "r": 0, "t": 8, "b": 8}}
        return {"data": [trace], "layout": layout} if groups else None


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


def _is_there(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _label(text: str) -> str:
    """Text as plotly writes it letter by letter: no tags, no entities, no formulas in $."""
    return escape(text, quote=False).replace("$", "&#36;")


def _colour(number: int) -> str:
    return f"--c{number % SERIES_COLOURS}"


def _curve(points: Sequence[tuple[float, float | None]], **more: Any) -> dict[str, Any]:
    x, y = [float(x) for x, _ in points], [None if y is None else float(y) for _, y in points]
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, **more}


def _axes(
    height: int,
    x_label: str,
    y_label: str,
    marks: Sequence[tuple[float, str]],
    y_axis: Mapping[str, Any],
    x_axis: Mapping[str, Any],
) -> Plot:
    """The layout of a figure over an x axis, `height` pixels and the rows of marks."""
    above, below = 30 + _MARK_ROW * len(marks), 44
    title = _note(y_label, x=0, xref="paper", xanchor="left", xshift=-48, yshift=above - 14)
    layout = _marked(marks, height - 30 - below, x_axis.get("type") == "log")
    return {
        "shapes": layout["shapes"],
        "annotations": [title, *layout["annotations"]],
        "height": height - 30 + above,
        "margin": {"l": 52, "r": 48 if marks else 16, "t": above, "b": below},
        "xaxis": {"title": {"text": _label(x_label)}, "showgrid": False, **x_axis},
        "yaxis": y_axis,
    }


def _rows(labels: Sequence[str], step: int, top: int, bottom: int) -> Plot:
    """The layout of a figure with a row for each label, the first on top."""
    cut = [t if len(t) <= _LONGEST_LABEL else f"{t[: _LONGEST_LABEL - 1]}…" for t in labels]
    return {
        "height": top + step * len(labels) + bottom,
        "margin": {"l": 190, "r": 70, "t": top, "b": bottom},
        "yaxis": {
            "tickvals": [*range(len(labels))],
            "ticktext": [*map(_label, cut)],
            "range": [len(labels) - 0.5, -0.5],
            "fixedrange": True,
            "showgrid": False,
            "tickfont": {"color": "--ink"},
        },
    }


def _marked(marks: Sequence[tuple[float, str]], pixels: int, logarithmic: bool = False) -> Plot:
    """A dashed line at each mark through the `pixels` of the plot, up to its label.

    Labels stand in a row each, so that none hides another at any width.
    """
    line = {"type": "line", "yref": "paper", "y0": 0, "line": {"dash": "4px,3px", "width": 1}}
    line["line"]["color"] = "--soft"
    shapes, annotations = [], []
    for row, (x, label) in enumerate(sorted(marks)):
        shapes.append({**line, "x0": x, "x1": x, "y1": 1 + (_MARK_ROW * row + 4) / pixels})
        # plotly wants the logarithm in annotations, and the number itself in shapes.
        at = math.log10(x) if logarithmic else x
        annotations.append(_note(label, x=at, yshift=_MARK_ROW * row + 2, bgcolor="--page"))
    # Those of the upper rows first, for their lines cross the lower rows.
    return {"shapes": shapes, "annotations": annotations[::-1]}


def _note(text: str, **where: Any) -> Plot:
    """A text over the plot; `yshift` counts pixels from its upper edge."""
    above = {"yref": "paper", "y": 1, "yanchor": "bottom", "showarrow": False}
    return {"text": _label(text), **above, "borderpad": 0, **where}
