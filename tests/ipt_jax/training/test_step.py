"""The train step on one device and on eight virtual ones; the loss by chunks and the plain one."""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ipt_jax.models.config import PRESETS, DecoderConfig
from ipt_jax.models.decoder import module_of
from ipt_jax.models.sharding import MESH_AXES, MeshConfig, make_mesh
from ipt_jax.training import state as state_module
from ipt_jax.training import step as loss
from ipt_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from ipt_jax.training.state import TrainState
from ipt_jax.training.step import TrainSetup
from tests.eight_devices import with_eight_devices

TINY = PRESETS["tiny"]
STEPS = 3


def make_batch(rows: int = 8, length: int = 32) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    stream = random.integers(0, TINY.vocabulary_size, (rows, length + 1)).astype(np.int32)
    first = length // 3
    segments = np.where(np.arange(length) < first, 1, 2).astype(np.int32)
    positions = np.where(segments == 1, np.arange(length), np.arange(length) - first)
    weights = np.ones((rows, length), np.float32)
    weights[:, first - 1] = 0
    weights[: rows // 2, :5] = 0  # rows of unequal weight: a mean of means would show
    return {
        "tokens": stream[:, :-1],
        "targets": stream[:, 1:],
        "loss_weights": weights,
        "segment_ids": np.tile(segments, (rows, 1)),
        "positions": np.tile(positions.astype(np.int32), (rows, 1)),
        "source_ids": np.tile(np.arange(rows, dtype=np.int32)[:, None] % 2, (1, length)),
    }


ONE_DEVICE = MeshConfig()


def setup_of(decoder: DecoderConfig, mesh_config: MeshConfig = ONE_DEVICE, **changes) -> TrainSetup:
    settings = OptimizerConfig(peak_learning_rate=1e-2, warmup_steps=1)
    optimizer, schedule = make_optimizer(settings, STEPS), make_schedule(settings, STEPS)
    return TrainSetup(decoder, make_mesh(mesh_config), optimizer, schedule, 2, **changes)


@functools.cache
def run(mesh_config: MeshConfig = ONE_DEVICE, *, accumulation: int = 1, **changes) -> list[dict]:
    """The metrics of each step, and a thousand numbers of each of the first one's gradients."""
    decoder = dataclasses.replace(TINY, **changes)
    setup = setup_of(decoder, mesh_config, accumulation_steps=accumulation)
    if mesh_config in (ONE_DEVICE, EIGHT_WAYS):
        state = setup.init_state(0)
    else:  # placed, for compiling what draws it takes as long as a step
        layout = jax.tree.map(lambda leaf: leaf.sharding, setup.abstract)
        state = jax.device_put(jax.tree.map(jnp.copy, first_state(decoder)), layout)
    found = []
    for _ in range(STEPS):
        state, metrics = setup.step_function(state, make_batch())
        found.append({name: np.asarray(value).tolist() for name, value in metrics.items()})
        if len(found) == 1:
            # Adam's first moment after one step is (1 - beta1) times the clipped gradient.
            moments = optax.tree_utils.tree_get(state.optimizer_state, "mu")
            leaves = jax.tree_util.tree_leaves_with_path(moments)
            found[0]["gradients"] = {
                jax.tree_util.keystr(path): np.asarray(leaf).ravel()[::7][:1000].tolist()
                for path, leaf in leaves
            }
    assert int(state.step) == int(state.position) == STEPS
    return found


@functools.cache
def first_state(decoder: DecoderConfig) -> TrainState:
    return setup_of(decoder).init_state(0)


@functools.partial(jax.jit, static_argnums=0)
def hidden(decoder: DecoderConfig, params, *inputs) -> jax.Array:
    return module_of(decoder, params)(*inputs)


def test_abstract_state_is_the_real_one_without_memory():
    setup = setup_of(TINY)
    abstract, real = setup.abstract, setup.init_state(0)
    described = jax.tree.map(lambda a, r: (a.shape, a.dtype) == (r.shape, r.dtype), abstract, real)
    assert all(jax.tree.leaves(described))
    assert sum(leaf.size for leaf in jax.tree.leaves(real.params)) == TINY.parameter_count()


def test_loss_falls_and_counts_are_exact():
    found = run()
    assert found[-1]["loss"] < found[0]["loss"] - 0.05
    assert found[0]["source_tokens"] == [4 * 32, 4 * 32]
    assert found[0]["weight"] == make_batch()["loss_weights"].sum()


def test_first_loss_is_near_the_uniform_one():
    assert run()[0]["loss"] == pytest.approx(np.log(TINY.vocabulary_size), abs=0.05)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    whole, pieces = run(), run(accumulation=4)
    for one, other in zip(whole, pieces, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-5)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialisation_changes_memory_not_numbers(remat):
    for one, other in zip(run(), run(remat=remat), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)


def test_dropout_is_on_in_training_and_off_without_a_key():
    assert run(dropout=0.5)[0]["gradient_norm"] != pytest.approx(
        run()[0]["gradient_norm"], rel=1e-3
    )
    decoder = dataclasses.replace(TINY, dropout=0.5)
    params, batch = first_state(TINY).params, make_batch()
    inputs = batch["tokens"], batch["positions"], batch["segment_ids"]
    np.testing.assert_array_equal(hidden(decoder, params, *inputs), hidden(TINY, params, *inputs))


def test_packed_row_gives_each_document_the_loss_it_has_alone():
    batch = make_batch()
    model = functools.partial(hidden, TINY, first_state(TINY).params)
    packed = model(batch["tokens"], batch["positions"], batch["segment_ids"])
    first = 32 // 3
    for part in (slice(0, first), slice(first, 32)):
        alone = model(batch["tokens"][:, part], batch["positions"][:, part])
        np.testing.assert_allclose(packed[:, part], alone, rtol=1e-4, atol=1e-5)


# Every axis alone, every pair and every three of them.
MESHES = [
    {"data": 1, **dict(zip(axes, sizes, strict=True))}
    for sizes in ((8,), (2, 4), (2, 2, 2))
    for axes in itertools.combinations(MESH_AXES, len(sizes))
]
EIGHT_WAYS = MeshConfig(data=2, fsdp=2, tensor=2)
WIDE = {"heads": 8, "kv_heads": 8}  # so that 8 devices can split the heads
EIGHT_DEVICES = """
import json
from test_step import EIGHT_WAYS, MESHES, WIDE, MeshConfig, check_placing, run
check_placing(EIGHT_WAYS)
print(json.dumps([run(MeshConfig(**mesh), **WIDE) for mesh in MESHES]))
"""


def check_placing(mesh_config: MeshConfig) -> None:
    """Host arrays reach every device whole, at once and by parts of a few rows."""
    abstract = setup_of(TINY, mesh_config).abstract.params
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda a: random.standard_normal(a.shape).astype(a.dtype), abstract)
    for part_bytes in (state_module.PART_BYTES, 5000):
        state_module.PART_BYTES = part_bytes
        placed = state_module.place_params(abstract, params)
        for leaf, array, asked in zip(
            *map(jax.tree.leaves, (placed, params, abstract)), strict=True
        ):
            assert leaf.sharding == asked.sharding
            for shard in leaf.addressable_shards:
                np.testing.assert_array_equal(shard.data, array[shard.index])


