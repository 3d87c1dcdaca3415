"""Templates: a query with `<fi>description</fi>` where it names something of its own.

FineInstructions, section 3.1 and appendix A.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ipt_jax.core.rejection import Reason

_EDGE = re.compile(r"(</?fi>)")


@dataclass(frozen=True)
class Template:
    """What documents can be asked, and which documents."""

    text: str
    """The query with its tags."""
    documents: str
    """Describes the documents that can fill the tags in and answer."""

    @property
    def variables(self) -> tuple[str, ...]:
        """The descriptions within the tags, in order; one may come again."""
        return tuple(_EDGE.split(self.text)[2::4])

    @property
    def complexity(self) -> int:
        """How many tags it has."""
        return len(self.variables)


def check_template(text: str, query: str) -> Reason | None:
    """Why `text` is no template of `query`; None: it is one.

    Outside of its tags it is the query, but for white space: each tag stands for at least one
    character of it, and something is left beside them.
    """
    parts = _EDGE.split(text)
    for number, tag in enumerate(parts[1::2]):
        if tag != ("<fi>", "</fi>")[number % 2]:
            reason = "nested_tag" if tag == "<fi>" else "unbalanced_tag"
            return Reason(reason, f"tag {number + 1} is {tag}: {text!r}")
    if len(parts) == 1:
        return Reason("no_tag", f"nothing is left open: {text!r}")
    if len(parts) % 4 != 1:
        return Reason("unbalanced_tag", f"the last <fi> stays open: {text!r}")
    if not all(part.strip() for part in parts[2::4]):
        return Reason("empty_tag", f"a tag describes nothing: {text!r}")
    kept, query = [_even(part) for part in parts[::4]], _even(query).strip()
    kept[0], kept[-1] = kept[0].lstrip(), kept[-1].rstrip()
    if not any(part.strip() for part in kept):
        return Reason("whole_query", "nothing of the query is left outside of the tags")
    return None if _spans(kept, query) else Reason("changed", _difference(kept, query))


def _spans(kept: list[str], query: str) -> bool:
    """Whether the query is these parts in order, with something between each two.

    Each part is taken where it comes first: if any way fits, that one does, for what is left
    behind it is longest.
    """
    first, *middle, last = kept
    if not query.startswith(first):
        return False
    place = len(first)
    for part in middle:
        place = query.find(part, place + 1)
        if place < 0:
            return False
        place += len(part)
    return query.endswith(last) and len(query) - len(last) > place


def _difference(kept: list[str], query: str) -> str:
    for part in kept:
        if part.strip() not in query:
            return f"{part.strip()!r} is not in the query {query!r}"
    return f"the parts outside of the tags are not the query's in its order: {query!r}"


def _even(text: str) -> str:
    return re.sub(r"\s+", " ", text)
