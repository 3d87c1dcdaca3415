"""Adapters on the decoder alone; parity with peft is in tests/ipt_jax/hf/test_adapters.py."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from ipt_jax.models.config import PRESETS, DecoderConfig, Params
from ipt_jax.models.decoder import Projection, module_of, new_params, project
from ipt_jax.models.lora import (
    FACTORS,
    LoraConfig,
    adapter_count,
    base_params,
    new_adapters,
)
from ipt_jax.training.step import summed_cross_entropy
from tests.eight_devices import with_eight_devices

TINY = PRESETS["tiny"]
LORA = LoraConfig(rank=3, alpha=6.0)
TOKENS = np.random.default_rng(0).integers(0, TINY.vocabulary_size, (2, 24)).astype(np.int32)
POSITIONS = np.tile(np.arange(24, dtype=np.int32), (2, 1))


def random_tree(shapes: Any, deviation: float) -> Params:
    """Float32 leaves of these shapes; numpy, for compiling JAX's draws takes seconds."""
    random = np.random.default_rng(2)
    return jax.tree.map(
        lambda leaf: (deviation * random.standard_normal(leaf.shape)).astype(np.float32), shapes
    )


def assert_near(found: Any, expected: Any) -> None:
    """Within 1e-4 of each array's largest entry."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        atol = 1e-4 * float(np.max(np.abs(other)))
        assert atol > 0
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def params():
    return random_tree(jax.eval_shape(lambda: new_params(TINY, jax.random.key(0))), 0.3)


@pytest.fixture(scope="module")
def fresh():
    return jax.jit(lambda: new_adapters(TINY, LORA, jax.random.key(0)))()


def random_adapters(lora: LoraConfig = LORA, config: DecoderConfig = TINY) -> Params:
    """Adapters whose b is not zero."""
    return random_tree(jax.eval_shape(lambda: new_adapters(config, lora, jax.random.key(0))), 0.1)


@functools.partial(jax.jit, static_argnames=("lora", "config"))
def hidden(params, adapters=None, lora=None, config=TINY, dropout_key=None):
    model = module_of(config, params, adapters, lora)
    return model(TOKENS, POSITIONS, dropout_key=dropout_key)


@functools.partial(jax.jit, static_argnames=("lora", "config"))
def loss(params, adapters, lora=LORA, config=TINY):
    table = module_of(config, params).unembedding()
    return summed_cross_entropy(
        hidden(params, adapters, lora, config), table, TOKENS, jnp.ones(TOKENS.shape)
    )[0]


def test_fresh_adapters_leave_the_base_as_it_is(params, fresh):
    np.testing.assert_array_equal(hidden(params, fresh, LORA), hidden(params))
    moved = hidden(params, random_adapters(), LORA)
    assert float(jnp.max(jnp.abs(moved - hidden(params)))) > 0.1


def test_factors_are_drawn_as_peft_draws_them(fresh):
    blocks = fresh["blocks"]
    for a, b in FACTORS.values():
        assert not np.any(blocks[b])
        bound = 1 / math.sqrt(math.prod(blocks[a].shape[1:-1]))
        assert 0.95 * bound < np.max(np.abs(blocks[a])) <= bound
        assert np.std(blocks[a]) == pytest.approx(bound / math.sqrt(3), rel=0.15)
    # A projection's draw does not depend on what else is adapted, and no two are alike.
    one = dataclasses.replace(LORA, targets=("v_proj",))
    alone = new_adapters(TINY, one, jax.random.key(0))["blocks"]
    assert sorted(alone) == ["value_a_LDr", "value_b_LrKh"]
    np.testing.assert_array_equal(alone["value_a_LDr"], blocks["value_a_LDr"])
    assert not np.array_equal(blocks["key_a_LDr"], blocks["value_a_LDr"])


@pytest.mark.parametrize("targets", [LORA.targets, ("q_proj", "down_proj")])
def test_only_targets_have_leaves_and_they_are_counted(targets):
    lora = dataclasses.replace(LORA, targets=targets)
    abstract = jax.eval_shape(lambda: new_adapters(TINY, lora, jax.random.key(0)))
    assert len(jax.tree.leaves(abstract)) == 2 * len(targets)
    counted = sum(leaf.size for leaf in jax.tree.leaves(abstract))
    assert adapter_count(TINY, lora) == counted
    # By hand: rank · (in + out) a projection of the 32-wide tiny decoder.
    by_hand = {"q_proj": 32 + 32, "k_proj": 32 + 16, "v_proj": 32 + 16, "o_proj": 32 + 32}
    by_hand |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), 32 + 64)
    assert counted == TINY.layers * 3 * sum(by_hand[target] for target in targets)


def test_adapters_and_their_config_come_together(params):
    with pytest.raises(ValueError, match="come together"):
        jax.eval_shape(hidden, params, random_adapters())


DROPPING = dataclasses.replace(LORA, dropout=0.5)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Of a program and of those nested in it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_dropout_is_on_the_adapters_input_alone():
    # With a and b the identity, what is added is scale · dropout(x).
    factors = {name: jnp.eye(64) for t in ("q_proj", "v_proj") for name in FACTORS[t]}
    x, weight = jnp.ones((2, 3, 64)), jnp.arange(3.0)[:, None] * jnp.ones((64, 3, 64)) / 64
    projection = Projection(
        weight,
        ("q_proj", "k_proj", "v_proj"),
        lambda x, weight: tuple(project(x, weight)[..., i, :] for i in range(3)),
        factors,
        jax.random.key(0),
        scale=3.0,
        rate=0.25,
    )
    q, k, v = projection(x)
    added = np.asarray(q)
    assert sorted(set(np.unique(added).round(4))) == [0.0, 4.0]  # scale / (1 - 0.25)
    assert np.mean(added == 0) == pytest.approx(0.25, abs=0.07)
    np.testing.assert_array_equal(k, x)
    np.testing.assert_array_equal(v - 2 * x, added)  # one mask for all three
    plain, *_ = dataclasses.replace(projection, key=None)(x)
    np.testing.assert_array_equal(plain, 3 * x)


def test_dropout_is_drawn_in_training_and_beside_the_decoders(params, fresh):
    def draws(lora: LoraConfig, key: jax.Array | None) -> int:
        program = jax.make_jaxpr(functools.partial(hidden, lora=lora))(
            params, fresh, dropout_key=key
        )
        return sum(e.primitive.name == "random_bits" for e in equations(program.jaxpr))

    key = jax.random.key(3)
    assert [draws(lora, k) for lora in (LORA, DROPPING) for k in (None, key)] == [0, 0, 0, 4]
    # The decoder's dropout draws what it draws without adapters.
    config = dataclasses.replace(TINY, dropout=0.3)
    np.testing.assert_array_equal(
        hidden(params, fresh, DROPPING, config, key), hidden(params, config=config, dropout_key=key)
    )


def product_sizes(program: Any) -> set[int]:
    """The number of elements of every matrix product's result."""
    products = (e for e in equations(program.jaxpr) if e.primitive.name == "dot_general")
    return {equation.outvars[0].aval.size for equation in products}


