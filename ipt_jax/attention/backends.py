"""Who does attention: the table of backends, what each refuses, and what `auto` takes.

Importing this costs no backend: each is imported when it is first used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ipt_jax.attention.spec import AttentionSpec, KeyRanges, key_ranges
from ipt_jax.chips.devices import Target, target


@dataclass(frozen=True)
class CallShape:
    """One call of a backend, as far as a backend may refuse it."""

    target: Target
    """What it is compiled for."""
    dtype: str
    """Of queries, keys and values."""
    length: int
    """Tokens a row."""
    head_width: int


def _reference(q, k, v, spec, ids, ranges):
    from ipt_jax.attention.reference import reference_attention

    return reference_attention(q, k, v, spec, ranges)


def _cudnn(q, k, v, spec, ids, ranges):
    from ipt_jax.attention.cudnn import cudnn_attention

    return cudnn_attention(q, k, v, spec)


def _cudnn_packed(q, k, v, spec, ids, ranges):
    from ipt_jax.attention.cudnn_packed import cudnn_packed_attention

    return cudnn_packed_attention(q, k, v, spec, ids)


def _splash(q, k, v, spec, ids, ranges):
    from ipt_jax.attention.splash_tpu import splash_attention

    return splash_attention(q, k, v, spec, ids)


def _pallas(q, k, v, spec, ids, ranges, interpret=False):
    from ipt_jax.attention.pallas_gpu import pallas_attention

    return pallas_attention(q, k, v, spec, ranges, interpret=interpret)


def _pallas_hopper(q, k, v, spec, ids, ranges):
    from ipt_jax.attention.pallas_hopper import pallas_hopper_attention

    return pallas_hopper_attention(q, k, v, spec, ranges)


# An explicit table: a backend that is not in it does not exist.
BACKENDS: dict[str, Callable[..., jax.Array]] = {
    "reference": _reference,
    "cudnn": _cudnn,
    "cudnn_packed": _cudnn_packed,
    "splash": _splash,
    "pallas": _pallas,
    "pallas_hopper": _pallas_hopper,
    # The same kernel as plain JAX, slowly: for tests.
    "pallas_interpret": functools.partial(_pallas, interpret=True),
}

# What `auto` tries, the fastest first, by chip and by what the spec asks for; where all refuse or
# fail their test (`ipt_jax.attention.self_test`), the reference. Order on Hopper as measured on an
# H200 (docs/results/gpu.md: in whole steps pallas_hopper is 1.01 times cuDNN's packed call at 1.3B
# and 8B and 0.99 at 500M, and it has no limit on segments); elsewhere nothing is measured yet.
KINDS = ("segments", "softcap", "window", "causal", "full")
_DENSE = ("window", "causal", "full")
ORDER: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {},
    "hopper": {
        "segments": ("pallas_hopper", "cudnn_packed", "pallas"),
        "softcap": ("pallas",),
        **dict.fromkeys(_DENSE, ("cudnn", "pallas_hopper", "pallas")),
    },
    "blackwell": {
        "segments": ("cudnn_packed", "pallas"),
        "softcap": ("pallas",),
        **dict.fromkeys(_DENSE, ("cudnn", "pallas")),
    },
    "ampere": {
        "segments": ("pallas",),
        "softcap": ("pallas",),
        **dict.fromkeys(_DENSE, ("cudnn", "pallas")),
    },
    "tpu": dict.fromkeys(KINDS, ("splash",)),
}
REFERENCE_IS_SLOW = (
    "the reference computes every block of scores and keeps it in memory: a training step of "
    "ipt_500m takes 2.1 times as long with it (measured on an H200)"
)


@dataclass(frozen=True)
class Choice:
    """The backend that does it."""

    name: str
    passed_over: tuple[tuple[str, str], ...] = ()
    """Those that `auto` would rather have taken, each with why not."""

    def __str__(self) -> str:
        """For a person."""
        passed = "; ".join(f"not {name}: {reason}" for name, reason in self.passed_over)
        return f"{self.name} ({passed})" if passed else self.name


def generation(of: Target) -> str:
    """The row of ORDER for a target."""
    if of.platform != "gpu":
        return of.platform if of.platform in ORDER else "cpu"
    names = {8: "ampere", 9: "hopper"}
    return "blackwell" if of.major >= 10 else names.get(of.major, "cpu")


def candidates(of: Target, spec: AttentionSpec, dtype: str) -> tuple[str, ...]:
    """What `auto` tries, in order, but for the reference, which is always the last."""
    # The kernels are made for 16 bits, and float32 is for comparing.
    if of.platform == "gpu" and dtype == "float32":
        return ()
    return ORDER[generation(of)].get(spec.kind, ())


def default_backends() -> str:
    """What `auto` tries, as text: a line per chip and kind of spec."""
    lines = [
        f"{chip:<10}{kind:<10}{', '.join((*row.get(kind, ()), 'reference'))}"
        for chip, row in ORDER.items()
        for kind in KINDS
    ]
    return "\n".join(lines)


def unsupported_reason(
    backend: str, spec: AttentionSpec, call: CallShape | None = None
) -> str | None:
    """Why a backend cannot do this, or None; without a call, only what the spec decides.

    The limits of cudnn and splash are those of `jax.nn.dot_product_attention` and of
    `jax.experimental.pallas.ops.tpu.splash_attention` in JAX 0.11.2.
    """
    reasons = [*_refused_specs(backend, spec), *(_refused_calls(backend, call) if call else ())]
    return next((reason for holds, reason in reasons if holds), None)


def _refused_specs(backend: str, spec: AttentionSpec) -> list[tuple[bool, str]]:
    softcap = (spec.softcap is not None, "has no softcap")
    no_segments = "takes no segment ids, and a mask of all pairs would grow with T²"
    return {
        "cudnn": [(spec.segments, no_segments), softcap],
        "cudnn_packed": [
            (not spec.segments, "is for rows with segment ids; cudnn does the others"),
            softcap,
        ],
        "pallas_hopper": [softcap],
    }.get(backend, [])


def _refused_calls(backend: str, call: CallShape) -> list[tuple[bool, str]]:
    what, width = call.target, call.head_width
    known = f" of compute capability {what.capability}" if what.capability else ""
    here = f"and this is {what.kind} ({what.platform}{known})"
    half = (
        call.dtype not in ("bfloat16", "float16"),
        f"takes bfloat16 and float16, not {call.dtype}",
    )
    eights = (
        width > 128 or width % 8 != 0,
        f"takes head widths to 128 by eights, not {width}",
    )
    if backend == "cudnn":
        return [(what.platform != "gpu", f"needs an NVIDIA GPU, {here}"), half, eights]
    if backend == "cudnn_packed":
        return [(what.major < 9, f"needs an H100 or newer, {here}"), half, eights]
    if backend == "splash":
        split = what.size("context")
        return [
            (what.platform != "tpu", f"needs a TPU, {here}"),
            (split > 1, f"has each row whole on a device, and mesh.context is {split}"),
        ]
    if backend == "pallas_hopper":
        widths = (64, 96, 128)
        return [
            # Hopper's matrix instructions exist on 9.0 alone: not before, and not on Blackwell.
            (what.platform != "gpu" or what.capability != "9.0", f"needs an H100 or H200, {here}"),
            half,
            (
                width not in widths,
                f"takes the head widths {', '.join(map(str, widths))}, not {width}",
            ),
        ]
    if backend in ("pallas", "pallas_interpret"):
        kinds = ("bfloat16", "float16", "float32")
        return [
            (
                backend == "pallas" and what.platform != "gpu",
                f"needs a GPU, {here} (pallas_interpret runs the same kernel anywhere, slowly)",
            ),
            (call.dtype not in kinds, f"takes {', '.join(kinds)}, not {call.dtype}"),
            (width > 128, f"takes head widths to 128, not {width}"),
        ]
    return []


def check_backend(backend: str, spec: AttentionSpec) -> None:
    """Refuse a name that does not exist, or that cannot do what the spec asks for anywhere.

    Raises:
      ValueError: with the reason.
    """
    if backend == "auto":
        return
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r}: known are auto, {', '.join(BACKENDS)}.")
    if reason := unsupported_reason(backend, spec):
        raise ValueError(_refused(backend, reason))


def choose_backend(
    backend: str,
    spec: AttentionSpec,
    call: CallShape,
    fails: Callable[[str], str | None] = lambda name: None,
) -> Choice:
    """The backend that `attention` will use: the one named, or `auto`'s first that does not refuse.

    `fails` tries what does not refuse, and gives a reason against it or None.

    Raises:
      ValueError: no such backend, or it cannot do this.
    """
    check_backend(backend, spec)
    if backend != "auto":
        if reason := unsupported_reason(backend, spec, call):
            raise ValueError(_refused(backend, reason))
        return Choice(backend)
    passed_over = []
    for name in candidates(call.target, spec, call.dtype):
        reason = unsupported_reason(name, spec, call) or fails(name)
        if reason is None:
            return Choice(name, tuple(passed_over))
        passed_over.append((name, reason))
    return Choice("reference", tuple(passed_over))


def attention(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    spec: AttentionSpec,
    segment_ids: jax.Array | None = None,
    backend: str = "auto",
    *,
    ranges: KeyRanges | None = None,
) -> jax.Array:
    """Softmax attention; query heads share key heads in groups of H / K.

    Args:
      q_BTHh: queries.
      k_BTKh: keys.
      v_BTKh: values.
      spec: mask and scale.
      segment_ids: int32 [B, T], equal ids contiguous, 0 for padding; needed if and only if
        `spec.segments`.
      backend: `auto` or a name from BACKENDS.
      ranges: `key_ranges` of the same spec and ids, where several calls share them; None: they
        are worked out here.

    Returns:
      [B, T, H, h] in the dtype of the queries; zeros where a query sees nothing (padding).

    Raises:
      ValueError: shapes or segment ids that do not fit the spec, an unknown backend, one that
        cannot do this.
    """
    heads, kv_heads = q_BTHh.shape[2], k_BTKh.shape[2]
    if (
        heads % kv_heads
        or k_BTKh.shape != v_BTKh.shape
        or k_BTKh.shape[:2] != q_BTHh.shape[:2]
        or k_BTKh.shape[3] != q_BTHh.shape[3]
    ):
        raise ValueError(
            f"attention: queries {q_BTHh.shape}, keys {k_BTKh.shape} and values {v_BTKh.shape} "
            "do not fit: the number of query heads must be a multiple of the key heads, and all "
            "rows, lengths and head widths equal."
        )
    if not q_BTHh.dtype == k_BTKh.dtype == v_BTKh.dtype:
        raise ValueError(
            f"attention: queries {q_BTHh.dtype}, keys {k_BTKh.dtype} and values {v_BTKh.dtype} "
            "must be of one dtype."
        )
    if spec.segments != (segment_ids is not None):
        raise ValueError("attention: segment_ids must come exactly when spec.segments is set.")
    length, width = q_BTHh.shape[1], q_BTHh.shape[3]
    call = CallShape(target(), jnp.dtype(q_BTHh.dtype).name, length, width)
    name = choose_backend(backend, spec, call).name
    if ranges is None:
        ranges = key_ranges(spec, segment_ids, length)
    return BACKENDS[name](q_BTHh, k_BTKh, v_BTKh, spec, segment_ids, ranges)


def _refused(backend: str, reason: str) -> str:
    return f"attention backend {backend}: {reason}. Name another, or auto, which tries:\n" + (
        default_backends()
    )
