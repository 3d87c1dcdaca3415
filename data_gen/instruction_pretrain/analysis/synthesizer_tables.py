"""Table 5 and Figure 5 out of the numbers, beside the paper's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_gen.instruction_pretrain.analysis import paper
from data_gen.instruction_pretrain.analysis.config import SynthesizerAnalysis
from data_gen.instruction_pretrain.analysis.generations import PAIR_FORMATS
from data_gen.instruction_pretrain.analysis.helpfulness import (
    BASE,
    CONDITIONS,
    RANDOM,
    TUNED,
    WITHOUT,
)
from data_gen.instruction_pretrain.analysis.pair_quality import FEW, ZERO
from data_gen.instruction_pretrain.analysis.scores import SEEN, UNSEEN
from data_gen.stages.measurement import (
    Absent,
    Measurement,
    cell,
    per_cent,
    share_bars,
)
from ipt_jax.core.report.figures import Bars
from ipt_jax.core.report.numbers import format_counts
from ipt_jax.core.report.values import Table

# Table 5's columns: what of a model's numbers, and of which data sets.
_COLUMNS = (
    ("accuracy", SEEN),
    ("accuracy", UNSEEN),
    (ZERO, SEEN),
    (FEW, SEEN),
    (ZERO, UNSEEN),
    (FEW, UNSEEN),
)
_NAMES = (
    *("Accuracy seen", "Accuracy unseen", "Quality seen zero", "Quality seen few"),
    *("Quality unseen zero", "Quality unseen few"),
)
_BARS = {
    WITHOUT: "w/o pairs",
    RANDOM: "random pairs",
    BASE: "the base's pairs",
    TUNED: "the tuned model's pairs",
}


def synthesizer_report(config: SynthesizerAnalysis, values: Mapping[str, Any]) -> Measurement:
    """Tables, charts and what is absent, out of what was measured."""
    models = values["models"]
    names = [f"{name}: {models[name]['identity']['model']}" for name in (BASE, TUNED)]
    report = Measurement(
        title="The instruction synthesizer on held-out examples",
        subtitle=f"{', '.join(names)}; {values['examples']:,} examples of "
        f"{len(values['datasets'])} data sets",
        measured=dict(values),
        absent=_absent(config, values),
    )
    report.tables += [_table_5(models), _by_dataset(values), _asked(models)]
    written = [setting for setting in (ZERO, FEW) if setting in models[BASE]]
    if written:
        report.tables += [_generations(models, setting) for setting in written]
        report.figures.append(_formats(models, written))
    if "helpfulness" in values:
        report.tables.append(_helpfulness(values["helpfulness"]))
        report.figures.append(_helpfulness_bars(values["helpfulness"]))
    report.figures.insert(
        0,
        Bars(
            "Table 5, F1 in per cent",
            (BASE, TUNED),
            tuple(
                (name, tuple(_f1(models[model], *column) for model in (BASE, TUNED)))
                for name, column in zip(_NAMES, _COLUMNS, strict=True)
            ),
            number=cell,
        ),
    )
    return report


def _f1(model: Mapping[str, Any], what: str, group: str) -> float | None:
    return model[what][group] if what in model else None


def _table_5(models: Mapping[str, Any]) -> Table:
    rows = [
        (
            name,
            *(cell(_f1(models[model], *column)) for model in (BASE, TUNED)),
            *(cell(paper.TABLE_5[model][place]) for model in (BASE, TUNED)),
        )
        for place, (name, column) in enumerate(zip(_NAMES, _COLUMNS, strict=True))
    ]
    return Table(
        "Table 5: response accuracy and pair quality",
        ("", BASE, TUNED, "paper: Base", "paper: Ours"),
        tuple(rows),
        "Token F1 as SQuAD's, per cent: the mean over data sets of the mean over their questions "
        "or texts. Zero: the text alone; few: up to three examples of its data set before it. The "
        "paper's models are Mistral-7B and its data sets others in part, so that its numbers show "
        "the order of things only.",
    )


def _by_dataset(values: Mapping[str, Any]) -> Table:
    models = values["models"]

    def both(what: str, name: str) -> str:
        found = [models[m].get(what, {}).get("datasets", {}).get(name, {}) for m in (BASE, TUNED)]
        return " → ".join(cell(of_model.get("f1")) for of_model in found)

    ordered = sorted(values["datasets"].items(), key=lambda item: (item[1]["group"], item[0]))
    rows = [
        (
            f"{name} ({of_set['group']})",
            cell(of_set["examples"]),
            cell(of_set["pairs"]),
            *(both(what, name) for what in ("accuracy", ZERO, FEW)),
        )
        for name, of_set in ordered
    ]
    return Table(
        "By data set, base → tuned",
        ("Data set", "Examples", "Gold pairs", "Accuracy", "Quality zero", "Quality few"),
        tuple(rows),
        "Token F1, per cent.",
    )


def _asked(models: Mapping[str, Any]) -> Table:
    rows = []
    for name in (BASE, TUNED):
        for what in ("accuracy", ZERO, FEW):
            if (found := models[name].get(what)) is not None:
                counts = (found["asked"] - found["errors"], found["too_long"], found["errors"])
                more = (found.get("without_shots"), found.get("shots_dropped"))
                rows.append((f"{name}, {what}", *map(cell, (*counts, *more))))
    return Table(
        "What was scored, and what could not be",
        ("", "Scored", "Too long", "Errors of the engine", "Without shots", "Shots dropped"),
        tuple(rows),
        "Questions of `accuracy`, texts of `zero` and `few`. Shots are dropped, the oldest first, "
        "where they leave no room; a text that none fits before is in no few-shot figure.",
    )


def _generations(models: Mapping[str, Any], setting: str) -> Table:
    columns = [
        (name, group)
        for group in (SEEN, UNSEEN)
        for name in (BASE, TUNED)
        if models[name][setting]["generations"][group]["generations"]
    ]
    found = [models[name][setting]["generations"][group] for name, group in columns]
    lines: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("Generations", lambda s: cell(s["generations"])),
        ("Cut at max_tokens", lambda s: cell(s["cut_at_max_tokens"])),
        ("Parse: pairs, and nothing else but a cut end, %", _share("well_formed_share")),
        ("At least one pair, %", _share("with_pairs_share")),
        ("Pairs per text (paper: about 5)", lambda s: cell(s["pairs_per_text"])),
        ("Tokens per pair (paper: about 52)", lambda s: cell(s["tokens_per_pair"])),
        ("Repeated questions, % of pairs", _share("repeated_share")),
        ("Answers that stand in the text, % of pairs", _share("literal_share")),
    ]
    lines += [
        (f"{name[0].upper()}{name[1:]}, % of pairs", _format_share(name)) for name in PAIR_FORMATS
    ]
    if setting == FEW:
        lines.append(("Same formats as the shots, % of generations", _share("same_formats_share")))
    lines.append(("Rejected pieces", lambda s: format_counts(s["rejected"])))
    return Table(
        f"What the generations hold, {setting}-shot",
        ("", *(f"{name}, {group}" for name, group in columns)),
        tuple((title, *map(say, found)) for title, say in lines),
        "Repeated: the same question, options included, came before in the same text.",
    )


def _share(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda statistics: per_cent(statistics[key])


def _format_share(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda statistics: per_cent(statistics["format_shares"][name])


def _formats(models: Mapping[str, Any], settings: Sequence[str]) -> Bars:
    def shares(setting: str, name: str) -> list[float | None]:
        of_models = (models[model][setting]["generations"]["all"] for model in (BASE, TUNED))
        return [found["format_shares"][name] for found in of_models]

    return share_bars(
        "Formats of the pairs, per cent of a model's pairs",
        (BASE, TUNED),
        [(f"{name}, {of}", shares(of, name)) for of in settings for name in PAIR_FORMATS],
    )


def _helpfulness(found: Mapping[str, Any]) -> Table:
    rows = []
    for condition in CONDITIONS:
        of = found["conditions"][condition]
        count = sum(one["questions"] for one in of["datasets"].values())
        without = found["without_pairs"].get(condition)
        rows.append(
            (_BARS[condition], cell(of[SEEN]), cell(of[UNSEEN]), cell(count), cell(without))
        )
    return Table(
        "Figure 5: helpfulness",
        ("In the prompt", "Seen", "Unseen", "Examples", "Of them without a pair"),
        tuple(rows),
        f"Token F1 in per cent of what {found['reader']['model']} answers to one gold instruction "
        "of each text. The paper draws its bars without numbers: the tuned model's pairs help "
        "most, on seen and unseen data sets. Left out of all four bars: "
        f"{len(found['left_out']):,} examples; pairs that did not fit: "
        f"{found['pairs_dropped']:,}; errors of the engine: {found['errors']:,}.",
    )


def _helpfulness_bars(found: Mapping[str, Any]) -> Bars:
    return Bars(
        "Figure 5, F1 in per cent",
        (SEEN, UNSEEN),
        tuple(
            (
                _BARS[condition],
                (found["conditions"][condition][SEEN], found["conditions"][condition][UNSEEN]),
            )
            for condition in CONDITIONS
        ),
        number=cell,
    )


def _absent(config: SynthesizerAnalysis, values: Mapping[str, Any]) -> list[Absent]:
    titles = {
        "accuracy": "Table 5, response accuracy",
        ZERO: "Table 5, pair quality, zero-shot",
        FEW: "Table 5, pair quality, few-shot",
        "helpfulness": "Figure 5",
    }
    found = [
        Absent(title, f"`measures` does not name `{name}`.")
        for name, title in titles.items()
        if name not in config.measures
    ]
    for group in (SEEN, UNSEEN):
        if not any(of["group"] == group for of in values["datasets"].values()):
            found.append(
                Absent(f"All {group} columns", f"`held_out` has no example of {group} data sets.")
            )
    for name in (BASE, TUNED):
        for what, group in _COLUMNS:
            measured = values["models"][name].get(what)
            there = any(of["group"] == group for of in values["datasets"].values())
            if measured is not None and there and measured[group] is None:
                found.append(
                    Absent(
                        f"{titles[what]}, {group}, {name}",
                        "no question of these data sets was scored: all were too long, without "
                        "shots or errors.",
                    )
                )
    return found
