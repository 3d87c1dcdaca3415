"""Reports: what a page and a card say of their parts, and what a figure gives plotly to draw."""

import json
import math
from dataclasses import replace

import pytest

from ipt_jax.core.report.figures import (
    Bars,
    Histogram,
    Intervals,
    Lines,
    Series,
    Sunburst,
    smoothed,
)
from ipt_jax.core.report.markdown import markdown, text_table
from ipt_jax.core.report.numbers import (
    format_cell,
    format_count,
    format_counts,
    format_number,
    format_percent,
    format_seconds,
)
from ipt_jax.core.report.page import page_html
from ipt_jax.core.report.values import (
    Code,
    Facts,
    Items,
    Note,
    Paragraph,
    Part,
    Report,
    Sample,
    Section,
    Table,
)
from tests.made_run import HOSTILE
from tests.pages import Page, assert_nothing_foreign

TABLE = Table("Scores", ("model", "n"), [("a|b", 1234), (None, 0.12345)], "A note.", total=True)


def page_of(*parts: Part, opening: tuple[Part, ...] = ()) -> Page:
    return assert_nothing_foreign(page_html(Report("T", "s", opening, [Section("All", parts)])))


@pytest.mark.parametrize(
    ("said", "word"),
    [
        *((format_number(n), word) for n, word in (
            (250_000, "250k"), (12_345_678, "12.3M"), (1.5e12, "1.5T"), (0.25, "0.25"), (0, "0"),
            (999_999, "1M"), (999.96, "1k"), (-2000, "-2k"),
        )),
        *((format_cell(value), word) for value, word in (
            (1234567, "1,234,567"), (None, "–"), (0.123456, "0.1235"), ("a", "a"), (True, "True"),
        )),
        (format_cell(1234.56, 1), "1,234.6"), (format_cell(5, 1), "5"),
        (format_percent(0.1234), "12.3%"), (format_percent(0.5, 2, ""), "50.00"),
        (format_percent(None), "–"),
        *((format_seconds(n), word) for n, word in (
            (4.25, "4.2 s"), (31.2, "31 s"), (59.9, "60 s"), (119.9, "2 min 00 s"),
            (3600, "60 min 00 s"),
        )),
        (format_count(1, "model"), "1 model"), (format_count(2000, "model"), "2,000 models"),
        (format_counts({"a": 1, "b": 2000}), "a 1, b 2,000"), (format_counts({}), "none"),
    ],
)  # fmt: skip
def test_numbers_as_words(said: str, word: str) -> None:
    assert said == word


def test_a_page_shows_every_part() -> None:
    page = page_of(
        Paragraph("prose"), Note("Mind:", "this"), Items(["one", "two"]), Facts([("7", "seas")]),
        TABLE, replace(TABLE, title="Empty", rows=()), Code("Prompt", "a\nb"),
        Sample("d1", [("text", [("why?", "so")])], opened=True), Lines("Loss", [], "x", "y"),
    )  # fmt: skip
    assert page.tables == {"Scores": [["model", "n"], ["a|b", "1,234"], ["–", "0.1235"]]}
    for words in ("prose", "Mind: this", "one two", "seas 7", "Empty: none.", "A note.",
                  "Prompt: a b", "d1 text why? so", "Loss: nothing was measured."):  # fmt: skip
        assert words in page.text, words
    assert ("open", None) in page.attributes and ("class", "total") in page.attributes
    assert page.attributes.count(("class", "number")) == 3
    assert page.scripts == [], "a page without figures runs nothing"


def test_text_from_outside_stays_text() -> None:
    h = HOSTILE
    figures = [
        Lines(f"{h}1", [Series(h, [1, 2], [1, 2])], h, h, marks=[(1, h)]),
        Bars(f"{h}2", [h, "b"], [(h, (1, None))]),
        Intervals(f"{h}3", [(h, 1, 0, 2)], [(1, h)]),
        Histogram(f"{h}4", [1, 2, 3], [1, 2], h, h, [(1, h)]),
        Sunburst(f"{h}5", [(h, [(h, 1)])], h),
    ]
    page = page_of(
        *figures, Paragraph(h), Note(h, h), Items([h]), Facts([(h, h)]), Code(h, h),
        Table(h, (h, h), [(h, h)], h), Sample(h, [(h, [(h, h)])]),
    )  # fmt: skip
    assert page.text.count(h) >= 20

    # plotly reads tags and entities in its texts; those of outside have none left.
    given = json.dumps([*page.figures.values()]).replace("<extra></extra>", "")
    assert "<" not in given and given.count("&lt;script&gt;") >= 12


