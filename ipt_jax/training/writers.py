"""Where a run's figures go besides metrics.jsonl: TensorBoard and Weights & Biases."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml

from ipt_jax.core.errors import UserError
from ipt_jax.core.files import atomic_write
from ipt_jax.training.event_files import EventFile


class Writer(Protocol):
    """Takes in the figures of a step."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Note the figures of step number `step`."""
        ...

    def close(self, failed: bool) -> None:
        """No writes after this; `failed`: an error ended the run."""
        ...


class TensorBoardWriter:
    """Event files in `tensorboard/` of the run folder; one for each start of the run."""

    def __init__(self, folder: Path, first_position: int):
        self._file = EventFile(folder / "tensorboard", first_position + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._file.write(step, scalars)

    def close(self, failed: bool) -> None:
        self._file.close()


class WandbWriter:
    """One Weights & Biases run for all starts; its id is kept in wandb_run_id.txt."""

    def __init__(self, folder: Path, project: str, mode: str):
        """Begin the run, or go on with it.

        Raises:
          UserError: not logged in, or the service cannot be reached.
        """
        import wandb  # an optional extra; MetricsConfig.check has seen that it is there
        from wandb.errors import Error

        path = folder / "wandb_run_id.txt"
        if not path.exists():
            atomic_write(path, secrets.token_hex(8) + "\n")
        try:
            self._run = wandb.init(
                project=project,
                id=path.read_text(encoding="utf-8").strip(),
                name=folder.resolve().name,
                config=_config(folder),
                dir=str(folder),
                resume="allow",
                mode="offline" if mode == "offline" else "online",
                # It would take the progress bar's output through its own pipes.
                settings=wandb.Settings(console="off"),
            )
        except Error as error:
            raise UserError(
                f"metrics.wandb_project={project!r}: Weights & Biases did not start "
                f"({str(error).rstrip('.')}). Run `wandb login`, or set metrics.wandb_mode=offline "
                "and upload with `wandb sync` later."
            ) from error

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        # A run resumed before its last line comes by the same steps again; they are there.
        if step >= self._run.step:
            self._run.log(dict(scalars), step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def _config(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
