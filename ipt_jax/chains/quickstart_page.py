"""The quickstart's report, from the files its stages left behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_gen.stages.page import samples_section, synthesis_section
from ipt_jax.core.report.figures import Bars, Lines, Series
from ipt_jax.core.report.numbers import (
    ABSENT,
    format_cell,
    format_count,
    format_number,
    format_percent,
    format_seconds,
)
from ipt_jax.core.report.page import write_page
from ipt_jax.core.report.source import SourceFile
from ipt_jax.core.report.values import Facts, Note, Paragraph, Part, Report, Section, Table
from ipt_jax.evaluation.page import evaluation_section
from ipt_jax.evaluation.results import Result

LOGIT_TOLERANCE = 1e-4  # float32, ours against transformers'


@dataclass(frozen=True)
class TrainingRun:
    """What a training run left behind."""

    name: str
    summary: SourceFile
    metrics: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, name: str, folder: Path) -> TrainingRun:
        """Read `summary.json` and `metrics.jsonl`.

        Raises:
          UserError: a file is missing, undecodable or lacks a key.
        """
        metrics = [
            {key: line[key] for key in ("tokens", "loss")}
            for line in SourceFile.lines(folder / "metrics.jsonl")
        ]
        return cls(name, SourceFile.read(folder / "summary.json"), metrics)


def quickstart_report(
    path: Path,
    *,
    synthesis_folder: Path,
    training_folders: Mapping[str, Path],
    evaluation_results: Sequence[Result],
    logit_checks: Mapping[str, float],
    stage_seconds: Mapping[str, float],
) -> Path:
    """Write the page of one quickstart run to `path`.

    Args:
      path: the HTML file.
      synthesis_folder: holds summary.json, samples.json and environment.json.
      training_folders: name -> run folder with summary.json and metrics.jsonl.
      evaluation_results: what `evaluate_models` gave.
      logit_checks: name -> largest absolute logit difference to transformers.
      stage_seconds: stage -> wall-clock seconds.

    Returns:
      `path`.

    Raises:
      UserError: a file is missing or not what its stage writes; it is named.
    """
    synthesis = SourceFile.read(synthesis_folder / "summary.json")
    runs = [TrainingRun.read(name, folder) for name, folder in training_folders.items()]
    environment = SourceFile.read(synthesis_folder / "environment.json")
    facts = [
        (format_cell(synthesis["documents_in"]), "documents read"),
        (format_cell(synthesis["pairs"]), "instruction–response pairs written"),
        *[
            (format_number(run.summary["parameters"]), "parameters in each model")
            for run in runs[:1]
        ],
        *token_facts(runs),
        (
            f"{max(logit_checks.values()):.1e}" if logit_checks else ABSENT,
            "largest logit difference",
        ),
        (format_seconds(sum(stage_seconds.values())), "in all"),
    ]
    commit = environment.values.get("commit")
    report = Report(
        "ipt-jax quickstart",
        f"From raw text to instruction data, to {format_count(len(runs), 'model')}, to a comparison"
        + (f" · commit {str(commit)[:10]}" if commit else ""),
        [Facts(facts), Note("What this run cannot tell you.", no_verdict(runs))],
        [
            synthesis_section(synthesis),
            samples_section(synthesis_folder / "samples.json"),
            training_section(runs),
            export_section(logit_checks),
            evaluation_section(evaluation_results),
            run_section(stage_seconds, environment),
        ],
    )
    return write_page(path, report)


def no_verdict(runs: Sequence[TrainingRun]) -> str:
    """Why the page's comparison decides nothing, from what was trained."""
    trained = "; ".join(
        f"{run.name}: {format_number(run.summary['parameters'])} parameters, "
        f"{format_number(run.summary['tokens'])} tokens"
        for run in runs
    )
    return (
        "It shows that every stage works, not which data makes the better model. Each model was "
        f"trained once ({trained}): another seed may turn the order round. A difference inside the "
        "confidence intervals means nothing, and one outside them only that these models differ "
        "on these items."
    )