def test_a_report_in_markdown() -> None:
    parts = [TABLE, replace(TABLE, title="", rows=(), note=""), Items(["one", "two"]),
             Code("Prompt", "a ``` b"), Facts([("7", "seas")]), Note("Mind:", "this"),
             Lines("Loss", [], "x", "y")]  # fmt: skip
    assert markdown(Report("T", "s", [Paragraph("`x`")], [Section("All", parts)])) == (
        "# T\n\ns\n\n`x`\n\n## All\n\n### Scores\n\n| model | n |\n| --- | ---: |\n"
        "| a\\|b | 1,234 |\n| – | 0.1235 |\n\nA note.\n\nNone.\n\n- one\n- two\n\n"
        "Prompt:\n\n````\na ``` b\n````\n\n|  |  |\n| --- | ---: |\n| seas | 7 |\n\n"
        "> **Mind:** this\n\nLoss: on the page.\n"
    )
    odd = Table("", ("",), [("<b>*x*</b> [a](b) _c_ d_e `f` \\ ~g~\n| h",)])
    escaped = r"| \<b\>\*x\*\</b\> \[a\](b) \_c\_ d_e \`f\` \\ \~g\~ \| h |"
    assert escaped in markdown(Report("T", "", [odd]))


def test_a_table_on_a_terminal() -> None:
    table = Table("", ("name", "n"), [("a\x1b\nb", 1234), ("c", 5)])
    assert text_table(table) == "name      n\na␛␊b  1,234\nc         5"


def test_smoothing_keeps_straight_lines() -> None:
    line = [float(n) for n in range(200)]
    assert smoothed(line) == pytest.approx(line)
    assert smoothed([]) == [] and smoothed([3.0]) == [3.0]


def test_losses_that_are_not_finite_leave_a_chart() -> None:
    chart = Lines("c", [Series("a", [1, 2, 3], [1.0, math.nan, 2.0])], "x", "y", smooth=False)
    (trace,) = page_of(chart).figures["c"]["data"]
    assert (trace["x"], trace["y"]) == ([1, 3], [1, 2])


def test_a_line_begins_anew_at_a_mark() -> None:
    """A change of level is a step, not a slope; and its reference is dashed in its colour."""
    x, y = list(range(1, 201)), [1.0] * 100 + [3.0] * 100
    asked = Series("asked", [0, 100, 100, 200], [1, 1, 3, 3], like=0)
    chart = Lines("c", [Series("a", x, y), asked], "x", "y", marks=[(100, "new"), (150, "next")])
    plot = page_of(chart).figures["c"]
    raw, first, second, third, reference = plot["data"]
    assert raw["mode"] == "markers" and raw["y"] == y
    assert [set(one["y"]) for one in (first, second, third)] == [{1.0}, {3.0}, {3.0}]
    assert [len(one["x"]) for one in (first, second, third)] == [100, 50, 50]
    assert reference["line"]["dash"] and reference["line"]["color"] == first["line"]["color"]
    assert reference["y"] == [1, 1, 3, 3]
    assert chart.legend() == [("a", "--c0")]  # the legend does not name the reference
    tops = {shape["x0"]: shape["y1"] for shape in plot["layout"]["shapes"]}
    assert tops[100] > tops[150] > 1  # no label hides another
    labels = plot["layout"]["annotations"]
    assert {(one["text"], one["x"], one["y"]) for one in labels} == {
        ("new", 100, tops[100]), ("next", 150, tops[150]),
    }  # fmt: skip
    smooth = Lines("c", [Series("a", x, y)], "x", "y").plot()
    assert smooth is not None and len(set(smooth["data"][1]["y"])) > 2


def test_a_power_law_is_a_line_over_both_logarithms() -> None:
    def axes(x: list[float]) -> list[dict[str, object]]:
        fit = Series("fit", x, [one**0.5 for one in x], like=0)
        plot = Lines("c", [Series("a", x, x), fit], "x", "y", logarithmic=True, smooth=False).plot()
        assert plot is not None and plot["data"][0]["x"] == x
        return [plot["layout"][name] for name in ("xaxis", "yaxis")]

    assert [(axis["type"], axis["dtick"]) for axis in axes([1, 10, 1000])] == [("log", "D2")] * 2
    assert axes([10, 1e6])[0]["dtick"] == 1
    assert Lines("c", [Series("a", [], [])], "x", "y", logarithmic=True).plot() is None


