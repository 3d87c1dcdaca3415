"""The page of one synthesis run, from the files in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ipt_jax.core.errors import UserError
from ipt_jax.core.json_lines import parse_json
from ipt_jax.core.report.figures import Lines, Series
from ipt_jax.core.report.numbers import format_cell, format_count, format_seconds
from ipt_jax.core.report.page import PAGE_NAME, write_page
from ipt_jax.core.report.source import AGAIN, SourceFile, read_source
from ipt_jax.core.report.values import Facts, Note, Paragraph, Part, Report, Sample, Section, Table

_LEAST_SECONDS = 5.0  # over which a speed is taken: a process's last line comes when it comes


def synthesis_report(folder: Path) -> Path:
    """Write `folder/report.html`: where the documents went, speed over time, cost, samples.

    `folder` holds summary.json and samples.json, and progress.jsonl of all processes of the run.

    Returns:
      The page.

    Raises:
      UserError: a file is missing or not what the run writes; it is named.
    """
    summary = SourceFile.read(folder / "summary.json")
    found = summary.values
    failed = found.get("requests_failed", 0)
    facts = [
        (format_cell(found[key]), told)
        for key, told in (
            ("documents_in", "documents read"),
            ("pairs", "instruction–response pairs written"),
        )
        if key in found
    ]
    sections = [synthesis_section(summary)]
    about = "No model was asked."
    if "model" in found:
        hours, cost = summary["gpu_hours"], summary["cost"]
        facts += [
            (format_cell(summary["completions"] - failed), "answers of the model"),
            *([(format_cell(failed), "requests that failed")] if failed else []),
            (format_seconds(summary["seconds"]), "of asking"),
            *([(f"{hours:,.1f}", "GPU hours")] if hours else []),
            *([(f"{cost:,.2f}", "cost at the given price")] if cost else []),
        ]
        sections.append(Section("Speed", _speed(_lines(folder / "progress.jsonl"))))
        about = (
            f"{summary['model']}, revision {str(summary['model_revision'])[:12]}, engine "
            f"{summary['engine']} {summary['engine_version']}"
        )
    if (samples := folder / "samples.json").exists():  # not of every method's earlier versions
        sections.append(samples_section(samples))
    title = f"Synthesis: {summary['method'].replace('_', ' ')}"
    opening = [Facts(facts)] if facts else []
    return write_page(folder / PAGE_NAME, Report(title, about, opening, sections))


def synthesis_section(summary: SourceFile) -> Section:
    """Where each document went, why pieces were turned away, and what the method counted."""
    found, parts, shown = summary.values, list[Part](), {"seconds", "seed", "rounds"}
    if "model" in found:
        parts += _asked(summary)
        shown |= {"completions", "prompt_tokens", "completion_tokens", "requests_failed"}
        shown |= {"requests_to_ask_again"}
    if "documents_in" in found:
        went = [
            ("augmented", summary["documents_augmented"]),
            ("plain: kept as raw text", summary["documents_plain"]),
            ("rejected: not taken as a document", summary["documents_rejected"]),
        ]
        rows = [*went, ("documents in", summary["documents_in"])]
        parts.append(Table("Every document accounted for", ("", "documents"), rows, total=True))
        if sum(count for _, count in went) != summary["documents_in"]:
            parts.append(Note("These counts do not add up.", "Report it: documents were lost."))
        shown |= {f"documents_{what}" for what in ("in", "augmented", "plain", "rejected")}
    reasons = [
        (what, reason.replace("_", " "), count)
        for what, key in (
            ("document kept plain", "plain_reasons"),
            ("document rejected", "rejected_documents"),
            ("piece rejected", "rejected_pieces"),
            ("request failed", "request_errors"),
        )
        for reason, count in sorted(found.get(key, {}).items(), key=lambda it: -it[1])
    ]
    parts.append(
        Table("Turned away, by reason", ("what", "reason", "count"), reasons, text_columns=2)
    )
    counts = [(k.replace("_", " "), v) for k, v in found.items() if type(v) is int]
    counts = [row for row in counts if row[0].replace(" ", "_") not in shown]
    parts.append(Table("What was made", ("", "count"), counts))
    if "model" in found:
        work = [
            ("engine", summary["engine"]),
            ("prompt tokens", summary["prompt_tokens"]),
            ("completion tokens", summary["completion_tokens"]),
            (
                "completion tokens per second",
                format_cell(summary["completion_tokens_per_second"], 0),
            ),
            ("time", format_seconds(summary["seconds"])),
        ]
        parts.append(Table("What it took", ("", ""), work))
    return Section("Synthesis", parts)


def _asked(summary: SourceFile) -> list[Part]:
    """What the model was asked, and how freely it could write."""
    asked = summary["completions"] - summary.values.get("requests_failed", 0)
    said = f"{summary['model']} gave {format_count(asked, 'answer')}"
    rounds = summary.values.get("rounds", 1)
    if rounds > 1:
        said += (
            f", in {rounds} rounds: what a document's prompt had room for of the documents of the "
            "rounds before it, with their pairs, stood in front as examples"
        )
    parts: list[Part] = [Paragraph(f"{said}.")]
    if summary["constrained_decoding"]:
        parts.append(
            Note(
                "Decoding was constrained.",
                f"A grammar let {summary['model']} write only text in the asked format. That "
                "shapes the form; it does not make what is said right.",
            )
        )
    return parts


def samples_section(path: Path) -> Section:
    """Some documents with the pairs a model wrote about them."""
    samples = []
    try:
        for number, sample in enumerate(read_source(path)):
            # Baselines of earlier versions wrote the text alone.
            documents = [
                (d["text"], [(pair["instruction"], pair["response"]) for pair in d["pairs"]])
                for d in sample.get("documents") or [{"text": sample["text"], "pairs": []}]
            ]
            pairs = sum(len(pairs) for _, pairs in documents)
            many = f"{len(documents)} documents, " if len(documents) > 1 else ""
            counted = f" ({many}{pairs} pairs)" if pairs else ""
            title = " · ".join([*filter(None, [sample.get("source")]), sample["id"]]) + counted
            samples.append(Sample(title, documents, opened=number == 0))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not a list of samples ({error!r}); {AGAIN}", path=path) from error
    lead = Paragraph("The first records, as they were made; pairs stand below their document.")
    return Section("Samples", [lead, *samples])


def _lines(path: Path) -> list[Mapping[str, Any]]:
    """What was logged; the last line may have been cut by a kill."""
    found = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            found.append(parse_json(line))
        except ValueError:
            continue
    return found


def _speed(log: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Tokens a second between two lines of the log; time in which no process ran is left out."""
    running, seconds, before = [], 0.0, None
    read: list[float] = []
    written: list[float] = []
    processes = 0
    for line in log:
        fresh = line["fresh"]
        if before is None or line["seconds"] < before["seconds"]:
            before = {"seconds": 0.0, "fresh": {"prompt_tokens": 0, "completion_tokens": 0}}
            processes += 1
        passed = line["seconds"] - before["seconds"]
        if passed < _LEAST_SECONDS and running:
            continue
        seconds += passed
        running.append(seconds)
        for values, key in ((read, "prompt_tokens"), (written, "completion_tokens")):
            values.append((fresh[key] - before["fresh"][key]) / max(passed, 1e-9))
        before = line
    rows = [
        ("processes that worked on it", processes),
        ("units that failed", sum(line["units_failed"] for line in _last_of_each(log))),
    ]
    return [
        Lines(
            "Tokens a second",
            [Series("read", running, read), Series("written", running, written)],
            "seconds of asking, all processes together",
            "tokens/s",
            smooth=False,
        ),
        Table("Processes", ("", ""), rows),
    ]


def _last_of_each(log: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last line of each process: where the clock begins anew, another has begun."""
    following = [*log[1:], {"seconds": -1.0}]
    return [a for a, b in zip(log, following, strict=True) if b["seconds"] < a["seconds"]]
