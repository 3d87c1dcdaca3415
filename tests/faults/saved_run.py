"""A small training that saves and restores, in tests and in processes that they start."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from ipt_jax.models.config import PRESETS
from ipt_jax.models.sharding import BATCH, MeshConfig, make_mesh
from ipt_jax.training.checkpoints import CheckpointConfig, Checkpoints
from ipt_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from ipt_jax.training.state import TrainState
from ipt_jax.training.step import TrainSetup, summed_loss

TINY = PRESETS["tiny"]
ALL = CheckpointConfig(every_steps=1, keep=100)
# Saved beside the tiny model's 0.4 MB, so that a save takes long enough to be killed.
PADDING = np.arange(15_000_000, dtype=np.float32)


class Training:
    """The tiny preset on a mesh; the batch follows from the position."""

    def __init__(self, **mesh: int):
        self.mesh = make_mesh(MeshConfig(**mesh))
        settings = OptimizerConfig(peak_learning_rate=1e-2, warmup_steps=1)
        optimizer, schedule = make_optimizer(settings, 100), make_schedule(settings, 100)
        self._setup = setup = TrainSetup(TINY, self.mesh, optimizer, schedule, 1)
        self.abstract = setup.abstract
        self._loss = jax.jit(lambda params, batch: summed_loss(setup, params, {}, batch))

    def start(self) -> TrainState:
        return self._setup.init_state(0)

    def step(self, state: TrainState, position: int) -> tuple[TrainState, float]:
        """Take the batch that leads to `position`: the state there, and the loss."""
        state, metrics = self._setup.step_function(state, self._batch(position))
        return state, float(metrics["loss"])

    def loss(self, state: TrainState, position: int) -> float:
        """The loss of that batch alone, which compiles faster than the step."""
        summed, _ = self._loss(state.params, self._batch(position))
        return float(summed) / (8 * 32)

    def _batch(self, position: int) -> dict[str, jax.Array]:
        shape = rows, length = 8, 32
        random = np.random.default_rng(position)
        stream = random.integers(0, TINY.vocabulary_size, (rows, length + 1)).astype(np.int32)
        batch = {
            "tokens": stream[:, :-1],
            "targets": stream[:, 1:],
            "loss_weights": np.ones(shape, np.float32),
            "segment_ids": np.ones(shape, np.int32),
            "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
            "source_ids": np.zeros(shape, np.int32),
        }
        return jax.device_put(batch, jax.sharding.NamedSharding(self.mesh, BATCH))


def digest(state: Any) -> str:
    """Equal for states that are equal to the bit, however they are sharded."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        total.update(repr((array.shape, array.dtype.name)).encode() + array.tobytes())
    return total.hexdigest()


def flip_byte(path: Path) -> None:
    """Change one bit in the middle of a file."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def largest_file(folder: Path) -> Path:
    """Where the arrays' bytes are."""
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def restored(folder: Path, abstract: Any, position: int | None = None) -> Any:
    """The state of the newest checkpoint, which must be there."""
    with Checkpoints(folder, ALL) as checkpoints:
        found = checkpoints.restore_newest(abstract, position)
    assert found is not None
    for leaf, asked in zip(jax.tree.leaves(found.state), jax.tree.leaves(abstract), strict=True):
        assert leaf.sharding.is_equivalent_to(asked.sharding, leaf.ndim)
    return found.state


def report(*found: Any) -> None:
    """A line for the test, among what others print."""
    print("found", json.dumps(found), flush=True)


def save_until_killed(folder: Path, source: Path) -> None:
    """Save the states of positions 1, 2, 3 and again 1, 2, 3, as fast as it goes."""
    training = Training()
    with Checkpoints(source, ALL) as checkpoints:
        states = []
        for position in (3, 2, 1):
            found = checkpoints.restore_newest(training.abstract, position)
            assert found is not None
            states.append(found.state)
    with Checkpoints(folder, CheckpointConfig(every_steps=1, keep=1)) as checkpoints:
        for position in range(1, 10_000):
            state = states[-1 - (position - 1) % 3]
            checkpoints.save(position, {"state": state, "padding": PADDING}, {})


def step_and_save(folder: Path, *meshes: dict[str, int]) -> None:
    """One step on the first mesh, saved; then what is restored on the others."""
    training = Training(**meshes[0])
    state, _ = training.step(restored(folder, training.abstract), 4)
    with Checkpoints(folder, ALL) as checkpoints:
        checkpoints.save(4, state, {})
    report(digest(state), training.loss(state, 5))
    restore(folder, *meshes[1:])


def restore(folder: Path, *meshes: dict[str, int]) -> None:
    """For each mesh a line: the digest of what is restored onto it, and the next loss."""
    for mesh in meshes:
        training = Training(**mesh)
        state = restored(folder, training.abstract)
        report(digest(state), training.loss(state, 5))


def one_of_two(folder: Path, source: Path, address: str, index: int) -> None:
    """Save three times with another process, damage two of the saves, and restore together."""
    jax.distributed.initialize(address, 2, index)
    abstract = Training(data=1, fsdp=2).abstract
    state = restored(source, abstract)
    with Checkpoints(folder, ALL) as checkpoints:
        for position in range(1, 4):
            checkpoints.save(position, state, {"position": position})
            checkpoints.save(position, state, {})  # is there already: does nothing
        checkpoints.wait()
        assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]
        multihost_utils.sync_global_devices("looked")
        if index == 0:
            flip_byte(largest_file(folder / "3"))
            os.remove(folder / "2" / "state" / "_METADATA")
        found = checkpoints.restore_newest(abstract)
        assert found is not None and found.progress == {"position": found.position}
        checkpoints.save(2, found.state, {"position": 2})
        again = checkpoints.restore_newest(abstract)
        assert again is not None
    report(found.position, again.position, digest(again.state))
