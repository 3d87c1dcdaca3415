"""The kernel over eight devices: rows, heads and tokens split, the numbers those of one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ipt_jax.attention import cudnn_packed
from ipt_jax.attention.backends import attention
from ipt_jax.attention.block_sizes import BlockSizes, Tile
from ipt_jax.attention.pallas_gpu import pallas_attention
from ipt_jax.attention.spec import AttentionSpec, key_ranges
from ipt_jax.attention.splash_tpu import splash_attention
from ipt_jax.chips.devices import Target, compiling_for
from tests.eight_devices import with_eight_devices

SPEC = AttentionSpec(segments=True, window=30)
TILES = BlockSizes(*[Tile(16, 16)] * 3)


def kernel(q, k, v, ids):
    ranges = key_ranges(SPEC, ids, q.shape[1])
    return pallas_attention(q, k, v, SPEC, ranges, interpret=True, sizes=TILES)


def splash(q, k, v, ids):
    return splash_attention(q, k, v, SPEC, ids, interpret=True)


def packed(q, k, v, ids):
    return cudnn_packed.cudnn_packed_attention(q, k, v, SPEC, ids, interpret=True)


def with_gradients(function, d_out):
    def run(q, k, v, ids):
        out, backward = jax.vjp(lambda q, k, v: function(q, k, v, ids), q, k, v)
        return out, *backward(d_out)

    return jax.jit(run)


def compare_meshes() -> None:
    """For eight devices; the test runs it in a process that has them."""
    import test_cudnn_packed

    for name, backward in (("fwd", False), ("bwd", True)):
        call = f"_dot_product_attention_{name}_p"
        setattr(cudnn_packed.cudnn, call, test_cudnn_packed.Emulated(backward))
    random = np.random.default_rng(0)
    rows, length, heads, kv_heads, width = 4, 64, 4, 2, 16
    q, d_out = (random.normal(size=(rows, length, heads, width)).astype("f4") for _ in range(2))
    k, v = (random.normal(size=(rows, length, kv_heads, width)).astype("f4") for _ in range(2))
    ids = np.repeat(np.repeat([1, 2, 3, 0], [20, 3, 34, 7])[None], rows, 0).astype(np.int32)
    expected = with_gradients(lambda *a: attention(*a[:3], SPEC, a[3], "reference"), d_out)
    wanted = expected(q, k, v, ids)
    for axes, gathered in (
        ({"data": 4, "tensor": 2, "context": 1}, False),
        ({"data": 2, "tensor": 2, "context": 2}, True),
    ):
        mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * 3)
        four, two = PartitionSpec("data", "context", "tensor"), PartitionSpec("data", "context")
        placed = [jax.device_put(x, NamedSharding(mesh, four)) for x in (q, k, v)]
        placed_ids = jax.device_put(ids, NamedSharding(mesh, two))

        def check(function, same_layout=True, mesh=mesh, placed=(*placed, placed_ids)):
            with compiling_for(Target.of(mesh)):
                program = with_gradients(function, d_out).lower(*placed).compile()
            for ours, theirs in zip(program(*placed), wanted, strict=True):
                layout = NamedSharding(mesh, PartitionSpec("data", "context", "tensor"))
                assert not same_layout or ours.sharding.is_equivalent_to(layout, 4)
                error = float(jnp.max(jnp.abs(ours - theirs)) / jnp.max(jnp.abs(theirs)))
                assert error <= 1e-5, (function, mesh.shape, error)
            return program

        # cuDNN's own splitting would leave the list of all rows beside a device's own.
        check(packed, same_layout=False)
        if mesh.shape["context"] == 1:
            check(splash)
        program = check(kernel)
        # Numbers move between devices only where a row's tokens are split, and never a whole batch.
        moved = re.findall(r"= \(?(f32\[[\d,]+\])\S* all-", program.as_text())
        assert bool(moved) == gathered, moved
        for shape in moved:
            assert np.prod([int(n) for n in re.findall(r"\d+", shape)[1:]]) <= q.size // 4, shape
    print("equal")


def test_eight_devices_give_the_numbers_of_one():
    code = "import test_partition; test_partition.compare_meshes()"
    assert with_eight_devices(__file__, code) == ["equal"]