def test_columns_are_between_their_edges() -> None:
    marks = [(100, "median"), (110, "mean")]
    chart = Histogram("h", [1, 10, 100, 1000], [5, 0, 10], "x", "y", marks, True, whole=True)
    plot = page_of(chart).figures["h"]
    (trace,) = plot["data"]
    columns = list(zip(trace["x"], trace["width"], strict=True))
    assert [(x - width / 2, x + width / 2) for x, width in columns] == [
        (1, 10),
        (10, 100),
        (100, 1000),
    ]
    assert trace["y"] == [5, 0, 10] and trace["hovertext"] == ["1 to 9", "10 to 99", "100 to 999"]
    axis = plot["layout"]["xaxis"]
    assert axis["type"] == "log" and axis["range"] == [0, 3] and axis["dtick"] == "D2"
    assert {shape["x0"] for shape in plot["layout"]["shapes"]} == {100, 110}
    assert {note["text"]: note["x"] for note in plot["layout"]["annotations"]}["median"] == 2
    assert Histogram("h", [1, 2], [0], "x", "y").plot() is None
    single = Histogram("h", [1, 2, 3, 4], [1, 2, 1], "x", "y", whole=True).plot()
    assert single is not None  # over their ticks
    assert single["data"][0]["x"] == single["layout"]["xaxis"]["tickvals"] == [1, 2, 3]
    assert single["data"][0]["hovertext"] == ["1", "2", "3"]


def test_what_was_not_measured_is_no_bar_of_zero() -> None:
    rows = [("one", (1, None)), ("two", (None, 0)), ("three", (math.nan, 2))]
    chart = Bars("b", ["x", "y"], rows, format_seconds)
    traces = page_of(chart).figures["b"]["data"]
    assert [trace["text"] for trace in traces] == [["1.0 s", "–", "–"], ["–", "0.0 s", "2.0 s"]]
    assert [trace["x"] for trace in traces] == [[1, 0, 0], [0, 0, 2]]
    assert chart.legend() == [("x", "--bar"), ("y", "--c2")]
    assert replace(chart, names=["x"]).legend() == () and replace(chart, rows=()).plot() is None


def test_intervals_reach_from_low_to_high() -> None:
    chart = Intervals("i", [("a", 0.3, 0.1, 0.6), ("b", 0.2, None, None)], [(0.25, "chance")])
    plot = page_of(chart).figures["i"]
    first, second = plot["data"]
    error = first["error_x"]
    assert error["array"] == pytest.approx([0.3]) and error["arrayminus"] == pytest.approx([0.2])
    assert first["text"] == ["a: 0.3 (0.1 to 0.6)"] and "error_x" not in second
    assert plot["layout"]["shapes"][0]["x0"] == 0.25


def test_rings_hold_their_members() -> None:
    groups = [("all of it", [("a", 3), ("none", 0)]), ("b", [("a", 1), ("c", 4)]), ("empty", [])]
    (trace,) = page_of(Sunburst("s", groups, "pairs")).figures["s"]["data"]
    inside = dict(zip(trace["ids"], trace["values"], strict=True))
    for name, parent in zip(trace["ids"], trace["parents"], strict=True):
        children = [i for i, p in zip(trace["ids"], trace["parents"], strict=True) if p == name]
        assert not children or inside[name] == sum(inside[child] for child in children)
        assert parent in ("", *trace["ids"])
    assert trace["labels"] == ["pairs", "all of it", "a", "b", "a", "c"]


def test_an_axis_ends_where_values_must() -> None:
    full = Lines("c", [Series("a", [1.0, 2.0], [100.0, 100.0])], "x", "y", smooth=False)
    axes = [page_of(one).figures["c"]["layout"]["yaxis"] for one in (full, replace(full, most=100))]
    assert [axis["maxallowed"] for axis in axes] == [None, 100]
    one = Lines("c", [Series("a", [1.0], [0.5])], "x", "y", smooth=False).plot()
    assert one is not None  # a line of one point would not be seen
    assert one["data"][0]["mode"] == "markers"
