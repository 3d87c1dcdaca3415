"""The numbers of `analysis.py` as tables beside the paper's, and as figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_gen.fine_instructions.drawing import BINS
from data_gen.fine_instructions.query_sources import SOURCES
from data_gen.stages.measurement import Absent, Measurement, cell, per_cent, share_bars
from ipt_jax.core.report.figures import Bars, Histogram, Lines, Series, Sunburst
from ipt_jax.core.report.numbers import format_cell, format_number
from ipt_jax.core.report.values import Table

# Section 6.1, shares in per cent.
PAPER_SOURCES = {"gooaq": "~50", "reddit_qa": "~27", "lmsys_chat": "~9", "wildchat": "~6"}
PAPER_LAW = "16,891 x^0.24"
# Section 3.2: answers were taken from there on to there, in per cent of the document.
PAPER_PLACES = (19, 71)
# Table 4, per cent of the instructions, in the order of CATEGORIES.
TABLE_4 = {
    "science": ("Science", 36.61),
    "math": ("Math", 0.58),
    "code": ("Code", 0.25),
    "medicine": ("Medicine", 10.40),
    "personal_life": ("Personal life", 14.74),
    "reasoning": ("Reasoning task", 10.99),
    "tasky": ("Tasky vs. Q&A", 6.42),
}
_STEPS = {"bank": "Bank", "drawn": "Drawn", "pairs": "Instructions"}


def instructions_report(values: Mapping[str, Any]) -> Measurement:
    """Tables, figures and what is absent, out of what was measured."""
    report = Measurement(
        title=f"The instructions: {values['corpus']}",
        subtitle=f"{values['pairs']:,} instructions from {values['documents']:,} documents and "
        f"{values['templates_used']:,} templates",
        measured=dict(values),
    )
    shares = {
        name: {step: _shares(found) for step, found in _steps(values, name).items()}
        for name in ("by_origin", "by_tags")
    }
    report.tables += [_diversity(values), _sources(shares["by_origin"]), _places(values)]
    report.figures += [_growth(values), _uses(values["by_uses"]), _tags(shares["by_tags"])]
    report.figures.append(_middles(values))
    if "drawn" not in values:
        why = "name the shards of `fi_match` in `matches`."
        report.absent.append(Absent("What was drawn, and how much of it the encoder saw", why))
    if "null" not in values:
        report.absent.append(Absent("Null share", "name `shards/null` in `nulls`."))
    if values["power_law"] is None:
        why = "it is fitted to points that are a tenth of a decade of documents apart: there are "
        why += "fewer than three, or all have as many templates."
        report.absent.append(Absent("Power law of templates and documents", why))
    if not sum(values["in_seen"]["answers"]):
        why = "no pair says how much of its document the encoder saw: its vectors came from a "
        why += "store, or it was not matched by `fi_match`. Places in the whole document stand."
        report.absent.append(Absent("Places relative to what the encoder saw", why))
    found = values.get("categories", {})
    if found.get("pairs"):
        report.tables.append(_table_4(values))
        rows = [(title, [_of(found, k), paper / 100]) for k, (title, paper) in TABLE_4.items()]
        both = ("here", "paper")
        report.figures.append(share_bars("Table 4, per cent of instructions", both, rows))
        report.figures += _tasks(found["tasks"])
    else:
        why = (
            "make them with `launch/synthesize.py --method fi_categories`, and name its shards in "
        )
        why += "`categories`."
        if found:
            why = "no instruction was made of a template that `categories` has."
        report.absent.append(Absent("Table 4 (categories)", why))
        report.absent.append(Absent("Figure 3 (tasks by verb and object)", why))
    report.tables.append(_commonest(values))
    return report


def _steps(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Counts of the bank's templates, of those drawn where that is known, and of pairs."""
    drawn = {"drawn": values["drawn"][name]} if "drawn" in values else {}
    return {"bank": values[name]["bank"], **drawn, "pairs": values[name]["pairs"]}


