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
    pairs_question,
    pairs_tasks,
    score_pairs,
)
from data_gen.instruction_pretrain.analysis.response_accuracy import (
    answer_prompt,
    answer_question,
    answer_tasks,
    score_answers,
)
from data_gen.instruction_pretrain.analysis.scores import (
    SEEN,
    UNSEEN,
    Score,
    ScoredTask,
    group_of,
    macro,
)
from data_gen.instruction_pretrain.analysis.synthesizer_tables import synthesizer_report
from data_gen.instruction_pretrain.formats import Pair, parse_pairs
from data_gen.instruction_pretrain.rounds import Budget
from data_gen.stages.cached import CachedEngine, ProgressFactory, Query, count_errors, silent
from data_gen.stages.measurement import GENERATIONS_NAME, Measurement

READER = "reader"


@dataclass
class Asked:
    """What a model was asked in one way, and what it gave."""

    tasks: Sequence[ScoredTask]
    questions: Sequence[Query]
    """Of the tasks."""
    completions: dict[str, Completion]
    scores: list[Score]
    counts: Mapping[str, int]
    """What was left out of the tasks."""
    statistics: dict[str, GenerationStatistics] = field(default_factory=dict)
    """Of pairs written about seen, unseen and all texts."""

    def values(self) -> dict[str, Any]:
        """As results.json keeps it."""
        found = {**macro(self.scores), "asked": len(self.tasks), **self.counts}
        found["errors"] = count_errors(self.completions)
        if self.statistics:
            found["generations"] = {g: asdict(s) for g, s in self.statistics.items()}
        return found

    def lines(self, model: str) -> Iterator[dict[str, Any]]:
        """One line a completion, for a person."""
        f1 = {score.name: score.f1 for score in self.scores}
        for task, question in zip(self.tasks, self.questions, strict=True):
            completion = self.completions[task.name]
            yield {
                "model": model,
                "id": task.name,
                "completion": completion.text,
                "finish_reason": completion.finish_reason,
                "gold": task.gold,
                "f1": f1.get(task.name),
                "prompt": question.prompt,
            }


@dataclass
class Read(Asked):
    """What the reader answered under the four conditions."""

    found: ReadingTasks = field(default_factory=ReadingTasks)
    conditions: dict[str, list[Score]] = field(default_factory=dict)


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
    measured: dict[str, dict[str, Asked]] = {}
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
    identities = {name: model.identity for name, model in (*models.items(), (READER, reader))}
    report = synthesizer_report(config, _values(config, examples, identities, measured, read))
    report.write(folder, _generations(measured, read))
    for model in dict.fromkeys((*models.values(), reader)):
        model.failed.tell(model.config.max_failed_share, folder / GENERATIONS_NAME)
    return report


def _measure(
    model: CachedEngine,
    examples: Sequence[HeldOut],
    config: SynthesizerAnalysis,
    bars: ProgressFactory,
) -> dict[str, Asked]:
    """By measure."""
    found: dict[str, Asked] = {}
    if "accuracy" in config.measures:
        budget = _budget(model, config.answer_tokens)
        tasks = list(answer_tasks(examples, config.questions_per_example, config.seed))
        fitting = [task for task in tasks if budget.fits(answer_prompt(task))]
        questions = [answer_question(task, config.answer_tokens) for task in fitting]
        given = model.ask(questions, "answers", bars)
        left_out = {"too_long": len(tasks) - len(fitting)}
        found["accuracy"] = Asked(
            fitting, questions, given, score_answers(fitting, given), left_out
        )
    for setting in (ZERO, FEW):
        if setting in config.measures:
            found[setting] = _write_pairs(model, examples, setting, bars)
    return found


def _budget(model: CachedEngine, most_tokens: int) -> Budget:
    return Budget(model.engine.count_tokens, model.context_tokens, most_tokens)


def _write_pairs(
    model: CachedEngine, examples: Sequence[HeldOut], setting: str, bars: ProgressFactory
) -> Asked:
    found = pairs_tasks(examples, setting, _budget(model, model.config.max_tokens))
    questions = [pairs_question(task, model.config) for task in found.tasks]
    given = model.ask(questions, f"{setting}-shot pairs", bars)
    generations: dict[str, list[Generation]] = {SEEN: [], UNSEEN: []}
    for task in found.tasks:
        one = given[task.name]
        if one.finish_reason != "error":
            cut = one.finish_reason == "length"
            generation = Generation(task.example.text, one.text, cut, task.shots)
            generations[group_of(task.example.unseen)].append(generation)
    generations["all"] = [one for of_group in generations.values() for one in of_group]
    return Asked(
        found.tasks,
        questions,
        given,
        score_pairs(found.tasks, given),
        {
            "too_long": len(found.too_long),
            "without_shots": len(found.without_shots),
            "shots_dropped": found.shots_dropped,
        },
        {
            group: generation_statistics(of_group, model.engine.count_tokens)
            for group, of_group in generations.items()
        },
    )


def _read(
    reader: CachedEngine,
    examples: Sequence[HeldOut],
    measured: Mapping[str, Mapping[str, Asked]],
    config: SynthesizerAnalysis,
    bars: ProgressFactory,
) -> Read:
    written: dict[str, dict[str, Sequence[Pair]]] = {}
    for name, of_model in measured.items():
        few = of_model[FEW]
        written[name] = {
            task.example.id: parse_pairs(few.completions[task.name].text).pairs
            for task in few.tasks
            if few.completions[task.name].finish_reason != "error"
        }
    found = reading_tasks(
        examples,
        written,
        _budget(reader, config.answer_tokens),
        most_pairs=config.reading_pairs,
        seed=config.seed,
    )
    questions = [reading_question(task, config.answer_tokens) for task in found.tasks]
    given = reader.ask(questions, "reads", bars)
    conditions = score_reading(found.tasks, given)
    scores = [score for of_condition in conditions.values() for score in of_condition]
    return Read(found.tasks, questions, given, scores, {}, {}, found, conditions)


def _values(
    config: SynthesizerAnalysis,
    examples: Sequence[HeldOut],
    identities: Mapping[str, Mapping[str, str]],
    measured: Mapping[str, Mapping[str, Asked]],
    read: Read | None,
) -> dict[str, Any]:
    """Every number, as results.json keeps it."""
    datasets: dict[str, Any] = {}
    for example in sorted(examples, key=lambda example: example.dataset):
        none = {"group": group_of(example.unseen), "examples": 0, "pairs": 0}
        of_set = datasets.setdefault(example.dataset, none)
        of_set["examples"] += 1
        of_set["pairs"] += len(example.pairs)
    models: dict[str, Any] = {}
    for name in (BASE, TUNED):
        of_measures = {measure: asked.values() for measure, asked in measured[name].items()}
        models[name] = {"identity": dict(identities[name]), **of_measures}
    values = {"examples": len(examples), "datasets": datasets, "seed": config.seed}
    values["models"] = models
    if read is not None:
        values["helpfulness"] = {
            "reader": dict(identities[READER]),
            "left_out": dict(read.found.left_out),
            "without_pairs": read.found.without_pairs,
            "pairs_dropped": read.found.pairs_dropped,
            "errors": count_errors(read.completions),
            "conditions": {name: macro(scores) for name, scores in read.conditions.items()},
        }
    return values


def _generations(
    measured: Mapping[str, Mapping[str, Asked]], read: Read | None
) -> Iterator[dict[str, Any]]:
    for name in (BASE, TUNED):
        for asked in measured[name].values():
            yield from asked.lines(name)
    if read is not None:
        yield from read.lines(READER)
