"""The report in a real browser: it draws, the console stays empty, no foreign script runs."""

from pathlib import Path

import pytest

from ipt_jax.core.report.figures import Bars, Histogram, Intervals, Lines, Series, Sunburst
from ipt_jax.core.report.page import write_page
from ipt_jax.core.report.values import Report
from tests.browser.browsing import CONSOLE, browse, counted_colours, drawn, screenshot, shapes
from tests.made_run import HOSTILE, write_report


def test_curves_and_tables_are_there(chromium: str, tmp_path: Path) -> None:
    dom, figures = drawn(chromium, write_report(tmp_path), tmp_path / "profile")
    assert "<title>ipt-jax quickstart</title>" in dom
    assert {title: shapes(figure) for title, figure in figures.items()} == {
        "Training loss": 2 * 180 + 2,  # each run's points and its curve
        "Mixture rates": 2 * 3,
        "sample_continuation: acc": 2,
        "sample_perplexity: bits_per_byte": 2,
        "Time by stage": 4,
    }
    for caption in ("Every document accounted for", "Scores", "Environment"):
        assert f"<caption>{caption}</caption>" in dom
    assert dom.count("<details") == 8


def test_hostile_text_runs_nothing(chromium: str, tmp_path: Path) -> None:
    dom, _ = drawn(chromium, write_report(tmp_path, text=HOSTILE), tmp_path / "profile")
    assert "<title>ipt-jax quickstart</title>" in dom
    assert "<script" not in dom and "<img" not in dom


def test_hostile_labels_are_drawn_letter_by_letter(chromium: str, tmp_path: Path) -> None:
    h = '</script><a href="https://x.example">&lt;</a> $x$ %{y}'
    figures = [
        Lines("lines", [Series(h, [1, 2], [1, 2])], h, h, marks=[(1, h)]),
        Bars("bars", [h, "b"], [(h[:20], (1, 2))]),
        Intervals("intervals", [(h[:20], 1, 0, 2)], [(1, h)]),
        Histogram("histogram", [1, 2, 3], [1, 2], h, h, [(1, h)]),
        Sunburst("sunburst", [(h, [(h, 1)])], h),
    ]
    page = write_page(tmp_path / "page.html", Report(h, h, figures))
    _, found = drawn(chromium, page, tmp_path / "profile")
    for title, figure in found.items():
        assert "&lt;/script&gt;&lt;a href=" in figure and "<a " not in figure, title
    assert found["lines"].count("&lt;/a&gt; $x$ %{y}") >= 3  # axes and mark


def test_a_script_that_got_in_is_refused(chromium: str, tmp_path: Path) -> None:
    """By the page's policy, even where escaping had failed."""
    page = write_report(tmp_path)
    attack = "<script>document.title='owned'</script><img src=x onerror=document.title='owned'>"
    page.write_text(page.read_text(encoding="utf-8").replace("<main>", f"<main>{attack}"))
    dom, log = browse(chromium, page, tmp_path / "profile", "--dump-dom")
    assert CONSOLE.findall(log) and "<title>ipt-jax quickstart</title>" in dom
    assert "main-svg" in dom, "the page itself still draws"


def test_the_console_is_watched(chromium: str, tmp_path: Path) -> None:
    """That the other tests would see an error: a page with one."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><title>bad</title><script>console.error('x'); nothing()</script>"
    )
    _, log = browse(chromium, page, tmp_path / "profile", "--dump-dom")
    assert CONSOLE.findall(log)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_curves_are_drawn_in_their_colours(chromium: str, scheme: str, tmp_path: Path) -> None:
    page = write_report(tmp_path)
    colours = counted_colours(screenshot(chromium, page, tmp_path, scheme, "1000,5600"))
    wanted = {
        "light": ((0x24, 0x68, 0xC8), (0xD4, 0x59, 0x1C), (0xFB, 0xFB, 0xFA)),
        "dark": ((0x6A, 0xA5, 0xF5), (0xF5, 0x94, 0x63), (0x15, 0x18, 0x1C)),
    }[scheme]
    for colour in wanted:
        assert colours.get(colour, 0) > 300, colour
