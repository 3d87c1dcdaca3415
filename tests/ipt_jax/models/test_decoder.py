"""What the decoder keeps for the backward pass."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipt_jax.chips.devices import Target, compiling_for
from ipt_jax.models.config import PRESETS, SAVEABLE, ModelConfig
from ipt_jax.models.decoder import dropout, module_of, new_params, project, project_parts

# Deep and with long rows, so that what the blocks keep outweighs the rest of the memory.
SMALL = dataclasses.replace(PRESETS["tiny"], layers=6, width=64, mlp_width=192, head_width=16)


@functools.cache
def compiled(remat: str, save: tuple[str, ...] = ()) -> jax.stages.Compiled:
    config = dataclasses.replace(SMALL, remat=remat, remat_save=save)

    def loss(params, tokens_BT, positions_BT):
        return jnp.sum(jnp.square(module_of(config, params)(tokens_BT, positions_BT)))

    params = jax.eval_shape(lambda: new_params(SMALL, jax.random.key(0)))
    integers = jax.ShapeDtypeStruct((4, 128), jnp.int32)
    return jax.jit(jax.grad(loss)).lower(params, integers, integers).compile()


def memory_bytes(*arguments) -> int:
    analysis = compiled(*arguments).memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def flops(*arguments) -> float:
    return compiled(*arguments).cost_analysis()["flops"]


def test_what_is_named_is_kept_and_nothing_else():
    full, none = ("full",), ("none",)
    attention = ("names", ("query_key_value", "attention"))
    everything = ("names", tuple(SAVEABLE))
    assert memory_bytes(*full) < memory_bytes(*attention) < memory_bytes(*everything)
    assert memory_bytes(*everything) < memory_bytes(*none)
    assert flops(*full) > flops(*attention) > flops(*everything) > 0.99 * flops(*none)
    # Neither the projections nor attention's product with the values runs again. (The compiler
    # counts the body of the loop over blocks once.)
    c, rows, length = SMALL, 4, 128
    projections = 2 * rows * length * c.width * (c.heads + 2 * c.kv_heads) * c.head_width
    values = 2 * rows * c.heads * length * length * c.head_width
    assert flops(*full) - flops(*attention) > projections + values


def test_numbers_are_those_without_rematerialisation():
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: new_params(SMALL, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: random.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)
    tokens = random.integers(0, SMALL.vocabulary_size, (4, 128)).astype(np.int32)
    positions = np.tile(np.arange(128, dtype=np.int32), (4, 1))
    expected = compiled("none")(params, tokens, positions)
    for save in (("query_key_value", "attention"), tuple(SAVEABLE)):
        found = compiled("names", save)(params, tokens, positions)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            atol = 1e-4 * float(np.max(np.abs(other)))
            np.testing.assert_allclose(one, other, rtol=0, atol=atol)


def test_names_come_as_a_list():
    decoder = ModelConfig("tiny", {"remat": "names", "remat_save": ["attention"]}).decoder()
    assert decoder.remat_save == ("attention",)
    assert hash(decoder) != hash(PRESETS["tiny"])


def test_auto_keeps_names_on_accelerators_and_everything_on_a_cpu():
    assert PRESETS["ipt_500m"].remat_on("cpu") == ("none", ())
    assert PRESETS["ipt_500m"].remat_on("tpu") == ("names", tuple(SAVEABLE))
    assert dataclasses.replace(SMALL, remat="dots").remat_on("gpu") == ("dots", ())
    params = jax.eval_shape(lambda: new_params(SMALL, jax.random.key(0)))
    integers = jax.ShapeDtypeStruct((4, 128), jnp.int32)

    def forward(params, tokens_BT):
        return module_of(SMALL, params)(tokens_BT, tokens_BT, backend="reference")

    for platform, checkpointed in (("cpu", 0), ("tpu", 1)):
        with compiling_for(Target(platform, "any")):
            # A function of its own each time: JAX keeps what it traced.
            text = str(jax.make_jaxpr(lambda *given: forward(*given))(params, integers))
        assert text.count("checkpoint[") + text.count("remat2[") == checkpointed, platform


def test_every_name_is_in_the_decoder():
    program = str(
        jax.make_jaxpr(
            jax.grad(lambda p: jnp.sum(module_of(SMALL, p)(*[jnp.zeros((1, 4), jnp.int32)] * 2)))
        )(jax.eval_shape(lambda: new_params(SMALL, jax.random.key(0))))
    )
    assert {name for name in SAVEABLE if f"name={name}" in program} == set(SAVEABLE)


def test_parts_have_the_gradient_of_slices():
    draw = np.random.default_rng(0).normal
    x, weight = (jnp.asarray(draw(size=s), jnp.float32) for s in ((2, 3, 6), (6, 4, 5)))

    def gradients(parts):
        def value(x, weight):
            one, two, _ = parts(x, weight)
            return jnp.sum(one**2) + jnp.sum(two**3)

        return jax.grad(value, (0, 1))(x, weight)

    def slices(x, weight):
        y = project(x, weight)
        return y[..., :2, :], y[..., 2:3, :], y[..., 3:, :]

    def parts(x, weight):
        return project_parts(x, weight, (2, 1, 1))

    # The gradients of the parts are never put together: that took 3% of a GPU's step.
    frozen = jax.grad(lambda x: sum(jnp.sum(part**2) for part in parts(x, weight)))
    program = str(jax.make_jaxpr(frozen)(x))
    assert "pad[" not in program and "concatenate" not in program
    found = gradients(parts)
    for one, other in zip(found, gradients(slices), strict=True):
        np.testing.assert_allclose(one, other, 1e-5, 1e-5)


def test_dropout_is_fair_and_unrelated_between_neighbours_and_keys():
    def kept(key):
        found = dropout(jnp.ones((4, 64, 512)), jax.random.key(key), 0.25)
        assert set(np.unique(found)) == {0, np.float32(1 / 0.75)}
        return np.asarray(found) > 0

    one, other = kept(0), kept(1)
    shifted = [np.roll(one, 1, axis) for axis in range(3)] + [np.roll(one, 32, -1)]
    # 131,072 draws: a share is off by 0.0012, a correlation by 0.0028 (one standard deviation).
    assert one.mean() == pytest.approx(0.75, abs=0.005)
    np.testing.assert_allclose(one.mean((0, 1)), 0.75, atol=0.14)  # each column, each row
    np.testing.assert_allclose(one.mean(-1), 0.75, atol=0.1)
    for two in (other, *shifted):
        assert np.corrcoef(one.ravel(), two.ravel())[0, 1] == pytest.approx(0, abs=0.012)
