"""The sharding table: every array of a training has its line."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from ipt_jax.models.config import PRESETS
from ipt_jax.models.lora import LoraConfig
from ipt_jax.models.sharding import MESH_AXES, shardings
from ipt_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from ipt_jax.training.step import TrainSetup

# fsdp and tensor wider than one: what is split shows.
MESH = AbstractMesh((2, 2, 2, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 4)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("adapter", [None, LoraConfig()], ids=["all", "adapter"])
def test_every_matrix_of_a_training_state_is_split(preset, adapter):
    optimizer, schedule = (f(OptimizerConfig(), 100) for f in (make_optimizer, make_schedule))
    mesh: Any = MESH
    state = TrainSetup(PRESETS[preset], mesh, optimizer, schedule, 1, adapter=adapter).abstract
    whole = {
        jax.tree_util.keystr(path[-1:])
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if leaf.ndim and not any(leaf.sharding.spec)
    }
    norms = {f"['{name}']" for name in ("final_norm_D", "attention_norm_LD", "mlp_norm_LD")}
    assert whole <= norms | {".losses"}


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"gate_DF": jnp.zeros((4, 4))}, "'gate_DF'.*not in PARAMETER_AXES"),
        # Neither its own parent's line nor one with other axes will do.
        ({"down_LFD": {"scale_D": jnp.zeros(4)}}, "'scale_D'.*not in PARAMETER_AXES"),
        ({"embedding_VD": jnp.zeros((2, 4, 4))}, "3 axes, but PARAMETER_AXES gives it 2"),
    ],
)
def test_an_array_without_its_line_is_an_error(tree, said):
    with pytest.raises(KeyError, match=said):
        shardings(tree, MESH)  # type: ignore[arg-type]
    assert shardings({"count": jnp.zeros(())}, MESH)["count"].spec == PartitionSpec()  # type: ignore[arg-type]
