"""Tables 6, 9, 10, 11 and 12 and Figure 6 out of the numbers, beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_gen.instruction_pretrain.analysis import paper
from data_gen.instruction_pretrain.analysis.categories import SCENARIOS
from data_gen.instruction_pretrain.analysis.config import CorpusAnalysis
from data_gen.instruction_pretrain.analysis.contamination import Contamination
from data_gen.instruction_pretrain.analysis.generations import PAIR_FORMATS
from data_gen.instruction_pretrain.analysis.histograms import histogram
from data_gen.instruction_pretrain.analysis.synthesized import SynthesizedText
from data_gen.instruction_pretrain.collection import DOMAINS
from data_gen.quality.decontaminate import contamination_rows
from data_gen.stages.measurement import (
    Absent,
    Measurement,
    cell,
    per_cent,
    share_bars,
)
from ipt_jax.core.report.figures import Bars, Histogram, Sunburst
from ipt_jax.core.report.numbers import format_cell, format_counts
from ipt_jax.core.report.values import Table

_CATEGORIES = 20  # shown; there are up to 76


def corpus_report(
    config: CorpusAnalysis,
    values: Mapping[str, Any],
    texts: Sequence[SynthesizedText],
    contamination: Contamination | None,
) -> Measurement:
    """Tables, charts and what is absent, out of what was measured."""
    report = Measurement(
        title=f"The instruction-augmented corpus: {config.corpus}",
        subtitle=f"{values['documents_augmented']:,} augmented texts with {values['pairs']:,} "
        f"pairs, written by {values['synthesizer']}",
        measured=dict(values),
    )
    report.tables.append(_statistics(values))
    if "judged" in values:
        report.tables += [_judged(config.corpus, values["judged"]), _categories(values["judged"])]
        report.figures += [_scenarios(values["judged"]), _categories_figure(values["judged"])]
    else:
        why = "no judge was given: name a chat model in `judge`."
        report.absent += [Absent("Table 6 (accuracy, relevance, categories)", why)]
        report.absent += [Absent("Figure 6 (task scenarios)", why)]
    report.absent.append(
        Absent("Table 10 (people's judgement)", "people judged; no model stands in for them.")
    )
    if contamination is None:
        why = "no evaluation set was given: name some in `contamination.evaluations`."
        report.absent.append(Absent("Table 9 (contamination)", why))
    else:
        report.tables += [_contamination(contamination), _paper_contamination()]
    report.tables += [_domain_scores(values["domains"]), _distribution(values["domains"])]
    report.figures.append(_distribution_bars(values["domains"]))
    report.figures += _histograms(texts)
    return report


def _statistics(values: Mapping[str, Any]) -> Table:
    found = values["statistics"]
    kept = format_cell(found["pairs_kept_per_text"], decimals=2)
    rows = [
        ("Texts counted", cell(values["texts_counted"]), ""),
        ("Pairs kept per text", kept, f"{paper.PAIRS_PER_TEXT}"),
        ("Tokens written per pair", cell(found["tokens_per_pair"]), f"{paper.TOKENS_PER_PAIR}"),
        ("Words per pair", cell(found["words_per_pair"]), ""),
        ("Texts with a pair, %", per_cent(found["with_pairs_share"]), ""),
        (
            "Texts whose generation parses but for a cut end, %",
            per_cent(found["well_formed_share"]),
            "",
        ),
        ("Repeated questions, % of pairs written", per_cent(found["repeated_share"]), ""),
        ("Answers that stand in the text, %", per_cent(found["literal_share"]), ""),
        *((f"{name}, %", per_cent(found["format_shares"][name]), "") for name in PAIR_FORMATS),
        ("Rejected pieces", format_counts(found["rejected"]), ""),
    ]
    return Table(
        "Pairs",
        ("", "Corpus", "Paper"),
        tuple(rows),
        "Tokens are the synthesizer's own, tags and rejected pieces included. Synthesis drops "
        "repeated questions; they count only in their own line and in the formats.",
    )


def _judged(corpus: str, found: Mapping[str, Any]) -> Table:
    row = (
        f"{corpus}, judged by {found['judge']['model']}",
        per_cent(found["accuracy"]),
        per_cent(found["relevance"]),
        cell(len(found["categories"])),
        cell(found["judged"]),
    )
    others = [
        (f"paper, {title}: {name}", *map(cell, numbers), "")
        for title, table in (
            ("Table 6, GPT-4", paper.TABLE_6),
            ("Table 10, people", paper.TABLE_10),
        )
        for name, numbers in table.items()
    ]
    return Table(
        "Table 6: response accuracy, context relevance, task categories",
        ("", "Accuracy", "Relevance", "Categories", "Pairs judged"),
        (row, *others),
        "Per cent of pairs. In no figure, because the judge's reply could not be read: "
        f"{format_counts(found['without_verdict'])}. The number of categories grows with the "
        "number of pairs; the paper draws 500 texts. It is out of 76 here.",
    )


def _categories(found: Mapping[str, Any]) -> Table:
    listed = list(found["categories"].items())
    rows = [(name, cell(count)) for name, count in listed[:_CATEGORIES]]
    if rest := listed[_CATEGORIES:]:
        rows.append((f"{len(rest)} others", cell(sum(count for _, count in rest))))
    return Table("Task categories", ("Category", "Pairs"), tuple(rows), "All are in results.json.")


def _scenarios(found: Mapping[str, Any]) -> Bars:
    return share_bars(
        "Figure 6: task scenarios, per cent of pairs (grouping and names ours)",
        ("corpus",),
        [(name, [share]) for name, share in found["scenarios"].items()],
    )


def _categories_figure(found: Mapping[str, Any]) -> Sunburst:
    counts = found["categories"]
    groups = [
        (scenario, [(name, counts.get(name, 0)) for name in members])
        for scenario, members in SCENARIOS.items()
    ]
    return Sunburst("Task categories within the scenarios", groups, "pairs")


def _contamination(found: Contamination) -> Table:
    header, *rows = contamination_rows(found.raw, found.augmented)
    short = sum(counts.unmatchable for counts in found.raw.values())
    return Table(
        "Table 9: contamination",
        header,
        rows,
        "Evaluation examples of which a drawn substring stands in the corpus. Too short to be "
        f"looked for: {short:,}; records that could not be read: {found.damaged:,}.",
    )


def _paper_contamination() -> Table:
    columns = paper.TABLE_9
    rows = [
        ("Total Eval Examples", *(cell(of_set[0]) for of_set in columns.values())),
        ("Contam in Raw Corpora", *(cell(of_set[1]) for of_set in columns.values())),
        ("Contam in Ins-Aug Corpora", *(cell(of_set[2]) for of_set in columns.values())),
        ("Contam in Synthesized Pairs", *(cell(one[2] - one[1]) for one in columns.values())),
    ]
    return Table("Table 9 in the paper", ("", *columns), tuple(rows))


def _domain_scores(found: Mapping[str, Any]) -> Table:
    keys = ("coverage", "coverage_multi_domain", "overlap")
    row = (f"by {found['classifier']}", *(per_cent(found[key]) for key in keys))
    return Table(
        "Table 11: domain coverage and overlap",
        ("", "Coverage", "Coverage (multi-domain)", "Overlap"),
        (row, ("paper", *map(cell, paper.TABLE_11))),
        f"Per cent, means over {found['texts']:,} texts with a domain, "
        f"{found['texts_multi_domain']:,} of them with several; {found['texts_without_domain']:,} "
        f"texts have none and are left out. Texts and pairs without an answer of the classifier: "
        f"{format_counts(found['failed'])}. The paper does not say what classified its texts.",
    )


def _distribution(found: Mapping[str, Any]) -> Table:
    titles = {
        "collection": "Data sets of the collection, each once",
        "raw": "Raw texts",
        "pairs": "Synthesized pairs",
    }
    rows = [
        (title, *(per_cent(found["distribution"][key][domain]) for domain in DOMAINS))
        for key, title in titles.items()
    ]
    rows += [(f"paper: {name}", *map(cell, shares)) for name, shares in paper.TABLE_12.items()]
    return Table(
        "Table 12: domain distribution",
        ("", *(name.replace("_", " ") for name in DOMAINS)),
        tuple(rows),
        f"Per cent, by {found['classifier']}; what has several domains counts in equal parts to "
        "each. Data sets with texts of several domains are in no row.",
    )


def _distribution_bars(found: Mapping[str, Any]) -> Bars:
    raw, pairs = found["distribution"]["raw"], found["distribution"]["pairs"]
    rows = [(name.replace("_", " "), [raw[name], pairs[name]]) for name in DOMAINS]
    return share_bars("Table 12: domains, per cent", ("raw texts", "pairs"), rows)


def _histograms(texts: Sequence[SynthesizedText]) -> list[Histogram]:
    pairs = [pair for text in texts for pair in text.parsed.pairs]
    return [
        histogram(
            "Pairs kept of each text",
            [len(text.parsed.pairs) for text in texts],
            "pairs",
            "texts",
            ((paper.PAIRS_PER_TEXT, "paper's mean"),),
        ),
        histogram("Length of texts", [len(t.text.split()) for t in texts], "words", "texts"),
        histogram(
            "Tokens written about each text",
            [text.completion_tokens for text in texts],
            "tokens",
            "texts",
        ),
        histogram(
            "Length of questions", [len(p.question.split()) for p in pairs], "words", "pairs"
        ),
        histogram("Length of answers", [len(p.answer.split()) for p in pairs], "words", "pairs"),
    ]
