"""Raw text to a comparison of two small models: python launch/quickstart.py [--minutes N].

Wires the public stages: synthesis, two trainings, export, evaluation, report. Run again, it goes
on where it stopped and skips what is done; --fresh starts over.
"""

from __future__ import annotations

from ipt_jax.core.interrupts import importing

with importing():
    import dataclasses
    import functools
    from dataclasses import dataclass, field
    from pathlib import Path
    from typing import Any

    from data_gen.instruction_pretrain.config import SynthesisConfig
    from data_gen.methods import stage_of, synthesize
    from data_gen.stages.failed_requests import FailedRequests
    from data_gen.stages.progress import terminal_progress
    from data_gen.stages.stage import stage_fingerprint
    from ipt_jax.core.configuration import as_yaml, parse_config, run_main, write_run_files
    from ipt_jax.core.errors import UserError
    from ipt_jax.core.jobs import Stages
    from ipt_jax.data.pipeline import open_mixture
    from ipt_jax.evaluation.harness import EvaluationConfig, evaluate_models
    from ipt_jax.evaluation.report import quickstart_report
    from ipt_jax.training.config import TrainConfig
    from ipt_jax.training.convert import ToHuggingFaceConfig, to_hugging_face_folder
    from ipt_jax.training.loop import train
    from ipt_jax.training.run_folder import run_prints


@dataclass(frozen=True)
class QuickstartConfig:
    """The whole way on a small corpus."""

    folder: Path = Path("runs/quickstart")
    """Where everything lies."""
    minutes: float = 8.0
    """Rough length on two cores; more or fewer tokens are trained on and documents augmented."""
    base_minutes: float = 8.0
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
    if config.minutes <= 0:
        raise UserError(f"minutes={config.minutes:g}: must be more than 0.")
    config = dataclasses.replace(config, folder=config.folder.expanduser())
    factor = config.minutes / config.base_minutes
    tokens = max(round(config.training.train_tokens * factor), config.training.batch_tokens)
    fraction = min(1.0, config.synthesis.fraction * factor)
    return dataclasses.replace(
        config,
        synthesis=dataclasses.replace(
            config.synthesis, fraction=fraction, output=str(config.folder / "synthesis")
        ),
        training=dataclasses.replace(config.training, train_tokens=tokens),
    )


def make_corpus(config: SynthesisConfig) -> dict[str, Any]:
    with terminal_progress("synthesize") as progress:
        on_start = functools.partial(write_run_files, config=config)
        summary = synthesize(config, progress, on_start=on_start)
    rejected = Path(config.output) / "rejected"
    FailedRequests.of_summary(summary).tell(config.engine.max_failed_share, rejected)
    return summary


def run(config: QuickstartConfig) -> Path:
    folder = config.folder
    write_run_files(folder, config)
    stages = Stages(folder)
    synthesis = folder / "synthesis"
    summary = stages.run(
        "synthesis",
        {
            "config": as_yaml(config.synthesis),
            "content": stage_fingerprint(stage_of(config.synthesis)),
        },
        [synthesis / "summary.json"],
        lambda: make_corpus(config.synthesis),
    )
    runs, exports, checks = {}, {}, {}
    for name, mixture in config.mixtures.items():
        runs[name] = folder / f"train_{name}"
        exports[name] = runs[name] / "export"
        training = dataclasses.replace(
            config.training,
            run_folder=runs[name],
            data=dataclasses.replace(
                config.training.data, mixture=mixture, root=str(synthesis / "shards")
            ),
        )
        content = run_prints(training, open_mixture(training.data))
        trained = stages.run(
            f"training on {name}",
            {"config": as_yaml(training), "synthesis": summary, "content": content},
            [runs[name] / "summary.json"],
            functools.partial(train, training),
        )
        export = ToHuggingFaceConfig(run=runs[name], verify=True)
        checks[name] = stages.run(
            f"export of {name}",
            {"config": as_yaml(export), "trained": trained},
            [exports[name] / "config.json"],
            lambda export=export: to_hugging_face_folder(export)[1],
        )
        print(f"   largest difference of logits to transformers: {checks[name]:.1e}")
    evaluation = dataclasses.replace(
        config.evaluation, models=exports, output=folder / "evaluation"
    )
    stages.run(
        "evaluation",
        {"config": as_yaml(evaluation), "exports": checks, "synthesis": summary},
        [evaluation.output / "results.json"],
        lambda: len(evaluate_models(evaluation)),
    )
    return quickstart_report(
        folder / "report.html",
        synthesis_folder=synthesis,
        training_folders=runs,
        evaluation_results=evaluate_models(evaluation),
        logit_checks=checks,
        stage_seconds=stages.seconds(),
    )


def main() -> None:
    config = scaled(
        parse_config(
            QuickstartConfig,
            None,
            prog="launch/quickstart.py",
            description=__doc__ or "",
            default="configs/quickstart.yaml",
        )
    )
    folders = ("synthesis", *(f"train_{name}" for name in config.mixtures), "evaluation")
    with Stages.hold(config.folder, "quickstart", folders, first="synthesis", fresh=config.fresh):
        print(f"report: {run(config).resolve()}")


if __name__ == "__main__":
    run_main(main)
