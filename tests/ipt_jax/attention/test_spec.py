"""Which backend does what: the table, refusals, and what importing costs."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from ipt_jax.attention.spec import (
    AUTOMATIC,
    BACKENDS,
    KINDS,
    AttentionSpec,
    Call,
    attention,
    automatic_table,
    choose_backend,
    refusal,
)


def test_importing_the_specification_imports_no_kernel():
    program = (
        "import sys, jax\n"
        "before = set(sys.modules)  # jax itself loads parts of its compilers\n"
        "import ipt_jax.attention.spec\n"
        "heavy = [name for name in set(sys.modules) - before\n"
        "         if 'pallas' in name or 'mosaic_gpu' in name or 'ipt_jax.attention.' in name\n"
        "         and name.split('.')[-1] not in ('spec', 'ranges')]\n"
        "print(heavy)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_every_cell_of_the_table_names_a_backend_that_can_do_it():
    specs = {
        "segments": AttentionSpec(segments=True, window=9, softcap=3.0),
        "softcap": AttentionSpec(softcap=3.0, window=9),
        "window": AttentionSpec(window=9),
        "causal": AttentionSpec(),
        "full": AttentionSpec(causal=False),
    }
    assert tuple(specs) == KINDS
    for device, row in AUTOMATIC.items():
        platform, _, dtype = device.partition(" ")
        for kind, spec in specs.items():
            assert spec.kind == kind
            name = choose_backend("auto", platform, spec, dtype or "bfloat16")
            assert name == row[kind]
            call = Call(platform, dtype or "bfloat16", 256, 128)
            assert refusal(name, spec, call) is None, (device, kind)


def test_the_table_as_text():
    lines = automatic_table().splitlines()
    assert lines[0].split() == ["device", *KINDS]
    assert lines[2].split() == ["gpu", "reference", "reference", "cudnn", "cudnn", "cudnn"]
    assert lines[3].startswith("gpu float32  reference")
    assert len(lines) == 1 + len(AUTOMATIC)


def test_auto_on_a_gpu_goes_by_spec_and_dtype():
    assert choose_backend("auto", "gpu", AttentionSpec(window=9)) == "cudnn"
    assert choose_backend("auto", "gpu", AttentionSpec(window=9), "float32") == "reference"
    assert choose_backend("auto", "gpu", AttentionSpec(segments=True)) == "reference"
    assert choose_backend("pallas", "gpu", AttentionSpec(segments=True)) == "pallas"


@pytest.mark.parametrize(
    ("backend", "spec", "dtype", "width", "reason"),
    [
        ("cudnn", AttentionSpec(segments=True), "bfloat16", 64, "no segment ids"),
        ("cudnn", AttentionSpec(softcap=5.0), "bfloat16", 64, "no softcap"),
        ("cudnn", AttentionSpec(), "bfloat16", 64, "NVIDIA GPU, and this is a cpu"),
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
    assert automatic_table() in str(caught.value)


def test_limits_that_no_cpu_meets():
    def why(backend, platform="gpu", dtype="bfloat16", length=256, width=128):
        return refusal(backend, AttentionSpec(), Call(platform, dtype, length, width))

    assert why("cudnn") is None
    assert "float32" in (why("cudnn", dtype="float32") or "")
    assert "not 100" in (why("cudnn", width=100) or "")
    assert why("splash", "tpu") is None
    assert "not 200" in (why("splash", "tpu", length=200) or "")
    assert why("pallas", dtype="float16") is None
    assert why("reference", "tpu", "float64", 3, 500) is None


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
