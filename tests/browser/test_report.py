"""The report in a real browser: it draws, it says nothing in the console, it runs no script."""

import re
from pathlib import Path

import pytest

from tests.browser.browsing import CONSOLE, browse, counted_colours, screenshot
from tests.made_run import HOSTILE, write_report


def test_curves_and_tables_are_there(chromium: str, tmp_path: Path) -> None:
    dom, log = browse(chromium, write_report(tmp_path), tmp_path / "profile", "--dump-dom")
    assert not CONSOLE.findall(log), log
    assert "<title>ipt-jax quickstart</title>" in dom
    curves = re.findall(r'<polyline class="curve s\d" points="([^"]+)"', dom)
    assert len(curves) == 2 and all(len(points.split()) == 180 for points in curves)
    for caption in ("Every document accounted for", "Scores", "Environment"):
        assert f"<caption>{caption}</caption>" in dom
    assert dom.count("<details") == 8


def test_hostile_text_runs_nothing(chromium: str, tmp_path: Path) -> None:
    page = write_report(tmp_path, text=HOSTILE)
    dom, log = browse(chromium, page, tmp_path / "profile", "--dump-dom")
    assert not CONSOLE.findall(log), log
    assert "<title>ipt-jax quickstart</title>" in dom
    assert "<script" not in dom and "<img" not in dom


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
