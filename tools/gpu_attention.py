"""The attention parts of tools/bench_gpu.py; run by it, each in a process of its own.

All contestants of a case get the same queries, keys, values and output gradients, are compared
with attention by its definition in float32, and then take turns. FLOPs are those of the pairs that
the mask lets through: 4 · h a pair and head forward, 10 · h more backward (five products).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ipt_jax.attention.reference import reference_attention
from ipt_jax.attention.spec import AttentionSpec, KeyRanges, key_ranges

Emit = Callable[..., None]
OURS = ("pallas_hopper", "pallas")
JAX_MOSAIC = "jax mosaic, float16"
PASSES = ("forward", "both")
FLOPS_A_PAIR = {"forward": 4, "both": 14}  # times the head width; both: with the backward pass
# Relative distance to the definition that a contestant in 16 bits must keep.
ALLOWED = 0.02


@dataclass(frozen=True)
class Case:
    """One shape and mask."""

    mask: str
    """causal, packed, windowed, or full (no mask)."""
    length: int
    """Tokens a row."""
    head_width: int
    """Width of a head."""
    tokens: int = 16384
    """Tokens in all."""
    width: int = 2048
    """Heads times their width."""

    @property
    def spec(self) -> AttentionSpec:
        """What our backends are asked for."""
        window = self.length // 4 if self.mask == "windowed" else None
        return AttentionSpec(
            causal=self.mask != "full", window=window, segments=self.mask == "packed"
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """B, T, H, h."""
        return (
            max(1, self.tokens // self.length),
            self.length,
            max(1, self.width // self.head_width),
            self.head_width,
        )


def segment_ids(rows: int, length: int, mean_tokens: int = 512) -> np.ndarray:
    """int32 [B, T]: documents of log-normal length, cut where a row ends; no padding."""
    generator = np.random.default_rng(0)
    ids = np.zeros((rows, length), np.int32)
    for row in ids:
        start, number = 0, 1
        while start < length:
            size = max(16, round(generator.lognormal(np.log(mean_tokens) - 0.32, 0.8)))
            row[start : start + size] = number
            start, number = start + size, number + 1
    return ids


def arrays_of(case: Case, dtype: str) -> list[jax.Array]:
    """q, k, v and the output's gradient, the same for every dtype but for rounding."""
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, case.shape, jnp.float32).astype(dtype) for key in keys]


@functools.partial(jax.jit, static_argnums=0)
def by_definition(
    scale: float, arrays: list[jax.Array], ranges: KeyRanges
) -> tuple[jax.Array, ...]:
    """Output and gradients in float32, all scores at once."""
    q, k, v, d_out = (x.astype(jnp.float32) for x in arrays)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], 2) for x in (k, v))
        exact = functools.partial(jnp.einsum, precision="highest")
        column = jnp.arange(k.shape[1])
        seen = (column >= ranges.key_start[..., None]) & (column < ranges.key_stop[..., None])
        scores = jnp.where(seen[:, None], exact("bthc,bshc->bhts", q, k) * scale, -1e30)
        out = exact("bhts,bshc->bthc", jax.nn.softmax(scores), v)
        return jnp.where(jnp.any(seen, -1)[..., None, None], out, 0)  # padding sees nothing

    out, backward = jax.vjp(attend, q, k, v)
    return (out, *backward(d_out))