def token_facts(runs: Sequence[TrainingRun]) -> list[tuple[str, str]]:
    """The runs' tokens: one fact where they are equal, as a comparison wants them."""
    counts = {run.name: run.summary["tokens"] for run in runs}
    if len(counts) > 1 and len(set(counts.values())) == 1:
        return [(format_number(next(iter(counts.values()))), "training tokens for each model")]
    return [(format_number(count), f"training tokens: {name}") for name, count in counts.items()]


def training_section(runs: Sequence[TrainingRun]) -> Section:
    """Loss over tokens, tokens by source, and rates asked for and realised."""
    chart = Lines(
        "Training loss",
        [
            Series(r.name, [m["tokens"] for m in r.metrics], [m["loss"] for m in r.metrics])
            for r in runs
        ],
        "tokens trained on",
        "loss (nats per token)",
    )
    note = Paragraph(
        "Points are single steps, lines their moving average. Each model is scored on its own "
        "training text here, so that the lower curve is not the better model; the evaluation "
        "below scores all on the same items."
    )
    parts: list[Part] = [chart, note]
    sizes = [
        (
            *(run.name, run.summary["model"], run.summary["parameters"], run.summary["steps"]),
            *(run.summary["tokens"], f"{run.summary['final_loss']:.3f}"),
            format_seconds(run.summary["seconds"]),
        )
        for run in runs
    ]
    header = ("run", "model", "parameters", "steps", "tokens", "final loss", "time")
    parts.append(Table("The runs", header, sizes, text_columns=2))
    rates, bars = [], []
    for run in runs:
        asked, realised = run.summary["asked_rates"], run.summary["realised_rates"]
        whole = sum(asked.values()) or 1.0
        for source in sorted({*asked, *realised}):
            share, got = asked.get(source, 0.0) / whole, realised.get(source, 0.0)
            tokens = run.summary["source_tokens"].get(source, 0)
            rates.append((run.name, source, tokens, format_percent(share), format_percent(got)))
            bars.append((f"{run.name} · {source}", (share, got)))
    header = ("run", "source", "tokens", "rate asked", "rate realised")
    parts.append(Table("Tokens and mixture rates by source", header, rates, text_columns=2))
    parts.append(Bars("Mixture rates", ("asked", "realised"), bars, format_percent))
    return Section("Training", parts)


def export_section(logit_checks: Mapping[str, float]) -> Section:
    """How far the exported models' logits are from the trained models'."""
    rows = [
        (name, f"{value:.2e}", "yes" if value <= LOGIT_TOLERANCE else "NO")
        for name, value in logit_checks.items()
    ]
    header = ("model", "largest absolute difference", f"within {LOGIT_TOLERANCE:.0e}")
    table = Table("Logits on real text, float32: ours against transformers'", header, rows)
    lead = Paragraph("Each model was written as a Hugging Face folder and loaded again from it.")
    return Section("Export", [lead, table])


def run_section(stage_seconds: Mapping[str, float], environment: SourceFile) -> Section:
    """Time for each stage, and what the run ran on."""
    bars = [(name, (seconds,)) for name, seconds in stage_seconds.items()]
    stages = Bars("Time by stage", ("time",), bars, format_seconds)
    values = environment.values
    devices = values.get("devices") or ["none but the processor"]
    facts = [
        ("commit", values.get("commit")),
        ("uncommitted changes", "yes" if values.get("uncommitted_changes") else "no"),
        ("python", values.get("python")),
        ("platform", values.get("platform")),
        ("processors", values.get("processors")),
        ("devices", ", ".join(map(str, devices))),
        *sorted((values.get("packages") or {}).items()),
    ]
    return Section("The run", [stages, Table("Environment", ("", ""), facts, text_columns=2)])
