"""The quickstart's report, from the files its stages left behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipt_jax.core.errors import UserError
from ipt_jax.core.json_lines import parse_json
from ipt_jax.evaluation.charts import Bars, LineChart, Series, Whiskers
from ipt_jax.evaluation.page import (
    Facts,
    Note,
    Paragraph,
    Part,
    Sample,
    Section,
    Table,
    page,
    say,
    write_page,
)
from ipt_jax.evaluation.results import Result

LOGIT_TOLERANCE = 1e-4  # float32, ours against transformers'
# What a model that knows nothing scores, by task and metric.
CHANCE = {("sample_continuation", "acc"): 0.25, ("sample_continuation", "acc_norm"): 0.25}


@dataclass(frozen=True)
class File:
    """A JSON file a stage wrote; `file[key]` names file and key where the key is missing."""

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> File:
        values = _json(path, _text(path))
        if not isinstance(values, dict):
            raise UserError(f"{path}: holds {type(values).__name__}, not an object; {_AGAIN}")
        return cls(path, values)

    def __getitem__(self, key: str) -> Any:
        try:
            return self.values[key]
        except KeyError as error:
            raise UserError(f"{self.path}: has no '{key}'; {_AGAIN}") from error


_AGAIN = "run the stage that writes it again."


@dataclass(frozen=True)
class TrainingRun:
    """What a training run left behind."""

    name: str
    summary: File
    metrics: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, name: str, folder: Path) -> TrainingRun:
        """Read `summary.json` and `metrics.jsonl`.

        Raises:
          UserError: a file is missing, undecodable or lacks a key.
        """
        path = folder / "metrics.jsonl"
        lines = _text(path).splitlines()
        metrics = [
            File(path, _json(path, line, number)) for number, line in enumerate(lines, 1) if line
        ]
        points = [{key: line[key] for key in ("tokens", "loss")} for line in metrics]
        return cls(name, File.read(folder / "summary.json"), points)


def quickstart_report(
    path: Path,
    *,
    synthesis_folder: Path,
    training_folders: Mapping[str, Path],
    evaluation_results: Sequence[Result],
    logit_checks: Mapping[str, float],
    stage_seconds: Mapping[str, float],
) -> Path:
    """Write the report of one quickstart run to `path`, one HTML file with everything in it.

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
    synthesis = File.read(synthesis_folder / "summary.json")
    runs = [TrainingRun.read(name, folder) for name, folder in training_folders.items()]
    environment = File.read(synthesis_folder / "environment.json")
    total = sum(stage_seconds.values())
    facts = [
        (say(synthesis["documents_in"]), "documents read"),
        (say(synthesis["pairs"]), "instruction–response pairs written"),
        *([(short_count(runs[0].summary["parameters"]), "parameters in each model")] * bool(runs)),
        *token_facts(runs),
        (f"{max(logit_checks.values()):.1e}" if logit_checks else "–", "largest logit difference"),
        (minutes(total), "in all"),
    ]
    commit = environment.values.get("commit")
    html = page(
        "ipt-jax quickstart",
        f"From raw text to instruction data, to {_count(len(runs), 'model')}, to a comparison"
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
    return write_page(path, html)


def no_verdict(runs: Sequence[TrainingRun]) -> str:
    """Why the page's comparison decides nothing, from what was trained."""
    trained = "; ".join(
        f"{run.name}: {short_count(run.summary['parameters'])} parameters, "
        f"{short_count(run.summary['tokens'])} tokens"
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
        return [(short_count(next(iter(counts.values()))), "training tokens for each model")]
    return [(short_count(count), f"training tokens: {name}") for name, count in counts.items()]


def synthesis_section(summary: File) -> Section:
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
        parts.append(
            Table("Every document accounted for", ("", "documents"), rows, (1,), total=True)
        )
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
    parts.append(Table("Turned away, by reason", ("what", "reason", "count"), reasons, (2,)))
    counts = [(k.replace("_", " "), v) for k, v in found.items() if type(v) is int]
    counts = [row for row in counts if row[0].replace(" ", "_") not in shown]
    parts.append(Table("What was made", ("", "count"), counts, (1,)))
    if "model" in found:
        work = [
            ("engine", summary["engine"]),
            ("prompt tokens", summary["prompt_tokens"]),
            ("completion tokens", summary["completion_tokens"]),
            ("completion tokens per second", f"{summary['completion_tokens_per_second']:.0f}"),
            ("time", minutes(summary["seconds"])),
        ]
        parts.append(Table("What it took", ("", ""), work, (1,)))
    return Section("Synthesis", parts)


def _asked(summary: File) -> list[Part]:
    """What the model was asked, and how freely it could write."""
    asked = summary["completions"] - summary.values.get("requests_failed", 0)
    said = f"{summary['model']} gave {_count(asked, 'answer')}"
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
        for number, sample in enumerate(_json(path, _text(path))):
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
        raise UserError(f"{path}: not a list of samples ({error!r}); {_AGAIN}") from error
    lead = Paragraph("The first records, as they were made; pairs stand below their document.")
    return Section("Samples", [lead, *samples])


def training_section(runs: Sequence[TrainingRun]) -> Section:
    """Loss over tokens, tokens by source, and rates asked for and realised."""
    chart = LineChart(
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
            minutes(run.summary["seconds"]),
        )
        for run in runs
    ]
    header = ("run", "model", "parameters", "steps", "tokens", "final loss", "time")
    parts.append(Table("The runs", header, sizes, (2, 3, 4, 5, 6)))
    rates, bars = [], []
    for run in runs:
        asked, realised = run.summary["asked_rates"], run.summary["realised_rates"]
        whole = sum(asked.values()) or 1.0
        for source in sorted({*asked, *realised}):
            share, got = asked.get(source, 0.0) / whole, realised.get(source, 0.0)
            tokens = run.summary["source_tokens"].get(source, 0)
            rates.append((run.name, source, tokens, f"{share:.1%}", f"{got:.1%}"))
            bars.append((f"{run.name} · {source}", (share, got)))
    header = ("run", "source", "tokens", "rate asked", "rate realised")
    parts.append(Table("Tokens and mixture rates by source", header, rates, (2, 3, 4)))
    parts.append(Bars("Mixture rates", ("asked", "realised"), bars, lambda v: f"{v:.1%}"))
    return Section("Training", parts)


def export_section(logit_checks: Mapping[str, float]) -> Section:
    """How far the exported models' logits are from the trained models'."""
    rows = [
        (name, f"{value:.2e}", "yes" if value <= LOGIT_TOLERANCE else "NO")
        for name, value in logit_checks.items()
    ]
    header = ("model", "largest absolute difference", f"within {LOGIT_TOLERANCE:.0e}")
    table = Table("Logits on real text, float32: ours against transformers'", header, rows, (1, 2))
    lead = Paragraph("Each model was written as a Hugging Face folder and loaded again from it.")
    return Section("Export", [lead, table])


def evaluation_section(results: Sequence[Result]) -> Section:
    """Every number with its 95% confidence interval, as a table and as dots with whiskers."""
    rows = [
        (
            *(r.task, f"{r.metric} {'↑' if r.higher_is_better else '↓'}", r.model),
            *(f"{r.value:.4f}", "–" if r.low is None else f"{r.low:.4f} – {r.high:.4f}", r.items),
        )
        for r in sorted(results, key=lambda r: (r.task, r.metric))
    ]
    header = ("task", "metric", "model", "value", "95% interval", "items")
    note = "↑ higher is better, ↓ lower is better. Intervals are over items, not over seeds. "
    note += "Cut: items whose context did not fit into the model's and lost its beginning."
    parts: list[Part] = [
        Paragraph(
            f"{_count(len({r.model for r in results}), 'model')} on "
            f"{_count(len({r.task for r in results}), 'task')}, by lm-evaluation-harness."
        ),
        Table("Scores", header, rows, (3, 4, 5), note=note),
    ]
    for task, metric in dict.fromkeys((r.task, r.metric) for r in results):
        dots = [
            (r.model, r.value, r.low, r.high)
            for r in results
            if (r.task, r.metric) == (task, metric)
        ]
        chance = CHANCE.get((task, metric))
        parts.append(Whiskers(f"{task}: {metric}", dots, chance, "chance"))
    return Section("Evaluation", parts)


def run_section(stage_seconds: Mapping[str, float], environment: File) -> Section:
    """Time for each stage, and what the run ran on."""
    stages = Bars("Time by stage", ("",), [(k, (v,)) for k, v in stage_seconds.items()], minutes)
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
    return Section("The run", [stages, Table("Environment", ("", ""), facts)])


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def short_count(count: float) -> str:
    """1,234,567 -> 1.23M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:g}"


def minutes(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: the report needs this file and it is not there; {_AGAIN}"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; {_AGAIN}") from error


def _json(path: Path, text: str, line: int | None = None) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        where = path if line is None else f"{path}, line {line}"
        raise UserError(f"{where}: not valid JSON ({error}); {_AGAIN}") from error
