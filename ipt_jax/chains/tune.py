"""Data sets to a tuned synthesizer, a teacher's records to a student: data, training, export."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from data_gen.engines import EngineConfig, resolve_model
from data_gen.fine_instructions.students import Students, StudentsConfig, print_examples
from data_gen.instruction_pretrain.tuning import Tuning, TuningConfig, print_counts
from data_gen.stages.stage import Stage, run_stage, stage_fingerprint
from ipt_jax.core.bounds import Config
from ipt_jax.core.configuration import as_yaml, write_run_files
from ipt_jax.core.errors import UserError
from ipt_jax.core.jobs import Job, Results, hold_jobs, run_jobs
from ipt_jax.data.pipeline import open_mixture
from ipt_jax.training.config import TrainConfig
from ipt_jax.training.convert import ToHuggingFaceConfig, to_hugging_face_folder
from ipt_jax.training.loop import train
from ipt_jax.training.run_folder import run_prints

FOLDERS = ("ipt_tuning", "fi_students", "train", "adapter", "export")


@dataclass(frozen=True)
class TuneConfig(Config):
    """The tuning of a model that makes data, from what it learns of to weights."""

    folder: Path = Path("runs/synthesizer")
    """Where everything lies: ipt_tuning/ or fi_students/, train/, and adapter/ or export/."""
    base: str = "smollm2-135m-instruct"
    """What is tuned: a Hugging Face folder, a hub name, or smollm2-135m-instruct."""
    base_name: str = ""
    """Name of the base in an adapter's config, for others; empty: the folder."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the exported weights."""
    only_data: bool = False
    """Stop when the tuning data are written."""
    fresh: bool = False
    """Delete what an earlier run left in the folder and start over."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """Data sets and sequences; `output` and `tokenizer` follow from folder and base."""
    students: StudentsConfig | None = None
    """A teacher's records in place of data sets (FineInstructions); the same follows."""
    training: TrainConfig = field(default_factory=TrainConfig)
    """As launch/train.py; `run_folder`, `init_from`, `data.root`, `data.tokenizer` follow."""

    def check_together(self) -> None:
        if self.students is not None and (self.tuning.sources or self.tuning.unseen):
            said = "students: `tuning` names data sets too: one model learns of one or the other."
            raise UserError(said, key="students")


def run_tune(config: TuneConfig) -> Path:
    """Do what is not done of the chain; the folder of the tuned weights, or of the tuning data.

    Raises:
      UserError: as the stages do.
    """
    folder = config.folder.expanduser()
    with hold_jobs(folder, "tuning", FOLDERS, first="sequences", fresh=config.fresh):
        write_run_files(folder, config)
        base = resolve_model(EngineConfig(model=config.base)).folder
        sequences, *rest = tune_jobs(config, folder, base)
        results = run_jobs(folder, [sequences])
        (print_examples if config.students else print_counts)(results["sequences"])
        if config.only_data:
            return folder / _data_folder(config)
        return Path(run_jobs(folder, [sequences, *rest])["export"])


def tune_jobs(config: TuneConfig, folder: Path, base: Path) -> list[Job]:
    """The chain: tuning data, training on them, and the export of what was trained."""
    data = folder / _data_folder(config)
    tuning = replace(config.students or config.tuning, output=str(data), tokenizer=str(base))
    training = replace(
        config.training,
        run_folder=folder / "train",
        init_from=base,
        data=replace(config.training.data, root=str(folder), tokenizer=str(base)),
    )
    peft = config.training.adapter is not None
    output = folder / ("adapter" if peft else "export")
    export = ToHuggingFaceConfig(
        run=training.run_folder,
        output=output,
        adapter="peft" if peft else "merged",
        dtype=config.dtype,
        base_name=config.base_name,
        control_text=True,
    )

    def written(_: Results) -> Mapping[str, Any]:
        return {"config": as_yaml(tuning), "content": stage_fingerprint(_stage_of(tuning))}

    def trained_on(results: Results) -> Mapping[str, Any]:
        content = run_prints(training, open_mixture(training.data))
        return {"config": as_yaml(training), "data": results["sequences"], "content": content}

    def exported(results: Results) -> Mapping[str, Any]:
        return {"config": as_yaml(export), "trained": results["training"]}

    whole = output / ("adapter_config.json" if peft else "config.json")
    return [
        Job("sequences", functools.partial(_write, tuning), written, [data / "summary.json"]),
        Job(
            "training",
            functools.partial(_train, training),
            trained_on,
            [training.run_folder / "summary.json"],
            ["sequences"],
        ),
        Job("export", functools.partial(_export, export), exported, [whole], ["training"]),
    ]


def _data_folder(config: TuneConfig) -> str:
    return "fi_students" if config.students else "ipt_tuning"


def _stage_of(config: TuningConfig | StudentsConfig) -> Stage[Any, Any]:
    return Students(config) if isinstance(config, StudentsConfig) else Tuning(config)


def _write(config: TuningConfig | StudentsConfig, _: Results) -> dict[str, Any]:
    return run_stage(_stage_of(config))


def _train(config: TrainConfig, _: Results) -> Any:
    return train(config)


def _export(config: ToHuggingFaceConfig, _: Results) -> str:
    return str(to_hugging_face_folder(config)[0])