def contestants(case: Case, dry_run: bool, leave_out: list[str]) -> dict[str, Callable]:
    """Functions of (q, k, v, ranges, mask); each stands for one table row."""
    from ipt_jax.attention.pallas_gpu import pallas_attention
    from ipt_jax.attention.pallas_hopper import Tiles, Tuning, pallas_hopper_attention

    spec = case.spec
    window = None if spec.window is None else (spec.window - 1, 0)
    hopper: dict[str, Any] = {}
    if dry_run:
        small = Tiles(64, 2)
        tuning = Tuning(replace(small, ping_pong=True), small, small)
        hopper = {"interpret": True, "blocks": 1, "tuning": tuning}

    def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, ranges: Any, mask: Any) -> jax.Array:
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=mask if case.mask == "packed" else None,
            is_causal=spec.causal,
            local_window_size=window,
            implementation="xla" if dry_run else "cudnn",
        )

    found: dict[str, Callable] = {
        "cudnn with mask" if case.mask == "packed" else "cudnn": cudnn,
        "pallas_hopper": lambda q, k, v, ranges, mask: pallas_hopper_attention(
            q, k, v, spec, ranges, **hopper
        ),
        "pallas": lambda q, k, v, ranges, mask: pallas_attention(
            q, k, v, spec, ranges, interpret=dry_run
        ),
    }
    if case.mask == "packed" and not dry_run:
        from ipt_jax.attention.cudnn_packed import cudnn_packed_attention

        # First: the honest peer, and what the others' speeds are ratios to.
        ids = jnp.asarray(segment_ids(*case.shape[:2]))

        def packed(q: jax.Array, k: jax.Array, v: jax.Array, ranges: Any, mask: Any) -> jax.Array:
            return cudnn_packed_attention(q, k, v, spec, ids)

        found = {"cudnn_packed": packed, **found}
    if not dry_run:
        # Many products to tune, so once.
        if case.mask == "packed" and case.length == 2048:
            found["reference"] = lambda q, k, v, ranges, mask: reference_attention(
                q, k, v, spec, ranges
            )
        if importlib.util.find_spec("tokamax"):
            found["tokamax"] = functools.partial(_tokamax, case)
    if case.mask in ("causal", "full") and not dry_run:
        found[JAX_MOSAIC] = functools.partial(_jax_mosaic, spec.causal)
    return {key: value for key, value in found.items() if key not in leave_out}


def _tokamax(
    case: Case, q: jax.Array, k: jax.Array, v: jax.Array, ranges: Any, mask: Any
) -> jax.Array:
    """tokamax's Hopper kernel, whose mask can be given by the first key of each query, as ours."""
    from tokamax._src.ops.attention import api, base  # pyright: ignore[reportMissingImports]

    seen = {} if case.mask in ("causal", "full") else {"k_start": ranges.key_start[:, None]}
    return api.IMPLEMENTATIONS["mosaic_gpu"](
        q, k, v, mask=base.Mask(is_causal=case.spec.causal, **seen)
    )


def _jax_mosaic(
    causal: bool, q: jax.Array, k: jax.Array, v: jax.Array, ranges: Any, mask: Any
) -> jax.Array:
    """JAX 0.11's own; it takes float16 alone, and no scale: ours goes into the queries."""
    from jax.experimental.pallas.ops.gpu import attention_mgpu

    wide = 128 if q.shape[3] <= 128 else 64
    config = attention_mgpu.TuningConfig(
        block_q=64,
        block_kv=wide,
        max_concurrent_steps=2,
        causal=causal,
        block_q_dkv=64,
        block_kv_dkv=64,
        block_q_dq=64,
        block_kv_dq=64,
    )
    scaled = q * jnp.asarray(q.shape[3] ** -0.5, q.dtype)
    return attention_mgpu.attention(scaled, k, v, config)


def prepared(
    function: Callable, arrays: list[jax.Array], ranges: KeyRanges, mask: jax.Array | None
) -> tuple[dict[str, Callable[[], Any]], list[jax.Array]]:
    """What is timed, by pass, and what it gives: output, dq, dk, dv."""

    @jax.jit
    def both(q: Any, k: Any, v: Any, d_out: Any, ranges: Any, mask: Any) -> tuple[jax.Array, ...]:
        out, backward = jax.vjp(lambda q, k, v: function(q, k, v, ranges, mask), q, k, v)
        return (out, *backward(d_out))

    work = {
        "forward": functools.partial(jax.jit(function), *arrays[:3], ranges, mask),
        "both": functools.partial(both, *arrays, ranges, mask),
    }
    return work, list(work["both"]())


def setting(case: Case) -> tuple[KeyRanges, jax.Array | None]:
    """The key ranges of a case and, for packed rows, the same as a mask."""
    B, T, _, _ = case.shape
    ids = jnp.asarray(segment_ids(B, T)) if case.mask == "packed" else None
    ranges = key_ranges(case.spec, ids, T)
    mask = None if ids is None else (ids[:, :, None] == ids[:, None])[:, None]
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (B, T)), ranges), mask


