"""The page of one synthesis run, from the files in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ipt_jax.core.json_lines import parse_json
from ipt_jax.evaluation.charts import LineChart, Series
from ipt_jax.evaluation.page import Facts, Part, Section, Table, page, say, write_page
from ipt_jax.evaluation.report import File, minutes, samples_section, synthesis_section

REPORT_NAME = "report.html"
_LEAST_SECONDS = 5.0  # over which a speed is taken: a process's last line comes when it comes


def synthesis_report(folder: Path) -> Path:
    """Write `folder/report.html`: where the documents went, speed over time, cost, samples.

    `folder` holds summary.json and samples.json, and progress.jsonl of all processes of the run.

    Returns:
      The page.

    Raises:
      UserError: a file is missing or not what the run writes; it is named.
    """
    summary = File.read(folder / "summary.json")
    found = summary.values
    failed = found.get("requests_failed", 0)
    facts = [
        (say(found[key]), told)
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
            (say(summary["completions"] - failed), "answers of the model"),
            *([(say(failed), "requests that failed")] if failed else []),
            (minutes(summary["seconds"]), "of asking"),
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
    html = page(title, about, [Facts(facts)] if facts else [], sections)
    return write_page(folder / REPORT_NAME, html)


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
        LineChart(
            "Tokens a second",
            [Series("read", running, read), Series("written", running, written)],
            "seconds of asking, all processes together",
            "tokens/s",
            smooth=False,
        ),
        Table("Processes", ("", ""), rows, (1,)),
    ]


def _last_of_each(log: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last line of each process: where the clock begins anew, another has begun."""
    following = [*log[1:], {"seconds": -1.0}]
    return [a for a, b in zip(log, following, strict=True) if b["seconds"] < a["seconds"]]
