"""A report as a page: one file that needs no other and no network.

jinja2 escapes every text; the only scripts that a browser runs are plotly's and ours, named by
their hashes, and only on a page with figures.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipt_jax.core.files import atomic_write
from ipt_jax.core.report.figures import SERIES_COLOURS, Figure
from ipt_jax.core.report.numbers import format_cell
from ipt_jax.core.report.values import Report

if TYPE_CHECKING:
    from jinja2 import Template

PAGE_NAME = "report.html"
_FOLDER = Path(__file__).parent
_AXIS = {
    "gridcolor": "--rule",
    "zeroline": False,
    "ticklabelstandoff": 6,
    "title": {"font": {"size": 13}},
}
_COLOURS = [f"--c{number}" for number in range(SERIES_COLOURS)]
# What all figures share; names of colours are those of the page's style sheet.
_TEMPLATE: dict[str, Any] = {
    "layout": {
        "font": {"size": 13, "color": "--soft"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": _COLOURS,
        "sunburstcolorway": _COLOURS,
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "showlegend": False,  # the page's own wraps where names are long
        "hoverlabel": {"bgcolor": "--card", "bordercolor": "--rule", "font": {"color": "--ink"}},
    }
}


def page_html(report: Report) -> str:
    """The whole HTML document."""
    parts = [*report.opening, *(part for section in report.sections for part in section.parts)]
    figures = [part for part in parts if isinstance(part, Figure)]
    plots = [(id(figure), plot) for figure in figures if (plot := figure.plot()) is not None]
    scripts = _scripts() if plots else []
    return _template().render(
        report=report,
        scripts=scripts,
        # The policy forbids any other script and every request, whatever a model wrote.
        policy=" ".join(map(_hashed, scripts)),
        numbers={figure: number for number, (figure, _) in enumerate(plots)},
        drawn={"template": _TEMPLATE, "figures": [plot for _, plot in plots]},
    )


def write_page(path: Path, report: Report) -> Path:
    """Write the report's page to `path` in one step and give `path` back."""
    html = page_html(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, html)
    return path


def _scripts() -> list[str]:
    """plotly's script as its Python package carries it, and ours."""
    plotly = resources.files("plotly") / "package_data" / "plotly.min.js"
    ours = (_FOLDER / "figures.js").read_text(encoding="utf-8")
    return [plotly.read_text(encoding="utf-8"), ours]


def _hashed(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = format_cell
    environment.filters["id"] = id
    environment.filters["kind"] = lambda part: type(part).__name__
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment.get_template("page.html.j2")
