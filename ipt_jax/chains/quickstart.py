"""Raw text to a comparison of two small models: synthesis, two trainings, export, evaluation."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from data_gen.instruction_pretrain.config import SynthesisConfig
from data_gen.methods import stage_of, synthesize
from data_gen.stages.failed_requests import FailedRequests
from data_gen.stages.progress import terminal_progress
from data_gen.stages.stage import stage_fingerprint
from ipt_jax.chains.quickstart_page import quickstart_report
from ipt_jax.core.bounds import Above, Config
from ipt_jax.core.configuration import as_yaml, write_run_files
from ipt_jax.core.jobs import Job, Results, hold_jobs, job_seconds, run_jobs
from ipt_jax.data.pipeline import open_mixture
from ipt_jax.evaluation.harness import EvaluationConfig, evaluate_models
from ipt_jax.training.config import TrainConfig
from ipt_jax.training.convert import ToHuggingFaceConfig, to_hugging_face_folder
from ipt_jax.training.loop import train
from ipt_jax.training.run_folder import run_prints


@dataclass(frozen=True)
class QuickstartConfig(Config):
    """The whole way on a small corpus."""

    folder: Path = Path("runs/quickstart")
    """Where everything lies."""
    minutes: Annotated[float, Above(0)] = 8.0
    """Rough length on two cores; more or fewer tokens are trained on and documents augmented."""
    base_minutes: Annotated[float, Above(0)] = 8.0
    """What the sizes below take on two cores."""
    fresh: bool = False
    """Delete what an earlier quickstart left in the folder and start over."""
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    """As for launch/synthesize.py; `output` follows from the folder."""
    mixtures: dict[str, str] = field(default_factory=dict)
    """Name of each training and the mixture it reads."""
    training: TrainConfig = field(default_factory=TrainConfig)
    """As for launch/train.py; `run_folder` and `data` follow from folder and mixtures."""
    evaluation: EvaluationConfig = field(default_factory=lambda: EvaluationConfig(models={}))
    """As for launch/evaluate.py; `models` and `output` follow from the folder."""


def scaled(config: QuickstartConfig) -> QuickstartConfig:
    """The config with its sizes changed from base_minutes to minutes."""
    folder, factor = config.folder.expanduser(), config.minutes / config.base_minutes
    tokens = max(round(config.training.train_tokens * factor), config.training.batch_tokens)
    fraction = min(1.0, config.synthesis.fraction * factor)
    output = str(folder / "synthesis")
    return replace(
        config,
        folder=folder,
        synthesis=replace(config.synthesis, fraction=fraction, output=output),
        training=replace(config.training, train_tokens=tokens),
    )


def run_quickstart(config: QuickstartConfig) -> Path:
    """Do what is not done of the chain and write the report; gives back its page.

    Raises:
      UserError: as the stages do.
    """
    config = scaled(config)
    folder, names = config.folder, [*config.mixtures]
    folders = ("synthesis", *(f"train_{name}" for name in names), "evaluation")
    with hold_jobs(folder, "quickstart", folders, first="synthesis", fresh=config.fresh):
        write_run_files(folder, config)
        results = run_jobs(folder, quickstart_jobs(config))
        checks = {name: results[f"export of {name}"] for name in names}
        return quickstart_report(
            folder / "report.html",
            synthesis_folder=folder / "synthesis",
            training_folders={name: folder / f"train_{name}" for name in names},
            evaluation_results=evaluate_models(_evaluation(config)),
            logit_checks=checks,
            stage_seconds=job_seconds(folder),
        )


def quickstart_jobs(config: QuickstartConfig) -> list[Job]:
    """The chain: synthesis, then each training and its export, then the evaluation of all."""
    synthesis, evaluation = config.folder / "synthesis", _evaluation(config)

    def content(_: Results) -> Mapping[str, Any]:
        prints = stage_fingerprint(stage_of(config.synthesis))
        return {"config": as_yaml(config.synthesis), "content": prints}

    jobs = [
        Job(
            "synthesis",
            functools.partial(_synthesize, config.synthesis),
            content,
            [synthesis / "summary.json"],
        )
    ]
    for name, mixture in config.mixtures.items():
        jobs += _training_jobs(config, name, mixture)
    exports = [f"export of {name}" for name in config.mixtures]

    def measured(results: Results) -> Mapping[str, Any]:
        checks = {name: results[f"export of {name}"] for name in config.mixtures}
        settings = {"config": as_yaml(evaluation), "exports": checks}
        return {**settings, "synthesis": results["synthesis"]}

    evaluate = Job(
        "evaluation",
        functools.partial(_evaluate, evaluation),
        measured,
        [evaluation.output / "results.json"],
        ["synthesis", *exports],
    )
    return [*jobs, evaluate]


def _training_jobs(config: QuickstartConfig, name: str, mixture: str) -> list[Job]:
    run = config.folder / f"train_{name}"
    root = str(config.folder / "synthesis" / "shards")
    data = replace(config.training.data, mixture=mixture, root=root)
    training = replace(config.training, run_folder=run, data=data)
    export = ToHuggingFaceConfig(run=run, verify=True)

    def trained_on(results: Results) -> Mapping[str, Any]:
        content = run_prints(training, open_mixture(training.data))
        return {"config": as_yaml(training), "content": content, **results}

    def exported(results: Results) -> Mapping[str, Any]:
        return {"config": as_yaml(export), "trained": results[f"training on {name}"]}

    return [
        Job(
            f"training on {name}",
            functools.partial(_train, training),
            trained_on,
            [run / "summary.json"],
            ["synthesis"],
        ),
        Job(
            f"export of {name}",
            functools.partial(_export, export),
            exported,
            [run / "export" / "config.json"],
            [f"training on {name}"],
        ),
    ]


def _evaluation(config: QuickstartConfig) -> EvaluationConfig:
    exports = {name: config.folder / f"train_{name}" / "export" for name in config.mixtures}
    return replace(config.evaluation, models=exports, output=config.folder / "evaluation")


def _synthesize(config: SynthesisConfig, _: Results) -> dict[str, Any]:
    with terminal_progress("synthesize") as progress:
        on_start = functools.partial(write_run_files, config=config)
        summary = synthesize(config, progress, on_start=on_start)
    rejected = Path(config.output) / "rejected"
    FailedRequests.of_summary(summary).tell(config.engine.max_failed_share, rejected)
    return summary


def _train(config: TrainConfig, _: Results) -> Any:
    return train(config)


def _export(config: ToHuggingFaceConfig, _: Results) -> float | None:
    difference = to_hugging_face_folder(config)[1]
    print(f"   largest difference of logits to transformers: {difference:.1e}")
    return difference


def _evaluate(config: EvaluationConfig, _: Results) -> int:
    return len(evaluate_models(config))
