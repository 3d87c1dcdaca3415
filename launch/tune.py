"""Data sets to a tuned synthesizer: python launch/tune.py --config configs/tune/smollm2_135m.yaml.

Wires the stages: few-shot sequences, training, export. Run again, it goes on where it stopped and
skips what is done; --fresh starts over.
"""

from __future__ import annotations

from ipt_jax.core.interrupts import importing

with importing():
    import dataclasses
    import functools
    from dataclasses import dataclass, field
    from pathlib import Path

    from data_gen.engines import EngineConfig, resolve_model
    from data_gen.instruction_pretrain.tuning import (
        TuningConfig,
        print_counts,
        tuning_prints,
        write_tuning_data,
    )
    from ipt_jax.core.configuration import as_yaml, parse_config, run_main, write_run_files
    from ipt_jax.core.jobs import Stages
    from ipt_jax.data.pipeline import open_mixture
    from ipt_jax.training.config import TrainConfig
    from ipt_jax.training.convert import ToHuggingFaceConfig, to_hugging_face_folder
    from ipt_jax.training.loop import train
    from ipt_jax.training.run_folder import run_prints

FOLDERS = ("ipt_tuning", "train", "adapter", "export")


@dataclass(frozen=True)
class TuneConfig:
    """The tuning of a synthesizer, from data sets to weights."""

    folder: Path = Path("runs/synthesizer")
    """Where everything lies: ipt_tuning/, train/, and adapter/ or export/."""
    base: str = "smollm2-135m-instruct"
    """What is tuned: a Hugging Face folder, a hub name, or smollm2-135m-instruct."""
    base_name: str = ""
    """Name of the base in an adapter's config, for others; empty: the folder."""
    dtype: str = "bfloat16"
    """Of the exported weights."""
    only_data: bool = False
    """Stop when the sequences are written."""
    fresh: bool = False
    """Delete what an earlier run left in the folder and start over."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """Data sets and sequences; `output` and `tokenizer` follow from folder and base."""
    training: TrainConfig = field(default_factory=TrainConfig)
    """As launch/train.py; `run_folder`, `init_from`, `data.root`, `data.tokenizer` follow."""


def run(config: TuneConfig) -> Path:
    """The folder of the tuned weights, or of the sequences."""
    folder = config.folder
    write_run_files(folder, config)
    base = resolve_model(EngineConfig(model=config.base)).folder
    tuning = dataclasses.replace(
        config.tuning, output=str(folder / "ipt_tuning"), tokenizer=str(base)
    )
    stages = Stages(folder)
    data = stages.run(
        "sequences",
        {"config": as_yaml(tuning), "content": tuning_prints(tuning)},
        [Path(tuning.output) / "summary.json"],
        functools.partial(write_tuning_data, tuning),
    )
    print_counts(data)
    if config.only_data:
        return Path(tuning.output)
    training = dataclasses.replace(
        config.training,
        run_folder=folder / "train",
        init_from=base,
        data=dataclasses.replace(config.training.data, root=str(folder), tokenizer=str(base)),
    )
    content = run_prints(training, open_mixture(training.data))
    trained = stages.run(
        "training",
        {"config": as_yaml(training), "data": data, "content": content},
        [training.run_folder / "summary.json"],
        functools.partial(train, training),
    )
    peft = config.training.adapter is not None
    export = ToHuggingFaceConfig(
        run=training.run_folder,
        output=folder / ("adapter" if peft else "export"),
        adapter="peft" if peft else "merged",
        dtype=config.dtype,
        base_name=config.base_name,
        control_text=True,
    )
    stages.run(
        "export",
        {"config": as_yaml(export), "trained": trained},
        [folder / ("adapter/adapter_config.json" if peft else "export/config.json")],
        lambda: str(to_hugging_face_folder(export)[0]),
    )
    return export.output or folder


def main() -> None:
    config = parse_config(TuneConfig, None, prog="launch/tune.py", description=__doc__ or "")
    config = dataclasses.replace(config, folder=config.folder.expanduser())
    with Stages.hold(config.folder, "tuning", FOLDERS, first="sequences", fresh=config.fresh):
        print(f"tuned: {run(config).resolve()}")


if __name__ == "__main__":
    run_main(main)
