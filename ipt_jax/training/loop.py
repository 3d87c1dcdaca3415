"""The training loop, from config to summary, to be read from top to bottom."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from ipt_jax.attention.spec import choose_backend
from ipt_jax.configuration import as_yaml, clear_run_folder, write_run_files
from ipt_jax.data.pipeline import batches, open_mixture
from ipt_jax.errors import UserError
from ipt_jax.hf.convert import load_initial_params
from ipt_jax.models.config import DecoderConfig
from ipt_jax.models.sharding import BATCH, make_mesh
from ipt_jax.records import atomic_write
from ipt_jax.training.checkpoints import Checkpoints
from ipt_jax.training.config import TrainConfig
from ipt_jax.training.metrics import MetricsLog
from ipt_jax.training.optimizer import make_optimizer, make_schedule
from ipt_jax.training.state import abstract_state, init_state
from ipt_jax.training.step import jit_train_step, make_train_step


def train(config: TrainConfig) -> dict[str, Any]:
    """Run the training that `config` describes, from its newest checkpoint if there is one.

    Returns:
      The summary that is also written to summary.json in the run folder.

    Raises:
      UserError: settings or data that cannot be used.
      KeyboardInterrupt: SIGINT or SIGTERM came; the state was saved first.
    """
    config.check()
    choose_backend(config.attention_backend)
    decoder = config.model.decoder()
    mesh = make_mesh(config.mesh)
    mixture = open_mixture(config.data)
    _check_tokenizer(config, decoder, mixture.tokenizer.vocab_size)
    folder = _open_run_folder(config, mesh)
    optimizer = make_optimizer(config.optimizer, config.steps)
    abstract = abstract_state(decoder, optimizer, mesh)
    step_function = jit_train_step(
        make_train_step(
            decoder,
            optimizer,
            make_schedule(config.optimizer, config.steps),
            source_count=len(mixture.task_names),
            accumulation_steps=config.accumulation_steps,
            z_loss=config.optimizer.z_loss,
            backend=config.attention_backend,
            mesh=mesh,
        ),
        mesh,
        abstract,
    )
    with (
        Checkpoints(folder / "checkpoints", config.checkpoints) as checkpoints,
        StopSignal() as stop,
    ):
        checkpoints.check_room(abstract)
        latest = checkpoints.latest_step()
        if latest is not None:
            state, progress = checkpoints.restore(latest, abstract)
        else:
            params = load_initial_params(config.init_from, decoder) if config.init_from else None
            state, progress = init_state(decoder, optimizer, mesh, config.seed, params), {}
        first_step, position = int(state.step), int(state.position)
        _print_plan(config, decoder, mesh, mixture, first_step)
        log = MetricsLog(
            folder,
            sources=mixture.task_names,
            steps=config.steps,
            first_step=first_step,
            every_steps=config.log_every_steps,
            progress=progress,
        )
        with log:
            pending = None
            stream = batches(
                mixture,
                rows_per_batch=config.batch_rows,
                total_batches=config.steps,
                start_batch=position,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )
            for step, batch in enumerate(stream, start=first_step + 1):
                state, metrics = step_function(state, _to_devices(batch, mesh))
                # The step before is read only now, so that the device never waits for the host.
                if pending is not None:
                    log.add(step - 1, pending)
                pending = metrics
                if stop.requested or step % config.checkpoints.every_steps == 0:
                    log.add(step, metrics)
                    pending = None
                    checkpoints.save(step, state, log.progress(), force=True)
                    if stop.requested:
                        break
            if pending is not None:
                log.add(config.steps, pending)
        step = int(state.step)
        checkpoints.save(step, state, log.progress(), force=True)
        checkpoints.wait()
    if step < config.steps:
        raise KeyboardInterrupt(f"stopped by a signal after step {step}, saved")
    summary = _summary(config, decoder, mixture, log)
    atomic_write(folder / "summary.json", json.dumps(summary, indent=1))
    return summary


class StopSignal:
    """Notes the first SIGINT or SIGTERM, so that the loop can save and stop; a second one acts."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, self._previous[number])


def _open_run_folder(config: TrainConfig, mesh: Mesh) -> Path:
    """Make or reopen the run folder; a folder of another run is refused."""
    folder = config.run_folder
    saved = folder / "config.yaml"
    if config.fresh:
        clear_run_folder(folder)
    if saved.exists() and _comparable(saved.read_text(encoding="utf-8")) != _comparable(
        as_yaml(config)
    ):
        raise UserError(
            f"run_folder={folder}: holds a run with another config ({saved}); choose another "
            "run_folder, or delete what is there with --fresh."
        )
    devices = [f"{device.platform}:{device.device_kind}" for device in mesh.devices.flat]
    write_run_files(folder, config, devices=devices)
    return folder


def _comparable(text: str) -> list[str]:
    """A config's lines without those that may change between runs of the same training."""
    free = (
        "dry_run",
        "fresh:",
        "log_every_steps:",
        "run_folder:",
        "every_steps:",
        "keep:",
        "worker_count:",
    )
    return [line for line in text.splitlines() if not line.strip().startswith(free)]


def _check_tokenizer(config: TrainConfig, decoder: DecoderConfig, vocabulary: int) -> None:
    if vocabulary > decoder.vocabulary_size:
        raise UserError(
            f"data.tokenizer={config.data.tokenizer!r} has {vocabulary} tokens, but "
            f"model.preset={config.model.preset!r} embeds {decoder.vocabulary_size}; choose the "
            "tokenizer that belongs to the model, or override model.overrides.vocabulary_size."
        )


def _to_devices(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    sharding = NamedSharding(mesh, BATCH)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def _print_plan(
    config: TrainConfig, decoder: DecoderConfig, mesh: Mesh, mixture: Any, first_step: int
) -> None:
    shape = " × ".join(f"{name} {size}" for name, size in mesh.shape.items())
    rates = ", ".join(f"{name} {rate:.1%}" for name, rate in mixture.asked_rates.items())
    print(
        f"model {config.model.preset}, {decoder.parameter_count():,} parameters, "
        f"{decoder.compute_dtype}\n"
        f"mesh {shape}; attention {choose_backend(config.attention_backend)}\n"
        f"batch {config.batch_rows} rows × {config.data.row_tokens} tokens, "
        f"{config.accumulation_steps} piece(s); steps {first_step} → {config.steps}\n"
        f"mixture by tokens: {rates}"
    )


def _summary(
    config: TrainConfig, decoder: DecoderConfig, mixture: Any, log: MetricsLog
) -> dict[str, Any]:
    return {
        "model": config.model.preset,
        "parameters": decoder.parameter_count(),
        "tokens": log.tokens,
        "steps": config.steps,
        "seconds": round(log.seconds, 1),
        "final_loss": log.last.get("loss"),
        "asked_rates": dict(mixture.asked_rates),
        "realised_rates": {n: count / log.tokens for n, count in log.source_tokens.items()},
        "source_tokens": dict(log.source_tokens),
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
    }