def distances(
    case: Case, arrays: list[jax.Array], ranges: KeyRanges, found: list[jax.Array]
) -> list[float]:
    """Relative distance to the definition, of output, dq, dk, dv: first row, first two heads."""
    few = [x[:1, :, :2] for x in arrays]
    first = jax.tree.map(lambda x: x[:1], ranges)
    expected = by_definition(case.head_width**-0.5, few, first)
    return [distance(x[:1, :, :2], y) for x, y in zip(found, expected, strict=True)]


def distance(found: jax.Array, expected: jax.Array) -> float:
    """‖found - expected‖ / ‖expected‖; infinite where anything is not finite."""
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if not np.isfinite(a).all():
        return float("inf")
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def probe(name: str, emit: Emit, dry_run: bool) -> None:
    """One of our backends against the definition, before it is timed."""
    if name == "cudnn_packed":
        probe_packed(emit)
        return
    length = 128 if dry_run else 1024
    # A Hopper kernel compiles for 12 s: each width, and each mask once.
    some = (("packed", 128), ("packed", 64), ("windowed", 64), ("causal", 128))
    for mask, width in (("packed", 64),) if dry_run else some:
        case = Case(mask, length, width, tokens=length, width=128)
        arrays, (ranges, pairs) = arrays_of(case, "bfloat16"), setting(case)
        _, found = prepared(contestants(case, dry_run, [])[name], arrays, ranges, pairs)
        far = distances(case, arrays, ranges, found)
        about = {"mask": f"{mask}, {width}", "distances": far}
        emit("probe", contestant=name, good=max(far) < ALLOWED, **about)


def probe_packed(emit: Emit) -> None:
    """cuDNN's packed call: padding, a window, grouped heads, every slot of the list in use."""
    B, T, H = 3, 1024, 4
    kinds = ((64, 4, None, 16), (64, 1, 100, 16), (128, 1, None, 2), (128, 4, 100, 16))
    for width, K, window, slots in kinds:
        spec = AttentionSpec(window=window, segments=True)
        generator = np.random.default_rng(width + K + slots)
        ids = np.zeros((B, T), np.int32)
        for number, row in enumerate(ids):
            # Of 2 slots a row, 6 in all: 4 + 1 + 1.
            count = (12, 9, 1)[number] if slots == 16 else (4, 1, 1)[number]
            edges = np.sort(generator.choice(np.arange(1, T), count - 1, replace=False))
            row[:] = 1 + np.searchsorted(edges, np.arange(T), side="right")
            if count > 2:
                row[row == count] = 0  # padding at the end
        keys = jax.random.split(jax.random.key(width + slots), 4)
        shapes = [(B, T, H, width), (B, T, K, width), (B, T, K, width), (B, T, H, width)]
        arrays = [
            jax.random.normal(key, shape, jnp.float32).astype("bfloat16")
            for key, shape in zip(keys, shapes, strict=True)
        ]
        ranges = key_ranges(spec, jnp.asarray(ids), T)
        expected = by_definition(width**-0.5, arrays, ranges)
        found = packed_gradients(spec, slots, *arrays, jnp.asarray(ids))
        far = [distance(x, y) for x, y in zip(found, expected, strict=True)]
        what = f"packed, {width}, {H // K} a group, window {window}, {slots} slots a row"
        emit("probe", contestant="cudnn_packed", mask=what, distances=far, good=max(far) < ALLOWED)


@functools.partial(jax.jit, static_argnums=(0, 1))
def packed_gradients(
    spec: AttentionSpec, slots: int, q: Any, k: Any, v: Any, d_out: Any, ids: Any
) -> tuple[jax.Array, ...]:
    """cuDNN's output and gradients of packed rows."""
    from ipt_jax.attention.cudnn_packed import cudnn_packed_attention

    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return cudnn_packed_attention(q, k, v, spec, ids, slots)

    out, back = jax.vjp(run, q, k, v)
    return (out, *back(d_out))