def test_eight_devices_give_the_numbers_of_one():
    [printed] = with_eight_devices(__file__, EIGHT_DEVICES)
    expected = run(**WIDE)
    assert len(MESHES) == 14
    for mesh, found in zip(MESHES, json.loads(printed), strict=True):
        for one, other in zip(expected, found, strict=True):
            for name in ("loss", "gradient_norm"):
                assert one[name] == pytest.approx(other[name], rel=1e-5), mesh
            assert one["source_tokens"] == other["source_tokens"]
        for name, gradient in expected[0]["gradients"].items():
            got = np.asarray(found[0]["gradients"][name])
            np.testing.assert_allclose(
                got, gradient, rtol=1e-4, atol=1e-7, err_msg=f"{mesh} {name}"
            )


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_value_and_gradients_equal_the_plain_ones(monkeypatch, z_loss):
    monkeypatch.setattr(loss, "CHUNK_TOKENS", 7)  # 20 tokens: three chunks, the last one padded
    random = np.random.default_rng(0)
    hidden = random.normal(size=(20, 12)).astype(np.float32)
    table = random.normal(size=(33, 12)).astype(np.float32)
    targets = random.integers(0, 33, 20).astype(np.int32)
    weights = (random.random(20) > 0.3).astype(np.float32)

    def plain(hidden, table):
        log_p = jax.nn.log_softmax(hidden @ table.T)
        log_z = jax.nn.logsumexp(hidden @ table.T, -1)
        entropy = -jnp.sum(weights * log_p[jnp.arange(20), targets])
        return 3 * (entropy + z_loss * jnp.sum(weights * log_z**2)), entropy

    def ours(hidden, table):
        rows = (hidden.reshape(2, 10, 12), targets.reshape(2, 10), weights.reshape(2, 10))
        total, entropy = loss.summed_cross_entropy(rows[0], table, *rows[1:], z_loss)
        return 3 * total, entropy

    def differentiated(function):
        return jax.jit(jax.value_and_grad(function, (0, 1), has_aux=True))(hidden, table)

    got, got_gradients = differentiated(ours)
    want, want_gradients = differentiated(plain)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for mine, theirs in zip(got_gradients, want_gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    # Without a gradient asked for, the other path gives the same values.
    np.testing.assert_allclose(ours(hidden, table), want, rtol=1e-5)


def test_the_whole_logits_array_never_exists():
    length, vocabulary = 2 * loss.CHUNK_TOKENS, 4096
    tokens = 4 * length
    arguments = (
        jax.ShapeDtypeStruct((4, length, 64), jnp.float32),
        jax.ShapeDtypeStruct((vocabulary, 64), jnp.float32),
        jax.ShapeDtypeStruct((4, length), jnp.int32),
        jax.ShapeDtypeStruct((4, length), jnp.float32),
    )
    step = jax.jit(
        jax.grad(lambda *a: loss.summed_cross_entropy(*a)[0], (0, 1)),
    )
    memory = step.lower(*arguments).compile().memory_analysis()
    assert memory.temp_size_in_bytes < tokens * vocabulary * 4