@pytest.mark.parametrize("remat", ["none", "full"])
def test_no_product_has_the_size_of_a_weight(remat):
    config = dataclasses.replace(TINY, width=40, mlp_width=88, vocabulary_size=101, remat=remat)
    params = jax.eval_shape(lambda: new_params(config, jax.random.key(1)))
    parts = {"query": 40 * 32, "key": 40 * 16, "output": 40 * 32, "gate": 40 * 88, "down": 40 * 88}
    sizes = {**parts, "query_key_value": 40 * 64, "gate_up": 40 * 176}

    def hidden_sum(params, adapters):
        return jnp.sum(jnp.square(hidden(params, adapters, LORA, config)))

    frozen = jax.make_jaxpr(jax.grad(hidden_sum, 1))(params, random_adapters(LORA, config))
    assert not set(sizes.values()) & product_sizes(frozen)
    trained = jax.make_jaxpr(jax.grad(hidden_sum, 0))(params, random_adapters(LORA, config))
    assert set(parts.values()) <= product_sizes(trained)


def test_a_frozen_table_gets_no_gradient_in_the_compiled_loss(params):
    # The loss makes its gradients in the forward pass; the compiler drops what nobody reads.
    product = re.compile(rf"= f32\[{TINY.vocabulary_size},{TINY.width}\]\S* dot\(")
    table, weights = params["unembedding_VD"], np.ones(TOKENS.shape, np.float32)
    inputs = table[TOKENS], table

    def products(argument: int) -> list[str]:
        def summed(*inputs: jax.Array) -> jax.Array:
            return summed_cross_entropy(*inputs, TOKENS, weights)[0]

        function = jax.jit(jax.grad(summed, argument))
        return product.findall(function.lower(*inputs).compile().as_text())

    assert products(0) == []
    assert len(products(1)) == 1


def test_a_bfloat16_base_is_the_rounded_one(params):
    lora = dataclasses.replace(LORA, base_dtype="bfloat16")
    low = base_params(params, lora)
    assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {jnp.dtype(jnp.bfloat16)}
    rounded = jax.tree.map(lambda p: p.astype(jnp.float32), low)
    ours = float(loss(low, random_adapters()))
    assert ours == pytest.approx(float(loss(rounded, random_adapters())), rel=1e-6)
    assert ours != pytest.approx(float(loss(params, random_adapters())), rel=1e-6)
    gradient = jax.eval_shape(jax.grad(loss, 1), low, random_adapters())
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float32)}


def compare_meshes() -> None:
    """In a process with eight devices: sharded logits and gradients against whole ones."""
    from jax.sharding import NamedSharding

    from ipt_jax.models.sharding import (
        BATCH,
        MeshConfig,
        constrain_activations,
        make_mesh,
        shardings,
    )

    base = random_tree(jax.eval_shape(lambda: new_params(TINY, jax.random.key(0))), 0.3)
    adapters = random_adapters()
    tokens, positions = np.tile(TOKENS, (2, 1)), np.tile(POSITIONS, (2, 1))

    def run(base, adapters, tokens, positions, place=lambda x: x):
        def summed(adapters):
            model = module_of(TINY, base, adapters, LORA)
            x_BTD = model(tokens, positions, place=place)
            return jnp.sum(jnp.square(x_BTD)), model.logits(x_BTD)

        return jax.value_and_grad(summed, has_aux=True)(adapters)

    expected = jax.jit(run)(base, adapters, tokens, positions)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    placed = jax.device_put((base, adapters), shardings((base, adapters), mesh))
    split = {
        name: leaf.sharding.shard_shape(leaf.shape) for name, leaf in placed[1]["blocks"].items()
    }
    whole = {name: leaf.shape for name, leaf in adapters["blocks"].items()}
    assert all(math.prod(split[name]) * 2 == math.prod(whole[name]) for name in whole), split
    rows = jax.device_put((tokens, positions), NamedSharding(mesh, BATCH))
    found = jax.jit(functools.partial(run, place=constrain_activations(mesh)))(*placed, *rows)
    assert_near(found, expected)
    print("equal")


def test_eight_devices_give_the_numbers_of_one():
    code = "import test_lora; test_lora.compare_meshes()"
    assert with_eight_devices(__file__, code) == ["equal"]
