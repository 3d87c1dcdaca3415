"""Table 5 and Figure 5: base and tuned synthesizer on held-out examples, measured and written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_gen.engines import Completion, Engine
from data_gen.instruction_pretrain.analysis.config import SynthesizerAnalysis
from data_gen.instruction_pretrain.analysis.generations import (
    Generation,
    GenerationStatistics,
    generation_statistics,
)
from data_gen.instruction_pretrain.analysis.held_out import HeldOut, draw_examples, read_held_out
from data_gen.instruction_pretrain.analysis.helpfulness import (
    BASE,
    TUNED,
    ReadingTasks,
    reading_question,
    reading_tasks,
    score_reading,
)
from data_gen.instruction_pretrain.analysis.pair_quality import (
    FEW,
    ZERO,
    PairsTask,
    PairsTasks,
    gold_text,
    pairs_question,
    pairs_tasks,
    score_pairs,
)
from data_gen.instruction_pretrain.analysis.report import GENERATIONS_NAME, Measurement
from data_gen.instruction_pretrain.analysis.response_accuracy import (
    AnswerTask,
    answer_prompt,
    answer_question,
    answer_tasks,
    score_answers,
)
from data_gen.instruction_pretrain.analysis.scores import SEEN, UNSEEN, Score, group_of, macro
from data_gen.instruction_pretrain.analysis.synthesizer_tables import synthesizer_report
from data_gen.instruction_pretrain.formats import Pair, parse_pairs, render_prompt
from data_gen.instruction_pretrain.rounds import Budget
from data_gen.stages.cached import CachedEngine, ProgressFactory, count_errors, silent

READER = "reader"


@dataclass
class ShotSetting:
    """Pairs written in one setting, zero- or few-shot."""

    asked: PairsTasks
    completions: dict[str, Completion]
    scores: list[Score]
    statistics: dict[str, GenerationStatistics]
    """Of seen, unseen and all texts."""


@dataclass
class Measured:
    """What one model gave."""

    identity: Mapping[str, str]
    answer_tasks: list[AnswerTask] = field(default_factory=list)
    answers_too_long: int = 0
    answers: dict[str, Completion] = field(default_factory=dict)
    answer_scores: list[Score] = field(default_factory=list)
    settings: dict[str, ShotSetting] = field(default_factory=dict)


@dataclass
class Read:
    """What the reader answered under the four conditions."""

    identity: Mapping[str, str]
    asked: ReadingTasks
    completions: dict[str, Completion]
    scores: dict[str, list[Score]]


def analyse_synthesizer(
    config: SynthesizerAnalysis,
    *,
    engines: Mapping[str, Engine] | None = None,
    bars: ProgressFactory = silent,
    on_start: Callable[[Path], None] = lambda folder: None,
) -> Measurement:
    """Measure both models and write `config.output`.

    `engines` (by `base`, `tuned`, `reader`) replace those that the config names. Answers are kept:
    a killed run goes on, and a second one asks only what is new.

    Raises:
      UserError: bad held-out examples, models or settings.
      RunStopped: the report is written, and too many requests failed.
    """
    examples = draw_examples(
        read_held_out(*config.held_out), config.examples_per_dataset, config.seed
    )
    folder, given = Path(config.output).expanduser(), engines or {}
    configs = {TUNED: config.models.tuned, BASE: config.models.base}
    models = {
        name: CachedEngine(name, engine, folder, given.get(name))
        for name, engine in configs.items()
    }
    reader = models[BASE]
    if config.reader is not None:
        reader = CachedEngine(READER, config.reader, folder, given.get(READER))
    on_start(folder)
    measured: dict[str, Measured] = {}
    try:
        # The base comes last: it is then open when it reads.
        for name in (TUNED, BASE):
            measured[name] = _measure(models[name], examples, config, bars)
            if models[name] is not reader or "helpfulness" not in config.measures:
                models[name].close()
        read = None
        if "helpfulness" in config.measures:
            read = _read(reader, examples, measured, config, bars)
    finally:
        for model in (*models.values(), reader):
            model.close()
    report = synthesizer_report(config, _values(config, examples, measured, read))
    report.write(folder, _generations(measured, read))
    for model in dict.fromkeys((*models.values(), reader)):
        model.failed.tell(model.config.max_failed_share, folder / GENERATIONS_NAME)
    return report


def _measure(
    model: CachedEngine,
    examples: Sequence[HeldOut],
    config: SynthesizerAnalysis,
    bars: ProgressFactory,
) -> Measured:
    found = Measured(model.identity)
    if "accuracy" in config.measures:
        budget = Budget(model.engine.count_tokens, model.context_tokens, config.answer_tokens)
        tasks = list(answer_tasks(examples, config.questions_per_example, config.seed))
        fitting = [task for task in tasks if budget.fits(answer_prompt(task))]
        found.answer_tasks, found.answers_too_long = fitting, len(tasks) - len(fitting)
        questions = [answer_question(task, config.answer_tokens) for task in fitting]
        found.answers = model.ask(questions, "answers", bars)
        found.answer_scores = score_answers(fitting, found.answers)
    for setting in (ZERO, FEW):
        if setting in config.measures:
            found.settings[setting] = _write_pairs(model, examples, setting, bars)
    return found


def _write_pairs(
    model: CachedEngine, examples: Sequence[HeldOut], setting: str, bars: ProgressFactory
) -> ShotSetting:
    most = model.config.max_tokens
    asked = pairs_tasks(
        examples, setting, Budget(model.engine.count_tokens, model.context_tokens, most)
    )
    questions = [pairs_question(task, model.config) for task in asked.tasks]
    completions = model.ask(questions, f"{setting}-shot pairs", bars)
    generations: dict[str, list[Generation]] = {SEEN: [], UNSEEN: []}
    for task in asked.tasks:
        if completions[task.name].finish_reason != "error":
            group = group_of(task.example.unseen)
            generations[group].append(_generation(task, completions[task.name]))
    generations["all"] = [one for of_group in generations.values() for one in of_group]
    statistics = {
        group: generation_statistics(of_group, model.engine.count_tokens)
        for group, of_group in generations.items()
    }
    return ShotSetting(asked, completions, score_pairs(asked.tasks, completions), statistics)


def _generation(task: PairsTask, completion: Completion) -> Generation:
    cut = completion.finish_reason == "length"
    return Generation(task.example.text, completion.text, cut, task.shots)


def _read(
    reader: CachedEngine,
    examples: Sequence[HeldOut],
    measured: Mapping[str, Measured],
    config: SynthesizerAnalysis,
    bars: ProgressFactory,
) -> Read:
    written: dict[str, dict[str, Sequence[Pair]]] = {}
    for name, of_model in measured.items():
        few = of_model.settings[FEW]
        written[name] = {
            task.example.id: parse_pairs(few.completions[task.name].text).pairs
            for task in few.asked.tasks
            if few.completions[task.name].finish_reason != "error"
        }
    asked = reading_tasks(
        examples,
        written,
        Budget(reader.engine.count_tokens, reader.context_tokens, config.answer_tokens),
        most_pairs=config.reading_pairs,
        seed=config.seed,
    )
    questions = [reading_question(task, config.answer_tokens) for task in asked.tasks]
    completions = reader.ask(questions, "reads", bars)
    return Read(reader.identity, asked, completions, score_reading(asked.tasks, completions))


def _values(
    config: SynthesizerAnalysis,
    examples: Sequence[HeldOut],
    measured: Mapping[str, Measured],
    read: Read | None,
) -> dict[str, Any]:
    """Every number, as results.json keeps it."""
    sets = sorted({example.dataset for example in examples})
    values: dict[str, Any] = {
        "examples": len(examples),
        "datasets": {
            name: {
                "group": group_of(next(e.unseen for e in examples if e.dataset == name)),
                "examples": sum(e.dataset == name for e in examples),
                "pairs": sum(len(e.pairs) for e in examples if e.dataset == name),
            }
            for name in sets
        },
        "seed": config.seed,
        "models": {},
    }
    for name in (BASE, TUNED):
        found = measured[name]
        model: dict[str, Any] = {"identity": dict(found.identity)}
        if "accuracy" in config.measures:
            model["accuracy"] = {
                **macro(found.answer_scores),
                "asked": len(found.answer_tasks),
                "too_long": found.answers_too_long,
                "errors": count_errors(found.answers),
            }
        for setting, of_setting in found.settings.items():
            asked = of_setting.asked
            model[setting] = {
                **macro(of_setting.scores),
                "asked": len(asked.tasks),
                "too_long": len(asked.too_long),
                "without_shots": len(asked.without_shots),
                "shots_dropped": asked.shots_dropped,
                "errors": count_errors(of_setting.completions),
                "generations": {g: asdict(s) for g, s in of_setting.statistics.items()},
            }
        values["models"][name] = model
    if read is not None:
        values["helpfulness"] = {
            "reader": dict(read.identity),
            "left_out": dict(read.asked.left_out),
            "without_pairs": read.asked.without_pairs,
            "pairs_dropped": read.asked.pairs_dropped,
            "errors": count_errors(read.completions),
            "conditions": {name: macro(scores) for name, scores in read.scores.items()},
        }
    return values


def _generations(measured: Mapping[str, Measured], read: Read | None) -> Iterator[dict[str, Any]]:
    """One line a completion, for a person."""
    for name in (BASE, TUNED):
        found = measured[name]
        f1 = {score.name: score.f1 for score in found.answer_scores}
        for task in found.answer_tasks:
            yield _line(
                name, task.name, found.answers[task.name], answer_prompt(task),
                task.pair.answer, f1,
            )  # fmt: skip
        for of_setting in found.settings.values():
            f1 = {score.name: score.f1 for score in of_setting.scores}
            for task in of_setting.asked.tasks:
                yield _line(
                    name, task.name, of_setting.completions[task.name],
                    render_prompt(task.shots, task.example.text),
                    gold_text(task.example.pairs), f1,
                )  # fmt: skip
    if read is not None:
        f1 = {score.name: score.f1 for scores in read.scores.values() for score in scores}
        for task in read.asked.tasks:
            prompt = reading_question(task, 1).prompt
            completion = read.completions[task.name]
            yield _line(READER, task.name, completion, str(prompt), task.test.answer, f1)


def _line(
    model: str, name: str, completion: Completion, prompt: str, gold: str, f1: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "model": model,
        "id": name,
        "completion": completion.text,
        "finish_reason": completion.finish_reason,
        "gold": gold,
        "f1": f1.get(name),
        "prompt": prompt,
    }