def compare(case: Case, emit: Emit, rounds: int, dry_run: bool, leave_out: list[str]) -> None:
    """All contestants of one case: checked, then timed in turns, forward and backward."""
    ranges, mask = setting(case)
    about = {"mask": case.mask, "length": case.length, "head_width": case.head_width}
    work: dict[str, dict[str, Callable[[], Any]]] = {name: {} for name in PASSES}
    far: dict[str, dict[str, float]] = {name: {} for name in PASSES}
    for name, function in contestants(case, dry_run, leave_out).items():
        arrays = arrays_of(case, "float16" if name == JAX_MOSAIC else "bfloat16")
        try:
            # JAX's kernel has a backward pass for full attention alone.
            if name == JAX_MOSAIC and case.mask != "full":
                forward = functools.partial(jax.jit(function), *arrays[:3], ranges, mask)
                functions, found = {"forward": forward}, [forward()]
                few = [*found, *arrays[1:]]  # only the first is compared
                errors = distances(case, arrays, ranges, few)[:1]
            else:
                functions, found = prepared(function, arrays, ranges, mask)
                errors = distances(case, arrays, ranges, found)
        except Exception as error:  # one contestant less; the table says why
            reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            emit("failed", contestant=name, reason=reason, **about)
            continue
        for passing in functions:
            worst = errors[0] if passing == "forward" else max(errors[1:])
            if worst > ALLOWED:
                reason = f"{passing} is wrong: distance {worst:.3g}"
                emit("failed", contestant=name, reason=reason, **about)
            else:
                work[passing][name], far[passing][name] = functions[passing], worst
    pairs = int(np.sum(np.asarray(ranges.key_stop - ranges.key_start, np.int64))) * case.shape[2]
    for passing, functions in work.items():
        with alone():
            seconds = alternate(functions, rounds)
        base = next((name for name in seconds if name.startswith("cudnn")), None)
        flops = FLOPS_A_PAIR[passing] * case.head_width * pairs
        for name, times in seconds.items():
            ratios = [a / b for a, b in zip(seconds[base], times, strict=True)] if base else []
            emit(
                "attention",
                contestant=name,
                passing=passing,
                milliseconds=statistics.median(times) * 1e3,
                tflops=flops / statistics.median(times) / 1e12,
                spread=[flops / t / 1e12 for t in (max(times), min(times))],
                to_cudnn=statistics.median(ratios) if ratios else None,
                error=far[passing][name],
                **about,
            )


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Several cases may compile at once, but one is timed at a time."""
    with Path(tempfile.gettempdir(), "bench-gpu.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def alternate(
    work: dict[str, Callable[[], Any]], rounds: int, round_seconds: float = 0.02
) -> dict[str, list[float]]:
    """Seconds a call: `rounds` rounds in turns, so many calls a round that it lasts long enough."""
    calls = {}
    for name, function in work.items():
        jax.block_until_ready(function())
        begin = time.perf_counter()
        jax.block_until_ready(function())
        calls[name] = max(1, round(round_seconds / (time.perf_counter() - begin)))
    found: dict[str, list[float]] = {name: [] for name in work}
    names = list(work)
    for number in range(rounds + 1):
        turn = number % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            begin = time.perf_counter()
            for _ in range(calls[name]):
                last = work[name]()
            jax.block_until_ready(last)
            if number:  # the first round warms up
                found[name].append((time.perf_counter() - begin) / calls[name])
    return found


def candidates(kernel: str, head_width: int) -> Iterator[Any]:
    """Sizes of the Hopper kernels that `autotune` tries: all that fit, in place where they must."""
    from ipt_jax.attention.pallas_hopper import Tiles, fits

    for size, stages in itertools.product((64, 128, 256), (2, 3, 4)):
        for turns in (True, False) if kernel == "forward" else (False,):
            tiles = (Tiles(size, stages, turns, in_place) for in_place in (False, True))
            yield from itertools.islice((x for x in tiles if fits(kernel, head_width, x)), 1)


def portable_candidates(kernel: str) -> Iterator[Any]:
    """What `tiles` tries of the portable kernels."""
    from ipt_jax.attention.block_sizes import Tile

    sizes = (32, 64, 128) if kernel == "forward" else (32, 64)
    for queries, keys, warps, stages in itertools.product(sizes, sizes, (4, 8), (2, 3)):
        yield Tile(queries, keys, warps, stages)


def autotune(head_width: int, emit: Emit, seconds: float, dry_run: bool) -> None:
    """Time every size of each Hopper kernel and emit the table's line of the fastest."""
    from ipt_jax.attention import pallas_hopper as hopper

    case = Case("causal", 128 if dry_run else 4096, head_width)
    case = replace(case, tokens=128, width=head_width) if dry_run else case
    blocks = 1 if dry_run else hopper.multiprocessors()
    functions = {"forward": hopper.forward, "dq": hopper.d_query, "dkv": hopper.d_key_value}
    calls = _calls(case, functions)
    best, tried = hopper.TUNINGS[head_width], {}
    for kernel in calls:
        few = itertools.islice(candidates(kernel, head_width), 1 if dry_run else None)
        tried[kernel] = {
            tiles: hopper.HopperConfig(
                head_width**-0.5, replace(best, **{kernel: tiles}), blocks, interpret=dry_run
            )
            for tiles in few
        }
    found, lines = _fastest(calls, tried, seconds, 1 if dry_run else 5)
    emit("tuning", line=f"    {head_width}: {replace(best, **found)!r},  # {'; '.join(lines)}")