def _shares(counts: Mapping[str, int] | Sequence[int]) -> dict[Any, float]:
    of = dict(counts) if isinstance(counts, Mapping) else dict(enumerate(counts))
    return {key: count / max(1, sum(of.values())) for key, count in of.items()}


def _diversity(values: Mapping[str, Any]) -> Table:
    law, used = values["power_law"], max(1, values["templates_used"])
    said = f"{format_number(law['factor'])} x^{law['exponent']:.2f}" if law else cell(None)
    rows = [
        ("Instructions", cell(values["pairs"]), "~1.08B"),
        ("Documents with instructions", cell(values["documents"]), ""),
        ("Templates used", cell(values["templates_used"]), "4.3M"),
        ("Templates of the bank", cell(values["templates_in_bank"]), "~18M"),
        ("Commonest template, %", per_cent(values["commonest_share"], 3), "at most 0.09"),
        (
            "Templates used under 1,000 times, %",
            per_cent(values["used_few_times"] / used),
            "most",
        ),
        ("Templates used, of x documents", said, PAPER_LAW),
        ("r² in log space", format_cell(law and law["r2"], 3), "0.96"),
    ]
    note = "The commonest template's share is an observation of the paper's, no cap."
    if law:
        note += f" The power law is fitted from {law['since']:,} documents on, two decades at most."
    if lost := values["pairs_of_other_templates"]:
        note += f" Of {lost:,} instructions the templates are none of `templates`."
    if "null" in values:
        null = values["null"]
        rows.append(("Null, % of null and pairs", per_cent(null["share"]), ""))
        note += f" Null: the model says that the template does not fit ({null['null']:,} times)."
    if "drawn" in values:
        drawn = values["drawn"]
        rows += [
            ("Documents matched", cell(drawn["documents"]), ""),
            ("Templates drawn for them", cell(drawn["templates"]), ""),
            ("Documents longer than the encoder sees", cell(drawn["documents_cut_off"]), ""),
            ("Seen of a document on average, %", per_cent(drawn["seen_share"]), ""),
        ]
    return Table("Diversity (section 6.1)", ("", "Here", "Paper"), rows, note)


def _sources(shares: Mapping[str, Mapping[str, float]]) -> Table:
    names = sorted(
        {name for of in shares.values() for name in of},
        key=lambda name: (-shares["pairs"].get(name, 0), -shares["bank"].get(name, 0), name),
    )
    rows = [
        (
            SOURCES[name].title if name in SOURCES else name,
            *(per_cent(of.get(name, 0.0)) for of in shares.values()),
            PAPER_SOURCES.get(name, "≤ 1" if name in SOURCES else ""),
        )
        for name in names
    ]
    return Table(
        "Sources of the templates' queries (section 6.1)",
        ("Source", *(_STEPS[step] for step in shares), "Paper"),
        rows,
        "Per cent of the bank's templates, of those drawn for documents, of instructions.",
    )


def _places(values: Mapping[str, Any]) -> Table:
    seen, whole = values["in_seen"], values["in_document"]
    chunks = len(whole["means"]) - 1
    rows: list[tuple[str, ...]] = [
        (
            f"Chunk {k}" if k else "Whole document",
            cell(whole["answers"][k]),
            per_cent(whole["means"][k]),
            per_cent(seen["means"][k]),
            per_cent(k / (chunks + 1)) if k else "",
        )
        for k in range(chunks + 1)
    ]
    for title, key in (("over pairs", "over_pairs"), ("over chunk means", "over_chunk_means")):
        both = (format_cell(of[key], 3) for of in (whole, seen))
        rows.append((f"Correlation {title}", "", *both, ""))
    low, high = PAPER_PLACES
    within = [_within(of["hundredths"]) for of in (whole, seen)]
    rows.append((f"Answers between {low} and {high}%, %", "", *map(per_cent, within), ""))
    return Table(
        "Chunk and place of the answer (section 3.2)",
        ("", "Answers", "Document", "Seen", "Centre"),
        rows,
        "The place of an answer is the mean place of the characters it copied, in per cent of the "
        "way through the document, and through what of it the encoder saw; rows of chunks are "
        "means, beside the chunk's centre. "
        "Correlations are Pearson's, of the chunk that found the template and the place, without "
        f"those that the whole document found. The paper: 0.99, and most from {low} to {high}%.",
    )


