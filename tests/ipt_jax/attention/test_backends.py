"""Which backend does what: the table, refusals, and what importing costs."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from ipt_jax.attention.backends import (
    BACKENDS,
    KINDS,
    ORDER,
    CallShape,
    attention,
    choose_backend,
    default_backends,
    generation,
    unsupported_reason,
)
from ipt_jax.attention.spec import AttentionSpec
from ipt_jax.chips.devices import Target, compiling_for, target

H200 = Target("gpu", "NVIDIA H200", "9.0", 132)
A100 = Target("gpu", "NVIDIA A100-SXM4-80GB", "8.0", 108)
B200 = Target("gpu", "NVIDIA B200", "10.0", 148)
V5P = Target("tpu", "TPU v5")
CPU = Target("cpu", "cpu")


def test_importing_the_table_imports_no_kernel():
    program = (
        "import sys, jax\n"
        "before = set(sys.modules)  # jax itself loads parts of its compilers\n"
        "import ipt_jax.attention.backends\n"
        "heavy = [name for name in set(sys.modules) - before\n"
        "         if 'pallas' in name or 'mosaic_gpu' in name or 'ipt_jax.attention.' in name\n"
        "         and name.split('.')[-1] not in ('spec', 'ranges', 'backends')]\n"
        "print(heavy)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr


SPECS = {
    "segments": AttentionSpec(segments=True, window=9),
    "softcap": AttentionSpec(softcap=3.0, window=9),
    "window": AttentionSpec(window=9),
    "causal": AttentionSpec(),
    "full": AttentionSpec(causal=False),
}


def chosen(of: Target, kind: str, dtype: str = "bfloat16", width: int = 128, length: int = 256):
    return choose_backend("auto", SPECS[kind], CallShape(of, dtype, length, width))


@pytest.mark.parametrize("of", [H200, A100, B200, V5P, CPU], ids=lambda of: of.kind)
@pytest.mark.parametrize("kind", KINDS)
def test_auto_takes_the_first_of_its_order_that_can_do_it(of, kind):
    assert SPECS[kind].kind == kind
    first = (*ORDER[generation(of)].get(kind, ()), "reference")[0]
    assert chosen(of, kind).name == first
    assert unsupported_reason(first, SPECS[kind], CallShape(of, "bfloat16", 256, 128)) is None


def test_packed_rows_are_fast_by_default_on_every_chip():
    names = {of.kind: chosen(of, "segments").name for of in (H200, A100, B200, V5P, CPU)}
    assert list(names.values()) == [
        "pallas_hopper",
        "pallas",
        "cudnn_packed",
        "splash",
        "reference",
    ]


def test_auto_passes_over_what_cannot_do_it_and_says_why():
    choice = chosen(H200, "segments", width=72)
    assert choice.name == "cudnn_packed" and choice.passed_over[0][0] == "pallas_hopper"
    assert "head widths 64, 96, 128, not 72" in str(choice)
    assert chosen(H200, "segments", width=200).name == "reference"
    assert chosen(H200, "segments", "float32").name == "reference"  # exact products
    assert chosen(Target("gpu", "Tesla V100", "7.0"), "segments").name == "reference"


def test_a_row_split_over_devices_is_no_row_for_splash():
    mesh = jax.sharding.AbstractMesh((1, 1, 1, 2), ("data", "fsdp", "tensor", "context"))
    split = Target("tpu", "TPU v5", mesh=mesh)  # type: ignore[arg-type]
    choice = choose_backend("auto", SPECS["segments"], CallShape(split, "bfloat16", 256, 128))
    assert choice.name == "reference" and "mesh.context is 2" in str(choice)


def test_the_target_is_what_the_innermost_block_says():
    assert target().platform == "cpu"
    with compiling_for(H200):
        with compiling_for(V5P):
            assert target() == V5P
        assert target() == H200 and target().known.name == "h200"
    assert target().platform == "cpu" and target().known is None


def test_the_order_as_text():
    lines = default_backends().splitlines()
    assert len(lines) == len(ORDER) * len(KINDS)
    assert "hopper    segments  pallas_hopper, cudnn_packed, pallas, reference" in lines


@pytest.mark.parametrize(
    ("backend", "spec", "dtype", "width", "reason"),
    [
        ("cudnn", AttentionSpec(segments=True), "bfloat16", 64, "no segment ids"),
        ("cudnn", AttentionSpec(softcap=5.0), "bfloat16", 64, "no softcap"),
        ("cudnn", AttentionSpec(), "bfloat16", 64, "NVIDIA GPU, and this is cpu"),
        ("splash", AttentionSpec(), "float32", 64, "needs a TPU"),
        ("pallas_hopper", AttentionSpec(), "bfloat16", 64, "needs an H100 or H200"),
        ("pallas_hopper", AttentionSpec(softcap=5.0), "bfloat16", 64, "has no softcap"),
        ("pallas", AttentionSpec(), "float32", 64, "pallas_interpret"),
        ("pallas_interpret", AttentionSpec(), "float32", 136, "not 136"),
        ("pallas_interpret", AttentionSpec(), "int8", 64, "not int8"),
    ],
)
def test_a_backend_that_cannot_do_it_says_why(backend, spec, dtype, width, reason):
    x = jax.ShapeDtypeStruct((1, 8, 1, width), jnp.dtype(dtype))
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32) if spec.segments else None
    with pytest.raises(ValueError, match=reason) as caught:
        jax.eval_shape(lambda x, ids: attention(x, x, x, spec, ids, backend), x, ids)
    assert default_backends() in str(caught.value)


def test_limits_that_no_cpu_meets():
    def why(backend, of=H200, dtype="bfloat16", length=256, width=128, **spec):
        return (
            unsupported_reason(backend, AttentionSpec(**spec), CallShape(of, dtype, length, width))
            or ""
        )

    assert why("cudnn") == ""
    assert "float32" in why("cudnn", dtype="float32")
    assert "not 100" in why("cudnn", width=100)
    assert why("splash", V5P, length=200) == ""
    assert "needs a TPU, and this is NVIDIA H200" in why("splash")
    assert why("cudnn_packed", segments=True) == "" == why("cudnn_packed", B200, segments=True)
    assert "compute capability 8.0" in why("cudnn_packed", A100, segments=True)
    assert "needs an H100 or H200" in why("pallas_hopper", B200)
    assert "not 80" in why("pallas_hopper", width=80)
    assert "float32" in why("pallas_hopper", dtype="float32")
    assert why("pallas", dtype="float16") == ""
    assert why("reference", V5P, "float64", 3, 500) == ""


def test_a_wrong_softcap_and_unlike_inputs_are_refused():
    with pytest.raises(ValueError, match="softcap=0"):
        AttentionSpec(softcap=0)
    q = jnp.zeros((1, 4, 2, 8))
    with pytest.raises(ValueError, match="one dtype"):
        attention(q, q.astype(jnp.bfloat16), q.astype(jnp.bfloat16), AttentionSpec())
    for other in (jnp.zeros((2, 4, 2, 8)), jnp.zeros((1, 4, 2, 16))):
        with pytest.raises(ValueError, match="do not fit"):
            attention(q, other, other, AttentionSpec())
    assert "pallas_interpret" in BACKENDS
