"""The report on data in a real browser: every chart is drawn, in its colours."""

from pathlib import Path

import pytest

from tests.browser.browsing import counted_colours, drawn, screenshot, shapes
from tests.data_report import CHARTS, write_report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("data_report"))


def test_every_chart_is_drawn(chromium: str, report: Path, tmp_path: Path) -> None:
    dom, figures = drawn(chromium, report, tmp_path / "profile")
    assert "<script" not in dom and "<img" not in dom
    assert list(figures) == list(CHARTS)
    for title, figure in figures.items():
        assert shapes(figure) >= CHARTS[title], title


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
