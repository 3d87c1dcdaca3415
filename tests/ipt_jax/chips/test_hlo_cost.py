"""Costs of HLO: programs compiled here whose work is known, and lines as other compilers print."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ipt_jax.chips.hlo_cost import Attention, Prediction, Rates, predict
from ipt_jax.chips.hlo_text import parse
from ipt_jax.core.errors import UserError

STEP = Path(__file__).with_name("small_step.hlo")
# So that seconds × 1e12 are FLOPs or bytes, and seconds × 1e9 bytes sent.
RATES = Rates(1e12, 1e12, 1e9, kernel_seconds=0.0)
ATTENTION = Attention(0.5, {("", 0): (2e12, 1e12)})


def compiled(function, *shapes: tuple[int, ...]) -> Prediction:
    given = [jnp.ones(shape) for shape in shapes]
    return predict(jax.jit(function).lower(*given).compile().as_text(), RATES, ATTENTION)


def predicted(shapes: str, lines: str, before: str = "") -> Prediction:
    """Of a module whose entry has parameters p0, p1, … and these lines, the last its root."""
    body = [f"%p{n} = {shape} parameter({n})" for n, shape in enumerate(shapes.split())]
    body += [line.strip() for line in lines.strip().splitlines()]
    body[-1] = f"ROOT {body[-1]}"
    entry = "\n".join(f"  {line}" for line in body)
    text = (
        f"HloModule test, num_partitions=8\n\n{before}\nENTRY %main () -> f32[] {{\n{entry}\n}}\n"
    )
    return predict(text, RATES, ATTENTION)


def fusion(shapes: str, lines: str, result: str) -> Prediction:
    """Of a fusion of such an inside."""
    names = shapes.split()
    inside = [f"  %q{n} = {shape} parameter({n})" for n, shape in enumerate(names)]
    inside += [f"  {line.strip()}" for line in lines.strip().splitlines()]
    inside[-1] = inside[-1].replace("  %", "  ROOT %", 1)
    before = "\n".join(["%inside (q: f32[]) -> f32[] {", *inside, "}", ""])
    operands = ", ".join(f"%p{n}" for n in range(len(names)))
    call = f"%f = {result} fusion({operands}), kind=kLoop, calls=%inside"
    return predicted(shapes, call, before)


def test_a_matrix_product_compiled_here():
    found = compiled(lambda x, w: x @ w, (64, 128), (128, 256))
    (product,) = (kernel for kernel in found.kernels if kernel.kind == "matrix")
    assert product.flops == 2 * 64 * 128 * 256
    assert product.moved_bytes == 4 * (64 * 128 + 128 * 256 + 64 * 256)
    assert len(found.notes) == 1 and "f32" in found.notes[0]


def test_a_loop_compiled_here_counts_its_trips_and_touches_slices_alone():
    def body(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.tanh(x @ w), x

    found = compiled(lambda x, ws: jax.lax.scan(body, x, ws), (64, 128), (7, 128, 128))
    assert found.total("flops") == 7 * 2 * 64 * 128 * 128
    assert {kernel.runs for kernel in found.kernels if kernel.kind == "matrix"} == {7}
    # Of 7 matrices and 7 stacked results one a run, read and written; 16 bytes for the indices.
    for name, slice_bytes in (("dynamic-slice", 4 * 128 * 128), ("update", 4 * 64 * 128)):
        (kernel,) = (kernel for kernel in found.kernels if name in kernel.name)
        assert 2 * slice_bytes <= kernel.moved_bytes / 7 <= 2 * slice_bytes + 16


GEMM = 'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{' + (
    '"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}'
)
SPLASH = "bf16[4,8,2048,128] bf16[4,4,2048,128] bf16[4,4,2048,128] f32[4,8,1,2048]"
SPLASH_PAIRS = 4 * 8 * 2048 * 2048 * 128 / 2
PACKED = "bf16[4,2048,8,64]{3,2,1,0} bf16[4,2048,4,64]{3,2,1,0} f32[4,8,2048]{2,1,0}"
PAIRS = 4 * 8 * 2048 * 2048 * 64 / 2


@pytest.mark.parametrize(
    ("shapes", "line", "kind", "flops", "moved"),
    [
        (  # the workspace is no traffic
            "bf16[64,32]{1,0} bf16[32,16]{1,0}",
            "%g = (bf16[64,16]{1,0}, s8[4194304]{0}) custom-call(%p0, %p1), "
            f'custom_call_target="__cublas$gemm", {GEMM}',
            *("matrix", 2 * 64 * 32 * 16, 2 * (64 * 32 + 32 * 16 + 64 * 16)),
        ),
        (  # each of a batch of 4 products meets its own alone
            "bf16[4,512,8,128]{3,2,1,0:T(8,128)(2,1)} bf16[4,512,8,128]{3,2,1,0:T(8,128)(2,1)}",
            "%c = bf16[4,512,8,8]{3,2,1,0} convolution(%p0, %p1), window={size=4x512 "
            "stride=3x511 lhs_dilate=4x512}, dim_labels=01bf_01oi->01bf",
            *("matrix", 2 * 4 * 512 * 8 * 8 * 128, 2 * 4 * 512 * (2 * 8 * 128 + 8 * 8)),
        ),
        (
            "bf16[16,4,32]{2,1,0} bf16[4,32,64]{2,1,0}",
            "%c = bf16[16,64,1]{1,0,2} convolution(%p0, %p1), window={size=4}, "
            "dim_labels=b0f_0io->bf0",
            *("matrix", 2 * 16 * 4 * 32 * 64, 2 * (16 * 4 * 32 + 4 * 32 * 64 + 16 * 64)),
        ),
        (  # what lies in a TPU core's own memory costs the chip's none
            "bf16[64,128]{1,0:T(8,128)(2,1)}",
            "%c = (bf16[64,128]{1,0:T(8,128)(2,1)S(1)}, bf16[64,128]{1,0:T(8,128)(2,1)}, "
            "u32[]{:S(2)}) copy-start(%p0)",
            *("memory", 0, 2 * 64 * 128),
        ),
        (
            PACKED,
            "%m = (bf16[4,2048,8,64]{3,2,1,0}, f32[4,8,2048]{2,1,0}) custom-call(%p0, %p1, %p1), "
            'custom_call_target="mosaic_gpu_v2", metadata={op_name="jit(f)/transpose(jvp())/'
            'rematted_computation/attention_forward/mpmd_map"}',
            *("attention", 4 * PAIRS, None),
        ),
        (
            PACKED,
            "%m = bf16[4,2048,8,64]{3,2,1,0} custom-call(%p0, %p1, %p1, %p2), "
            'custom_call_target="mosaic_gpu_v2", metadata={op_name="attention_dq/mpmd_map"}',
            *("attention", 30 / 7 * PAIRS, None),
        ),
        (
            PACKED,
            "%m = (bf16[4,2048,4,64]{3,2,1,0}, bf16[4,2048,4,64]{3,2,1,0}) custom-call(%p1, %p1, "
            '%p0, %p0, %p2), custom_call_target="__gpu$xla.gpu.triton", '
            'metadata={op_name="attention_d_key_value/pallas_call"}',
            *("attention", 40 / 7 * PAIRS, None),
        ),
        (
            PACKED,
            "%m = (bf16[4,2048,8,64]{3,2,1,0}, bf16[4,2048,4,64]{3,2,1,0}) custom-call(%p0, %p1, "
            '%p1, %p2, %p0), custom_call_target="__cudnn$fmhaSoftmaxBackward"',
            *("attention", 10 * PAIRS, None),
        ),
        (
            SPLASH,
            "%splash_mha_fwd_residuals = bf16[4,8,2048,128]{3,2,1,0} custom-call(%p0, %p1, %p2, "
            '%p3), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={\n'
            '"xprof_metadata":"{}"\n}}',
            *("attention", 4 * SPLASH_PAIRS, None),
        ),
        ("f32[8]{0}", '%t = f32[8]{0} custom-call(%p0), custom_call_target="x"', "memory", 0, 64),
    ],
)
def test_kernels_as_chips_compilers_print_them(shapes, line, kind, flops, moved):
    found = predicted(shapes, line)
    (kernel,) = found.kernels
    assert (kernel.kind, kernel.flops) == (kind, pytest.approx(flops))
    assert moved is None or kernel.moved_bytes == moved
    least = max(flops, kernel.moved_bytes) / 1e12
    forward = flops in (4 * PAIRS, 4 * SPLASH_PAIRS)
    assert kernel.seconds == pytest.approx(flops / 2e12 if forward else least)
    assert len(found.notes) == ('"x"' in line)


@pytest.mark.parametrize(
    ("shapes", "inside", "result", "flops", "moved"),
    [
        (  # a slice, also behind what is done to each number
            "f32[16,1024]{1,0} s32[]",
            """%n = f32[16,1024]{1,0} negate(%q0)
            %d = f32[1,1024]{1,0} dynamic-slice(%n, %q1, %q1), dynamic_slice_sizes={1,1024}
            %b = bf16[1,1024]{1,0} convert(%d)""",
            *("bf16[1,1024]{1,0}", 0, 1024 * 4 + 4 + 1024 * 2),
        ),
        (  # rotated halves: two slices of one operand are that operand once
            "f32[64,64]{1,0}",
            """%a = f32[64,32]{1,0} slice(%q0), slice={[0:64], [0:32]}
            %b = f32[64,32]{1,0} slice(%q0), slice={[0:64], [32:64]}
            %s = f32[64,32]{1,0} multiply(%a, %b)
            %c = f32[64,64]{1,0} concatenate(%s, %a), dimensions={1}""",
            *("f32[64,64]{1,0}", 0, 2 * 64 * 64 * 4),
        ),
        (  # an update in place writes what changes, and reads nothing of the rest
            "f32[16,1024]{1,0} f32[1024]{0} s32[]",
            """%b = f32[1,1024]{1,0} bitcast(%q1)
            %d = f32[16,1024]{1,0} dynamic-update-slice(%q0, %b, %q2, %q2)
            %r = f32[16,1,1024]{2,1,0} bitcast(%d)""",
            *("f32[16,1,1024]{2,1,0}", 0, 2 * 1024 * 4 + 4),
        ),
        (  # within a fusion an update hides what it replaces
            "f32[16,1024]{1,0} f32[12,1024]{1,0} s32[]",
            """%d = f32[16,1024]{1,0} dynamic-update-slice(%q0, %q1, %q2, %q2)
            %n = bf16[16,1024]{1,0} convert(%d)""",
            *("bf16[16,1024]{1,0}", 0, 16 * 1024 * 4 + 4 + 16 * 1024 * 2),
        ),
        (  # a row of a table each, added to where it stands
            "f32[1000,8]{1,0} s32[5,1]{1,0} f32[5,8]{1,0}",
            "%s = f32[1000,8]{1,0} scatter(%q0, %q1, %q2), to_apply=%add",
            *("f32[1000,8]{1,0}", 0, 3 * 5 * 8 * 4 + 5 * 4),
        ),
        (
            "f32[1000,8]{1,0} s32[5,1]{1,0}",
            "%g = f32[5,8]{1,0} gather(%q0, %q1), slice_sizes={1,8}",
            *("f32[5,8]{1,0}", 0, 2 * 5 * 8 * 4 + 5 * 4),
        ),
        (  # several results, and an operand that none of them needs
            "bf16[64,32]{1,0} bf16[32,16]{1,0} f32[9]{0}",
            """%d = f32[64,16]{1,0} dot(%q0, %q1), lhs_contracting_dims={1}
            %h = bf16[64,16]{1,0} convert(%d)
            %t = (f32[64,16]{1,0}, bf16[64,16]{1,0}) tuple(%d, %h)""",
            "(f32[64,16]{1,0}, bf16[64,16]{1,0})",
            *(2 * 64 * 32 * 16, 2 * (64 * 32 + 32 * 16) + 6 * 64 * 16),
        ),
    ],
)
def test_fusions_read_what_their_results_need(shapes, inside, result, flops, moved):
    (kernel,) = fusion(shapes, inside, result).kernels
    assert (kernel.flops, kernel.moved_bytes) == (flops, moved)


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("all-reduce(%p0), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%a", 2 * 3 / 4),
        ("all-gather(%p0), replica_groups=[4,2]<=[8], dimensions={0}", 1),
        ("reduce-scatter(%p0), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%a", 3 / 4),
        ("all-to-all(%p0), replica_groups=mesh['a'=2,'b'=4] {'a','b':(1)2}", 3 / 4),
        ("all-reduce(%p0), replica_groups={}, to_apply=%a", 2 * 7 / 8),
        ("collective-permute(%p0), source_target_pairs={{0,1},{1,0}}", 1),
    ],
)
def test_collectives_send_what_a_ring_does(line, sent):
    found = predicted(
        "bf16[1000]{0} f32[500]{0}", f"%n = f32[500]{{0}} negate(%p1)\n%c = x[] {line}"
    )
    (kernel,) = (kernel for kernel in found.kernels if kernel.kind == "link")
    assert kernel.moved_bytes == pytest.approx(2000 * sent)
    assert kernel.seconds == pytest.approx(2000 * sent / 1e9)
    assert found.seconds == pytest.approx(kernel.seconds + 4000 / 1e12)
    assert found.overlapped_seconds == pytest.approx(kernel.seconds)


def test_a_tpus_reduce_scatter_is_an_all_reduce_and_a_slice():
    before = """%all-reduce-scatter.1 (i: bf16[64,32]) -> bf16[16,32] {
  %i = bf16[64,32]{1,0} parameter(0)
  %r = bf16[64,32]{1,0} all-reduce(%i), replica_groups={{0,1,2,3}}, to_apply=%a
  %z = s32[] constant(0)
  ROOT %d = bf16[16,32]{1,0} dynamic-slice(%r, %z, %z), dynamic_slice_sizes={16,32}
}
"""
    line = "%f = bf16[16,32]{1,0} fusion(%p0), kind=kCustom, calls=%all-reduce-scatter.1"
    (kernel,) = predicted("bf16[64,32]{1,0}", line, before).kernels
    assert (kernel.kind, kernel.moved_bytes) == ("link", 64 * 32 * 2 * 3 / 4)


LOOP = """%body (c: f32[8]) -> f32[8] {
  %c = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%c)
}

