"""The training loop, from config to summary, to be read from top to bottom."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ipt_jax.chips.devices import device_of
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import atomic_write
from ipt_jax.data.packing import Rows
from ipt_jax.data.pipeline import Lookahead, MixtureRows, OpenMixture, batches, open_mixture
from ipt_jax.models.sharding import make_mesh
from ipt_jax.training.checkpoints import Checkpoints
from ipt_jax.training.config import TrainConfig, with_accumulation
from ipt_jax.training.hooks import DamageFile, Hook, Profiler, SkipLog
from ipt_jax.training.metrics import MetricsLog
from ipt_jax.training.optimizer import restarted
from ipt_jax.training.processes import (
    GlobalBatches,
    Stopping,
    SyncPoint,
    anywhere,
    barrier,
    everyones_error,
    refuse_other_configs,
)
from ipt_jax.training.run_folder import describe, open_run_folder, shared_values, summarise
from ipt_jax.training.starting_weights import load_initial_params
from ipt_jax.training.startup import with_tested_attention
from ipt_jax.training.state import TrainState, not_finite, place_params, weights
from ipt_jax.training.step import TrainSetup, make_setup
from ipt_jax.training.watchdog import Phases, Watchdog


def train(config: TrainConfig, hooks: Sequence[Hook] = ()) -> dict[str, Any]:
    """Run the training that `config` describes, from its newest checkpoint if there is one.

    Args:
      hooks: what else to do beside its steps, after what every run does.

    Returns:
      The summary that is also written to summary.json in the run folder.

    Raises:
      UserError: settings or data that cannot be used.
      RunStopped: SIGINT or SIGTERM came, or the guard gave up.

    Whatever ends it between two steps, the state is saved first.
    """
    config.check()
    config = with_tested_attention(config)
    refuse_other_configs(shared_values(config))
    phases = Phases()
    mesh = make_mesh(config.mesh)
    mixture = open_mixture(config.data)
    config = config.for_epochs(mixture)
    config = with_accumulation(config, mesh)
    setup = make_setup(config, mesh, len(mixture.task_names))
    placement = GlobalBatches(mesh, config.batch_rows, config.data.row_tokens)
    _check_tokenizer(config, setup, mixture.tokenizer.vocab_size)
    with open_run_folder(config, mesh, mixture) as folder:
        return _train(config, folder, phases, mesh, mixture, setup, placement, hooks)


def _train(
    config: TrainConfig,
    folder: Path,
    phases: Phases,
    mesh: Mesh,
    mixture: OpenMixture,
    setup: TrainSetup,
    placement: GlobalBatches,
    hooks: Sequence[Hook],
) -> dict[str, Any]:
    """`train` in the folder that it holds."""
    first_process = jax.process_index() == 0
    with (
        Watchdog(
            folder,
            config.watchdog,
            phases,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ) as watchdog,
        Checkpoints(folder / "checkpoints", config.checkpoints) as checkpoints,
        Stopping(watchdog.stop_requested) as stop,
    ):
        state, progress = _first_state(config, setup, checkpoints)
        position = first = watchdog.position = int(state.position)
        if first_process:
            print(describe(config, setup, mixture, mesh.shape, first), flush=True)
        skips = SkipLog(
            folder,
            functools.partial(_rows, config, mixture),
            rows_per_batch=config.batch_rows,
            stop_after=config.guard.stop_after,
            first_position=first,
            write=first_process,
        )
        damage = DamageFile(
            folder,
            mixture.damaged,
            first_position=first,
            process=jax.process_index(),
            processes=jax.process_count(),
        )
        log = MetricsLog(
            folder,
            sources=mixture.task_names,
            steps=config.steps,
            first_position=first,
            config=config.metrics,
            progress=progress,
            phases=phases,
            flops=setup.flops_per_token(config.data.row_tokens),
            devices=mesh.size,
            device=device_of(mesh.devices.flat[0]),
            write=first_process,
        )
        hooks = (damage, Profiler(folder, config.profile), log, skips, *hooks)

        def read(position: int, metrics: dict[str, jax.Array]) -> None:
            with stop.noting():
                values = jax.device_get(metrics)  # waits for the device to reach it
                for hook in hooks:
                    hook.after_step(position, values)

        def save(position: int, state: TrainState) -> None:
            # Several processes save together: one that fails cannot let the others go on.
            with stop.noting() if jax.process_count() == 1 else nullcontext():
                kept = {**log.progress(), "base_norm": progress["base_norm"]}
                checkpoints.save(position, state.saved, kept, log.mean_since_save())
                if stop.error is not None:
                    checkpoints.wait()

        stream = Lookahead(_stream(config, mixture, placement, first), mixture.damaged)
        _check_learnt(config, stream, first)
        agreement = SyncPoint(mesh)
        pending, code, stopping = None, 0, False
        phases.switch("other")
        with ExitStack() as stack:
            for hook in hooks:
                stack.enter_context(hook)
            while position < config.steps and not stopping:
                with phases("data"):
                    batch = placement(next(stream))
                with phases("compiling" if position == first else "step"):
                    position += 1
                    with stop.noting():
                        for hook in hooks:
                            hook.before_step(position)
                    state, metrics = setup.step_function(state, batch)
                    # Asked for now, the copy does not wait behind the kernels of the next step.
                    jax.copy_to_host_async(metrics)
                    with stop.noting():
                        for hook in hooks:
                            hook.after_launch(position, state)
                    stop.note(stream.error)
                    code = agreement.reached_sync_point(stop.code)
                    # The step before is read only now: the device never waits for the host.
                    if pending is not None:
                        read(position - 1, pending)
                    pending = metrics
                watchdog.position = position
                stopping = code > 0 or skips.too_many
                due = position % config.checkpoints.every_steps == 0
                if stopping or due or position == config.steps:
                    with phases("step"):
                        read(position, pending)
                    pending = None
                    with phases("checkpoint"):
                        save(position, state)
                    with stop.noting():
                        for hook in hooks:
                            hook.after_save(position)
            with phases("checkpoint"):
                with stop.noting() if jax.process_count() == 1 else nullcontext():
                    checkpoints.wait()
                if stop.error is not None:
                    save(position, state)  # a save that failed has left its room
                barrier("damaged records")
        if skips.too_many:
            raise skips.stop(position, not_finite(weights(state)))
    if stop.error is not None or position < config.steps:
        raise stop.ended(position, code, checkpoints.has(position))
    damaged = damage.counts(mixture.task_names)
    summary = summarise(config, setup, mixture, log, int(state.step), damaged)
    if first_process:
        atomic_write(folder / "summary.json", json.dumps(summary, indent=1))
    stop.after_the_end()
    return summary


def _first_state(
    config: TrainConfig, setup: TrainSetup, checkpoints: Checkpoints
) -> tuple[TrainState, dict[str, Any]]:
    """The state that training goes on from, and its progress."""
    abstract = setup.abstract
    checkpoints.check_room(abstract.saved)
    wanted = int(config.resume) if config.resume.isdecimal() else None
    found = checkpoints.restore_newest(abstract.saved, wanted)
    if found is None and config.resume == "required":
        raise UserError(
            f"resume=required: {checkpoints.folder} holds no good checkpoint",
            key="resume",
            path=checkpoints.folder,
            advice="start with resume=auto, or name the run_folder of a run that saved one",
        )
    if found is None and wanted is None and checkpoints.all_lost():
        raise everyones_error(
            "every checkpoint of this run is damaged (damaged/ holds them)",
            path=checkpoints.folder,
            advice="put back a copy of one, or give --resume 0 to train from the beginning",
        )
    base = None
    if config.init_from is not None and (found is None or config.adapter is not None):
        dtype = "float32" if config.adapter is None else config.adapter.base_dtype
        base = load_initial_params(config.init_from, setup.decoder, dtype)
    if found is None:
        state = setup.init_state(config.seed, base)
        if base is not None and (wrong := not_finite(weights(state))):
            raise UserError(
                f"init_from={config.init_from}: {wrong} hold NaN or infinity, from which nothing "
                "can be learnt",
                key="init_from",
                path=config.init_from,
                advice="name sound weights",
            )
        return state, {"base_norm": _norm(state.frozen)}
    state = dataclasses.replace(found.state, guard=restarted(config.guard, found.state.guard))
    if config.adapter is None:
        return state, found.progress
    state = dataclasses.replace(state, frozen=place_params(abstract.frozen, base))
    if not math.isclose(_norm(state.frozen), found.progress["base_norm"], rel_tol=1e-5):
        raise UserError(
            f"init_from={config.init_from}: holds other weights than those that the adapters in "
            f"{checkpoints.folder} were trained on",
            key="init_from",
            path=config.init_from,
            advice="name the folder that the run began with",
        )
    return state, found.progress


def _norm(params: Any) -> float:
    """A number that other weights would not have; 0 without any."""
    square = jax.jit(lambda tree: optax.global_norm(jax.tree.map(jnp.float32, tree)))
    return float(square(params)) if jax.tree.leaves(params) else 0.0


def _rows(config: TrainConfig, mixture: OpenMixture) -> MixtureRows:
    return MixtureRows(
        mixture,
        row_tokens=config.data.row_tokens,
        seed=config.data.seed,
        rows=config.steps * config.batch_rows,
        rows_per_batch=config.batch_rows,
    )


def _stream(
    config: TrainConfig, mixture: OpenMixture, placement: GlobalBatches, first: int
) -> Iterator[Rows]:
    return batches(
        mixture,
        rows_per_batch=config.batch_rows,
        total_batches=config.steps,
        start_batch=first,
        process_index=placement.share_index,
        process_count=placement.share_count,
    )


def _check_tokenizer(config: TrainConfig, setup: TrainSetup, vocabulary: int) -> None:
    if vocabulary > setup.decoder.vocabulary_size:
        raise UserError(
            f"data.tokenizer={config.data.tokenizer!r} has {vocabulary} tokens, but "
            f"model.preset={config.model.preset!r} embeds {setup.decoder.vocabulary_size}",
            key="data.tokenizer",
            advice="choose the model's own tokenizer, or override model.overrides.vocabulary_size",
        )


def _check_learnt(config: TrainConfig, stream: Lookahead, first: int) -> None:
    """Refuse to begin a run whose batches hold nothing to learn."""
    most = min(config.steps, config.guard.stop_after)
    if first == 0 and not anywhere(stream.any_to_learn(most)):
        raise everyones_error(
            f"data.mixture={config.data.mixture!r}: no token of the first {most} batches is to be "
            "learnt: all of them are masked (loss weight 0). See that the records have responses "
            "where a task says `loss: responses` (tools/show_batch.py shows what is masked), or "
            "set `loss: all` there.",
            key="data.mixture",
        )
