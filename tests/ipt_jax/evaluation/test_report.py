"""The report: everything asked for is in it, what models wrote is text, bad files are named."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ipt_jax.core.errors import UserError
from ipt_jax.evaluation.charts import Histogram, LineChart, Series, smoothed, ticks
from ipt_jax.evaluation.report import minutes, quickstart_report
from tests.made_run import HOSTILE, write_report, write_run


class Reader(HTMLParser):
    """Tags, attributes and text of a page; void and unclosed tags are told apart."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_everything_asked_for_is_there(tmp_path: Path) -> None:
    html = write_report(tmp_path).read_text(encoding="utf-8")
    page = Reader(html)
    assert page.open == [], "every tag is closed"
    for words in (
        "not which data makes the better model",
        "trained once (raw: 12.3M parameters, 1.47M tokens; mixed:",
        "to 2 models, to a comparison",
        "2 models on 2 tasks, by lm-evaluation-harness",
        "SmolLM2-135M-Instruct gave 281 answers, in 2 rounds",
        "A grammar let SmolLM2-135M-Instruct write only",
        "Training loss",
        "Tokens and mixture rates by source",
        "rate asked rate realised",
        "augmented 251",
        "plain: kept as raw text 38",
        "rejected: not taken as a document 3",
        "documents in 292",
        "answer repeats question 57",
        "The fox lives in the wood.",
        "95% interval",
        "0.1900 – 0.3300",
        "4.40e-06",
        "Time by stage",
        "jax 0.11.2",
    ):
        assert words in page.text, words
    assert page.tags.count("polyline") == 2
    assert page.tags.count("details") == 8
    assert "do not add up" not in page.text


def test_a_page_says_only_what_is_true_of_its_run(tmp_path: Path) -> None:
    made = write_run(tmp_path)
    path = made["synthesis_folder"] / "summary.json"
    summary = json.loads(path.read_text())
    failed = {"requests_failed": 80, "request_errors": {"http_400: no": 80}}
    changed = {"model": "llama-70b", "rounds": 1, "constrained_decoding": False, **failed}
    path.write_text(json.dumps(summary | changed))
    made["training_folders"] = {"raw": made["training_folders"]["raw"]}
    made["evaluation_results"] = made["evaluation_results"][:1]
    text = Reader(quickstart_report(tmp_path / "report.html", **made).read_text()).text
    assert "llama-70b gave 201 answers." in text
    assert "to 1 model, to" in text and "1 model on 1 task, by" in text
    assert "request failed http 400: no 80" in text
    for words in ("rounds", "second round", "two", "both", "Both", "small", "constrain", "SmolLM2"):
        assert not re.search(rf"\b{words}", text), words


def test_no_address_and_no_script(tmp_path: Path) -> None:
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "script" not in Reader(html).tags
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)
    for name, value in Reader(html).attributes:
        if name in ("src", "href"):
            assert value is not None and value.startswith(("#", "data:"))


def test_what_models_wrote_is_text(tmp_path: Path) -> None:
    page = Reader(write_report(tmp_path, text=HOSTILE).read_text(encoding="utf-8"))
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert HOSTILE in page.text


def test_hostile_names_stay_text_in_charts(tmp_path: Path) -> None:
    made = write_run(tmp_path)
    made["training_folders"] = {HOSTILE: made["training_folders"]["raw"]}
    made["stage_seconds"] = {HOSTILE: 1.0}
    made["logit_checks"] = {HOSTILE: 1.0}
    html = quickstart_report(tmp_path / "report.html", **made).read_text(encoding="utf-8")
    assert not {"script", "img"} & set(Reader(html).tags)
    assert "NO" in Reader(html).words, "a logit difference over the tolerance is told"


def test_counts_that_do_not_add_up_are_told(tmp_path: Path) -> None:
    made = write_run(tmp_path)
    path = made["synthesis_folder"] / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"documents_in": 293}))
    html = quickstart_report(tmp_path / "report.html", **made).read_text(encoding="utf-8")
    assert "These counts do not add up" in html


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("synthesis/summary.json", None),
        ("synthesis/summary.json", "{}"),
        ("synthesis/summary.json", "[]"),
        ("synthesis/samples.json", '[{"id": "a"}]'),
        ("synthesis/samples.json", None),
        ("synthesis/environment.json", "{"),
        ("train_raw/metrics.jsonl", '{"tokens": 1, "loss": 2}\n{"tokens":'),
        ("train_raw/metrics.jsonl", '{"tokens": 1}'),
        ("train_mixed/summary.json", "{}"),
        ("train_mixed/summary.json", b"\xff\xfe"),
    ],
)
def test_a_bad_file_is_named(file: str, content: str | bytes | None, tmp_path: Path) -> None:
    made = write_run(tmp_path)
    path = tmp_path / file
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)
    with pytest.raises(UserError, match=re.escape(file)):
        quickstart_report(tmp_path / "report.html", **made)
    assert not (tmp_path / "report.html").exists()