def _within(hundredths: Sequence[int]) -> float | None:
    low, high = PAPER_PLACES
    return sum(hundredths[low:high]) / sum(hundredths) if sum(hundredths) else None


def _growth(values: Mapping[str, Any]) -> Lines:
    points, law = values["growth"], values["power_law"]
    series = [Series("templates used", [x for x, *_ in points], [y for _, y, _ in points])]
    title = "Templates used by number of documents"
    if law:
        fitted = [(x, y) for x, _, y in points if y is not None]
        series.append(Series("power law", [x for x, _ in fitted], [y for _, y in fitted], like=0))
        title += f"; dashed: {format_number(law['factor'])} x^{law['exponent']:.2f}"
    return Lines(title, series, "documents", "templates used", smooth=False, logarithmic=True)


def _uses(found: Mapping[str, Sequence[int]]) -> Histogram:
    edges, counts = found["edges"], found["counts"]
    marks = ((1000, "1,000 uses"),) if edges[-1] >= 1000 else ()
    return Histogram(
        *("How often templates were used", edges, counts, "instructions made of it", "templates"),
        marks=marks,
        logarithmic=True,
        whole=True,
    )


def _tags(shares: Mapping[str, Mapping[int, float]]) -> Bars:
    rows = [
        (
            f"{n + 1}{' or more' if n + 1 == BINS else ''}",
            [of.get(n, 0.0) for of in shares.values()],
        )
        for n in range(BINS)
    ]
    return share_bars("Tags of a template, per cent", [_STEPS[step] for step in shares], rows)


def _middles(values: Mapping[str, Any]) -> Histogram:
    seen = sum(values["in_seen"]["answers"]) > 0
    found = values["in_seen" if seen else "in_document"]["hundredths"]
    what = "what the encoder saw" if seen else "the document"
    behind = f" ({found[-1]:,} behind its end)" if found[-1] else ""
    return Histogram(
        "Places that answers were taken from",
        [*range(0, 101, 2)],
        [sum(found[n : n + 2]) for n in range(0, 100, 2)],
        f"per cent of the way through {what}{behind}",
        "answers",
        [(place, f"{place}% (paper)") for place in PAPER_PLACES],
    )


def _of(found: Mapping[str, Any], category: str) -> float:
    return found["by_category"][category] / found["pairs"]


def _table_4(values: Mapping[str, Any]) -> Table:
    found = values["categories"]
    rows = [
        (title, per_cent(_of(found, name), 2), f"{paper:.2f}")
        for name, (title, paper) in TABLE_4.items()
    ]
    return Table(
        "Table 4: categories",
        ("Category", "Here", "Paper"),
        rows,
        f"Per cent of the {found['pairs']:,} of {values['pairs']:,} instructions whose templates "
        f"were put into categories ({found['templates']:,} templates); one may belong to several.",
    )


def _tasks(tasks: Mapping[str, Any]) -> list[Sunburst]:
    titles = {"all": "Figure 3: tasks", "medicine": "Figure 3: tasks of medicine"}
    return [
        Sunburst(f"{titles[key]}, by verb and object", rings, "instructions")
        for key, rings in tasks.items()
    ]


def _commonest(values: Mapping[str, Any]) -> Table:
    rows = [
        (text, cell(count), per_cent(count / values["pairs"], 3))
        for text, _, count in values["commonest"]
    ]
    header = ("Template", "Instructions", "%")
    return Table("The commonest templates", header, rows)