%double (d: f32[8]) -> f32[8] {
  %d = f32[8]{0} parameter(0)
  %m = f32[8]{0} negate(%d)
  ROOT %n = f32[8]{0} negate(%m)
}

%until (e: s32[]) -> pred[] {
  %e = s32[] parameter(0)
  %limit = s32[] constant(5)
  ROOT %compare = pred[] compare(%e, %limit), direction=LT
}

%unknown (e: s32[]) -> pred[] {
  %e = s32[] parameter(0)
  ROOT %compare = pred[] compare(%e, %e), direction=LT
}
"""


@pytest.mark.parametrize(
    ("line", "runs", "note"),
    [
        ('while(%p0), condition=%until, body=%body, x={"known_trip_count":{"n":"9"}}', 9, None),
        ("while(%p0), condition=%until, body=%body", 5, "from 0 to 5"),
        ("while(%p0), condition=%unknown, body=%body", 1, "counted once"),
        ("conditional(%p0, %p0), true_computation=%body, false_computation=%double", 2, None),
        ("conditional(%p0, %p0), branch_computations={%double, %body}", 2, None),
        ("call(%p0), to_apply=%body", 1, None),
        ("async-start(%p0), calls=%double", 2, None),
    ],
)
def test_loops_run_and_branches_are_the_dearer(line, runs, note):
    found = predicted("f32[8]{0}", f"%w = f32[8]{{0}} {line}", LOOP)
    assert sum(kernel.runs for kernel in found.kernels if kernel.name in "nm") == runs
    assert [note in said for said in found.notes] == ([True] if note else [])


def test_attention_in_a_fusion_reads_slices_and_updates_in_place():
    """As a scan over layers leaves it: keys of one layer come from a stack, results go to one."""
    inside = """%k = bf16[1,4,2048,8,64]{4,3,2,1,0} dynamic-slice(%q1, %q2), dynamic_slice_sizes={1}
        %b = bf16[4,2048,8,64]{3,2,1,0} bitcast(%k)
        %m = bf16[4,2048,8,64]{3,2,1,0} custom-call(%q0, %b, %b), \