def test_ticks_enclose_and_are_round() -> None:
    assert ticks(0, 1_474_560, 6)[-1] == 1_500_000
    assert ticks(0.19, 0.36, 5) == [0.15, 0.2, 0.25, 0.3, 0.35, 0.4]
    for low, high in ((3.0, 3.0), (0, 0), (-5, 2), (1e-7, 2e-7), (1e9, 3e12)):
        marks = ticks(low, high, 5)
        assert marks[0] <= low and marks[-1] >= high and 2 <= len(marks) <= 12


def test_smoothing_keeps_straight_lines() -> None:
    line = [float(n) for n in range(200)]
    assert smoothed(line) == pytest.approx(line)
    assert smoothed([]) == [] and smoothed([3.0]) == [3.0]


def test_losses_that_are_not_finite_leave_a_chart() -> None:
    chart = LineChart("c", [Series("a", [1, 2, 3], [1.0, float("nan"), 2.0])], "x", "y").html()
    assert "nan" not in chart and "<polyline" in chart
    assert "nothing was measured" in LineChart("c", [Series("a", [], [])], "x", "y").html()


def numbers(name: str, html: str) -> list[float]:
    """An attribute of every element that has it, in order."""
    return [float(value) for value in re.findall(rf' {name}="([-\d.]+)"', html)]


def test_a_line_begins_anew_at_a_mark() -> None:
    """A change of level is a step, not a slope; and its reference is dashed in its colour."""
    x, y = list(range(1, 201)), [1.0] * 100 + [3.0] * 100
    asked = Series("asked", [0, 100, 100, 200], [1, 1, 3, 3], like=0)
    chart = LineChart("c", [Series("a", x, y), asked], "x", "y", marks=[(100, "new <rates>")])
    html = chart.html()
    parts = re.findall(r'class="curve s0" points="([^"]+)"', html)
    levels = [{point.split(",")[1] for point in part.split()} for part in parts]
    assert len(levels) == 2 and all(len(level) == 1 for level in levels)
    (reference,) = re.findall(r'class="curve asked s0" points="([^"]+)"', html)
    heights = {point.split(",")[1] for point in reference.split()}
    assert heights == levels[0] | levels[1]
    assert html.count("<circle") == 200 and "new &lt;rates&gt;" in html
    assert html.count('class="key"') == 1  # the legend does not name it
    smooth = LineChart("c", [Series("a", x, y)], "x", "y").html()
    assert len(set(re.findall(r",([\d.]+)[ \"]", smooth))) > 2


def test_columns_are_as_high_as_their_counts() -> None:
    marks = [(100, "median"), (110, "mean")]
    html = Histogram(
        "<h>", [1, 10, 100, 1000], [5, 0, 10], "x", "y", marks, logarithmic=True, whole=True
    ).html()
    columns = re.findall(r"<rect [^>]*>", html)
    assert len(columns) == 2  # an empty one is not drawn
    low, high = numbers("height", columns[0] + columns[1])
    assert high == pytest.approx(2 * low, abs=0.2)
    widths = numbers("width", columns[0] + columns[1])
    assert widths[0] == pytest.approx(widths[1], abs=0.2)  # each is a decade
    assert "<title>1 to 9: 5</title>" in html and "<title>100 to 999: 10</title>" in html
    assert "&lt;h&gt;" in html and "<h>" not in html
    labels = [n for n in re.findall(r'<text class="mark middle" x="[\d.]+" y="([\d.]+)"', html)]
    assert len(set(labels)) == 2  # so near each other they lie in two rows
    assert "nothing was counted" in Histogram("h", [1, 2], [0], "x", "y").html()


def test_columns_of_single_numbers_stand_over_their_ticks() -> None:
    html = Histogram("h", [1, 2, 3, 4], [1, 2, 1], "x", "y", whole=True).html()
    columns = re.findall(r'<rect [^>]*x="([\d.]+)"[^>]*width="([\d.]+)"[^>]*>', html)
    middles = [float(x) + (float(width) + 1) / 2 for x, width in columns]
    ticks_x = [
        float(x)
        for x, text in re.findall(r'<text class="tick middle" x="([\d.]+)"[^>]*>(\d)<', html)
    ]
    assert ticks_x == pytest.approx(middles, abs=0.2)
    assert "<title>2: 2</title>" in html


def test_seconds_as_words() -> None:
    said = [minutes(s) for s in (4.25, 31.2, 59.9, 119.9, 3600)]
    assert said == ["4.2 s", "31 s", "60 s", "2 min 00 s", "60 min 00 s"]


def test_an_axis_ends_where_values_must() -> None:
    full = LineChart("c", [Series("a", [1.0, 2.0], [100.0, 100.0])], "x", "y", smooth=False)
    assert ">110<" in full.html() and ">110<" not in replace(full, most=100).html()
    assert ">100<" in replace(full, most=100).html()
    one = LineChart("c", [Series("a", [1.0], [0.5])], "x", "y", smooth=False)
    assert one.html().count("<circle") == 1  # a line of one point would not be seen
