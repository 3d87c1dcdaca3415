"""A report's page as tests read it: its tags, tables, text and what it gives plotly to draw."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import plotly.graph_objects as go

VOID = ("meta", "link", "br", "img")


class Page(HTMLParser):
    """Every figure is checked by plotly; scripts and styles are in no text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.scripts: list[str] = []
        self._titles: list[str] = []
        self._caption = ""
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())
        self.figures = self._figures()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._caption = ""
        elif tag == "tr":
            self.tables.setdefault(self._caption, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._caption][-1].append("")
        elif dict(attrs).get("class") == "plot":
            self._titles.append(dict(attrs)["aria-label"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        within = self.open[-1] if self.open else ""
        if within == "script":
            self.scripts.append(data)
        elif within != "style":
            self.words.append(data)
        if within == "caption":
            self._caption = data
        elif within in ("td", "th"):
            self.tables[self._caption][-1][-1] += data

    def _figures(self) -> dict[str, dict[str, Any]]:
        """Title -> what is drawn."""
        if not self.scripts:
            return {}
        drawn = json.loads(self.scripts[0], parse_constant=lambda name: 1 / 0)
        assert len(drawn["figures"]) == len(self._titles)
        for figure in drawn["figures"]:
            # A browser puts the style sheet's colours in.
            given = re.sub(r'"--\w+"', '"#123456"', json.dumps(figure | {"frames": []}))
            go.Figure(**json.loads(given))
        return dict(zip(self._titles, drawn["figures"], strict=True))


def assert_nothing_foreign(html: str) -> Page:
    """That only plotly and what draws its figures can run, and that nothing is fetched."""
    page = Page(html)
    assert page.open == [], "every tag is closed"
    assert len(page.scripts) in (0, 3) and page.tags.count("script") == len(page.scripts)
    assert not {"img", "iframe", "object", "embed", "base"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "href") or (value or "").startswith(("#", "data:"))
    ours = html.replace(page.scripts[1], "") if page.scripts else html
    assert not re.search(r"https?:|//[a-z]|@import|url\(", ours)
    (policy,) = [value for _, value in page.attributes if value and "default-src 'none'" in value]
    assert policy.count("'sha256-") == len(page.scripts[1:]) and "connect-src" not in policy
    return page
