"""The report on data in a real browser: every chart is drawn, nothing runs, nothing overflows."""

import re
from html import unescape
from pathlib import Path

import pytest

from tests.browser.browsing import CONSOLE, browse, counted_colours, screenshot
from tests.data_report import CHARTS, write_report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("data_report"))


def test_every_chart_is_drawn(chromium: str, report: Path, tmp_path: Path) -> None:
    dom, log = browse(chromium, report, tmp_path / "profile", "--dump-dom")
    assert not CONSOLE.findall(log), log
    assert "<script" not in dom and "<img" not in dom
    charts = dict(re.findall(r'<svg [^>]*aria-label="([^"]*)">(.*?)</svg>', dom, re.DOTALL))
    assert [unescape(title) for title in charts] == list(CHARTS)
    for (title, chart), drawn in zip(charts.items(), CHARTS.values(), strict=True):
        assert drawn in chart, title
        assert "NaN" not in chart, title
        numbers = [float(n) for n in re.findall(r' (?:x|cx|x1|x2)="([-\d.]+)"', chart)]
        assert min(numbers) >= 0 and max(numbers) <= 720, title


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_have_their_colours(
    chromium: str, report: Path, scheme: str, tmp_path: Path
) -> None:
    colours = counted_colours(screenshot(chromium, report, tmp_path, scheme, "1000,5000"))
    wanted = {  # page, both tasks' curves, both kinds of bars
        "light": ("fbfbfa", "2468c8", "d4591c", "a9b2bc", "2a8a5a"),
        "dark": ("15181c", "6aa5f5", "f59463", "66717d", "5cc491"),
    }[scheme]
    for colour in wanted:
        assert colours.get(tuple(bytes.fromhex(colour)), 0) > 300, colour