custom_call_target="mosaic_gpu_v2", metadata={op_name="attention_forward"}
        %u = bf16[1,4,2048,8,64]{4,3,2,1,0} bitcast(%m)
        %d = bf16[16,4,2048,8,64]{4,3,2,1,0} dynamic-update-slice(%q1, %u, %q2)"""
    stack = "bf16[16,4,2048,8,64]{4,3,2,1,0}"
    (kernel,) = fusion(f"bf16[4,2048,8,64]{{3,2,1,0}} {stack} s32[]", inside, stack).kernels
    assert (kernel.name, kernel.kind, kernel.flops) == ("m", "attention", 4 * PAIRS)
    assert kernel.op_name == "attention_forward"
    assert kernel.moved_bytes == 3 * 4 * 2048 * 8 * 64 * 2 + 4


def test_no_kernel_is_faster_than_the_smallest():
    rates = Rates(1e12, 1e12, kernel_seconds=3e-6)
    found = predict(STEP.read_text(), rates, ATTENTION)
    assert min(kernel.seconds / kernel.runs for kernel in found.kernels) == 3e-6


def test_attention_without_a_rate_goes_at_the_products():
    found = predict(STEP.read_text(), RATES, Attention(0.5, {("cudnnfmha", 128): (1.0, 1.0)}))
    (kernel,) = (kernel for kernel in found.kernels if kernel.kind == "attention")
    assert kernel.seconds == kernel.flops / 1e12
    assert [note for note in found.notes if "width 64" in note]


def test_a_small_step_as_it_was_costed_before():
    """By hand: 4 trips; an eighth of a weight is read, copied, gathered, multiplied."""
    kernels = predict(STEP.read_text(), RATES, ATTENTION).kernels
    found = [(x.name, x.kind, x.runs, x.flops, x.moved_bytes, x.seconds) for x in kernels]
    eighth, weight, rows = 64 * 512 * 2, 512 * 512 * 2, 256 * 512 * 2
    product, pairs = 2 * 256 * 512 * 512, 2 * 8 * 128 * 128 * 64 / 2
    assert found == [
        ("all-gather-start", "link", 4, 0, 4 * 7 * eighth, 4 * 7 * eighth / 1e9),
        ("gemm_fusion_dot", "matrix", 4, 4 * product, 4 * (2 * rows + weight), 4 * product / 1e12),
        (
            *("dot_product_attention_fwd", "attention", 1, 4 * pairs),
            *(4 * rows + 2 * 8 * 128 * 4, 4 * pairs / 2e12),
        ),
        ("fusion-start", "memory", 4, 0, 4 * (2 * eighth + 4), 4 * (2 * eighth + 4) / 1e12),
    ]
    (dot,) = (kernel for kernel in kernels if kernel.kind == "matrix")
    assert dot.op_name == "jit(step)/while/body/dot_general"
    assert dot.source == "/src/ipt_jax/models/decoder.py:134 > /src/ipt_jax/models/layers.py:24"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ML\x00 module",
        "HloModule empty\n",
        STEP.read_text()[:2500],
        STEP.read_text().replace(" = s32[] get-tuple-element(", " = get-tuple-element ("),
    ],
)
def test_what_is_no_hlo_is_refused(text):
    with pytest.raises(UserError, match="HLO"):
        parse(text)