def tiles(head_width: int, emit: Emit, seconds: float, dry_run: bool) -> None:
    """Time the portable kernels' tiles and emit the table's line of the fastest."""
    from ipt_jax.attention import pallas_gpu
    from ipt_jax.attention.block_sizes import Tile, block_sizes

    case = Case("packed", 4096, head_width)
    if dry_run:
        case = replace(case, length=64, tokens=64, width=head_width)
    names = ("forward", "d_query", "d_key_value")
    calls = _calls(case, {n: getattr(pallas_gpu, n) for n in names})
    tried = {
        kernel: {
            tile: pallas_gpu.KernelConfig(head_width**-0.5, None, tile, dry_run)
            for tile in ([Tile(32, 32)] if dry_run else portable_candidates(kernel))
        }
        for kernel in calls
    }
    found, lines = _fastest(calls, tried, seconds, 1 if dry_run else 10)
    device, day = jax.local_devices()[0].device_kind, time.strftime("%Y-%m-%d")
    about = f"{device}, JAX {jax.__version__}, {day}, {case}"
    best = replace(block_sizes(head_width, 2, case.length, device), measured=about, **found)
    comments = [f"    # {line}" for line in lines]
    emit("tiles", line="\n".join([*comments, f"    ({device!r}, {head_width}, 2): {best!r},"]))


def _calls(
    case: Case, functions: dict[str, Callable[..., Any]]
) -> dict[str, Callable[[Any], Callable[[], Any]]]:
    """Of forward, dq, and dk with dv: what makes a call of a kernel's setting."""
    q, k, v, d_out = arrays_of(case, "bfloat16")
    B, T, H, h = case.shape
    q, d_out = (x.reshape(B, T, H, 1, h) for x in (q, d_out))
    ranges, _ = setting(case)
    keys, queries = (ranges.key_start, ranges.key_stop), (ranges.query_start, ranges.query_stop)
    vectors = [jnp.zeros((B, H, 1, T), jnp.float32)] * 2
    back = (q, k, v, d_out, *vectors)
    given = (q, k, v, *keys), (*back, *keys), (*back, *queries)

    def maker(function: Callable[..., Any], arrays: tuple[jax.Array, ...]) -> Callable[[Any], Any]:
        return lambda how: functools.partial(jax.jit(functools.partial(function, how)), *arrays)

    return {
        name: maker(function, arrays)
        for (name, function), arrays in zip(functions.items(), given, strict=True)
    }


def _fastest(
    calls: dict[str, Callable[[Any], Callable[[], Any]]],
    tried: dict[str, dict[Any, Any]],
    seconds: float,
    rounds: int,
) -> tuple[dict[str, Any], list[str]]:
    """Of each kernel's sizes, which come with their settings, the fastest; and what was tried."""
    until, found, lines = time.monotonic() + seconds, {}, []
    for number, (kernel, call) in enumerate(calls.items()):
        end = time.monotonic() + (until - time.monotonic()) / (len(calls) - number)
        timed, failed, untried = {}, 0, 0
        for sizes, how in tried[kernel].items():
            if time.monotonic() > end and timed:
                untried += 1
                continue
            try:
                timed[sizes] = statistics.median(alternate({"": call(how)}, rounds)[""])
            except (ValueError, RuntimeError):  # as the compiler of this machine finds
                failed += 1
        said = f"{len(timed)} timed, {failed} did not run, {untried} not tried"
        if timed:
            found[kernel] = min(timed, key=timed.__getitem__)
            said = f"{timed[found[kernel]] * 1e3:.3f} ms, {said}"
        lines.append(f"{kernel}: {said}")
    return found, lines
