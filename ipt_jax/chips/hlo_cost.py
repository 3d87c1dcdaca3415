"""What a compiled step would take on a chip, foretold from its HLO kernel by kernel.

A kernel takes as long as its matrix products at the chip's rate or its bytes at the memory's,
whichever is longer (a roofline); attention goes at a rate measured for it. Nothing here has run: it
is a prediction. Not modelled: caches, kernels side by side, tiles that do not fit, arithmetic
outside matrix products, pauses between kernels, what autotuning on the chip would choose.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ipt_jax.chips.hlo_text import Array, Computation, Instruction, Module, parse

_FREE = frozenset(
    "parameter constant get-tuple-element tuple bitcast after-all partition-id replica-id domain "
    "opt-barrier add-dependency".split()
)
# What a device sends of what it puts in, in a group of n.
_SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: n - 1,
    "collective-permute": lambda n: 1,
    **dict.fromkeys(("reduce-scatter", "all-to-all"), lambda n: (n - 1) / n),
}
# Beginnings of custom call targets, without what is no letter, whose kernels may be attention.
_KERNELS = ("cudnnfmha", "mosaic_gpu", "gpuxlagputriton", "tpu_custom_call")
# FLOPs a pair and unit of head width, by what names tell. Of the backward pass's 10 two kernels
# take 3 and 4 parts, for so many products each makes.
_PASSES = (("dkv|d_key_value", 40 / 7), ("dq|d_query", 30 / 7), ("bwd|[Bb]ackward", 10.0))
_FORWARD = 4.0


@dataclass(frozen=True)
class Rates:
    """What a chip reaches, not what its data sheet says."""

    matrix_flops: float
    """FLOP/s of large bfloat16 matrix products."""
    memory_bytes_per_second: float
    """Of kernels that only read and write."""
    link_bytes_per_second: float = math.inf
    """From one device to the others, one way."""
    kernel_seconds: float = 2e-6
    """What the smallest kernel takes."""


@dataclass(frozen=True)
class Attention:
    """How attention kernels are costed: 4 · h FLOPs a pair forward, 10 · h backward."""

    pairs_share: float
    """Of all T × S pairs of a row and head, those that the mask lets through."""
    flops: Mapping[tuple[str, int], tuple[float, float]]
    """Kernel and head width, or ("", 0) for all -> FLOP/s of those pairs, forward and backward."""


# docs/results/gpu.md, TFLOP/s on an H200: packed forward, backward; causal forward, backward.
# Backward is 10 / (14 / both - 4 / forward).
_ATTENTION = {
    ("cudnnfmha", 64): (141, 130, 395, 346),
    ("cudnnfmha", 128): (257, 192, 504, 432),
    ("mosaic_gpu", 64): (153, 149, 344, 290),
    ("mosaic_gpu", 128): (205, 187, 506, 400),
    ("gpuxlagputriton", 64): (132, 146, 271, 263),
    ("gpuxlagputriton", 128): (125, 80, 251, 136),
}
MEASURED: dict[str, tuple[Rates, Rates]] = {
    "h200": (Rates(700e12, 4.2e12, 450e9), Rates(740e12, 4.2e12, 450e9))
}
"""Device -> slow and fast; NVLink's 450 GB/s are its data sheet's."""


def measured_attention(pairs_share: float) -> Attention:
    """Rates of an H200: above 0.4 those of one document a row, below of many short ones."""
    at = 2 if pairs_share > 0.4 else 0
    flops = {key: (row[at] * 1e12, row[at + 1] * 1e12) for key, row in _ATTENTION.items()}
    return Attention(pairs_share, flops)


@dataclass(frozen=True)
class Kernel:
    """One kernel and what all its runs in a step take together."""

    name: str
    """As the HLO has it."""
    kind: str
    """`matrix`, `attention`, `memory` or `link`."""
    runs: int
    """In a step."""
    flops: float
    """Of matrix products and attention."""
    moved_bytes: float
    """Read and written; of kind `link` those sent to other devices."""
    seconds: float
    """Predicted."""
    op_name: str
    """The JAX operation that it comes from; empty where the compiler added it."""
    source: str
    """`file:line` of the Python that asked for it, after its caller's."""


@dataclass(frozen=True)
class Prediction:
    """A step's kernels, dearest first."""

    kernels: tuple[Kernel, ...]
    """All that a step runs."""
    notes: tuple[str, ...]
    """What had to be assumed."""

    def total(self, what: str, kind: str = "") -> float:
        """Of a Kernel's numeric field, over all kernels or those of one kind."""
        return sum(getattr(x, what) for x in self.kernels if kind in ("", x.kind))

    @property
    def seconds(self) -> float:
        """Of a step whose kernels run one after another, collectives too."""
        return self.total("seconds")

    @property
    def overlapped_seconds(self) -> float:
        """The best case: it sends and computes at the same time throughout."""
        link = self.total("seconds", "link")
        return max(link, self.seconds - link)


def predict(hlo_text: str, rates: Rates, attention: Attention) -> Prediction:
    """Cost the step that the optimised HLO of one device's program describes.

    Raises:
      UserError: the text is no HLO.
    """
    coster = _Coster(parse(hlo_text), rates, attention)
    kernels = sorted(coster.kernels(coster.module.entry, 1), key=lambda kernel: -kernel.seconds)
    return Prediction(tuple(kernels), tuple(dict.fromkeys(coster.notes)))


# What one run asks of the chip: FLOPs of matrix products, elements needed of each operand, bytes
# written (of an update in place those that change), bytes sent to other devices.
_Work = tuple[float, list[float], float, float]


@dataclass
class _Coster:
    module: Module
    rates: Rates
    attention: Attention
    notes: list[str] = field(default_factory=list)

    def kernels(self, computation: Computation, runs: int) -> Iterator[Kernel]:
        """All that the computation starts; loops and branches are followed."""
        for x in computation:
            if x.opcode in _FREE or x.opcode.endswith("-done") or "AllocateBuffer" in x.attributes:
                continue
            inner = [
                self.module.computations[name]
                for name in x.called("body", "condition")
                + x.called("branch_computations", "true_computation", "false_computation")
                + (x.called("to_apply", "calls") if x.opcode in ("call", "async-start") else [])
            ]
            times = runs * self._trips(x) if x.opcode == "while" else runs
            parts = [list(self.kernels(one, times)) for one in inner]
            if x.opcode == "conditional":
                # The dearer branch; but where cuDNN stands beside a kernel that takes what its
                # list of segments has no room for, cuDNN.
                by_cudnn = [part for part in parts if any("fmha" in one.name for one in part)]
                parts = by_cudnn or parts
                parts = [max(parts, key=lambda part: sum(kernel.seconds for kernel in part))]
            yield from (kernel for part in parts for kernel in part)
            if not inner:
                yield self._kernel(computation, x, runs)

    def _trips(self, loop: Instruction) -> int:
        if known := loop.text(r"known_trip_count\W+n\W+(\d+)"):
            return int(known)
        condition = self.module.computations[loop.called("condition")[0]]
        root = condition.instructions[condition.root]
        if root.opcode == "compare" and "direction=LT" in root.attributes:
            bound = condition.operands_of(root)[1]
            if bound.opcode == "constant" and bound.value is not None:
                self.notes.append(f"{loop.name} is taken to count from 0 to {bound.value} by ones.")
                return bound.value
        self.notes.append(f"{loop.name} has no trip count: its body is counted once.")
        return 1

    def _kernel(self, computation: Computation, x: Instruction, runs: int) -> Kernel:
        operands, rates = computation.operands_of(x), self.rates
        flops, reads, moved, sent = self._work(computation, x, in_place=True)
        for y, elements in zip(operands, reads, strict=False):
            moved += y.arrays[0].memory_bytes * min(1.0, elements / max(1, y.elements))
        seconds = max(
            rates.kernel_seconds,
            flops / rates.matrix_flops,
            moved / rates.memory_bytes_per_second,
            sent / rates.link_bytes_per_second,
        )
        kind = "link" if sent else "matrix" if flops else "memory"
        fused = x.called("calls") if x.opcode.startswith("fusion") else []
        inside = self.module.computations[fused[0]] if fused else computation
        # A library's kernel may come in a fusion with the slices that it reads and updates.
        for call in inside if fused else [x]:
            if call.opcode == "custom-call" and not flops:
                flops, least = self._attention(call, inside.operands_of(call))
                kind, seconds, x = "attention" if flops else kind, max(seconds, least), call
        return Kernel(
            name=x.name,
            kind=kind,
            runs=runs,
            flops=flops * runs,
            moved_bytes=(sent or moved) * runs,
            seconds=seconds * runs,
            op_name=x.text(r'\bop_name="([^"]*)'),
            source=self.module.frames.get(x.text(r"stack_frame_id=(\d+)"), ""),
        )

    def _inside(self, computation: Computation) -> _Work:
        """A fusion: operands as far as its results need them, results, matrix products."""
        needed = dict.fromkeys(computation.instructions, 0.0)
        root = computation.instructions[computation.root]
        in_place: set[str] = set()
        flops = written = sent = 0.0
        for result in computation.operands_of(root) if root.opcode == "tuple" else [root]:
            needed[result.name] = result.elements
            updates, x = set(), result
            # Updates that end in a result are made in the operand's own memory.
            while x.opcode in ("bitcast", "dynamic-update-slice", "scatter"):
                updates |= {x.name} if x.opcode != "bitcast" else set()
                x = computation.operands_of(x)[0]
            in_place |= updates
            written += 0 if updates else sum(array.memory_bytes for array in result.arrays)
        for x in reversed(list(computation)):
            if needed[x.name] and x.opcode != "parameter":
                products, reads, changed, link = self._work(computation, x, x.name in in_place)
                flops, sent = flops + products, sent + link
                written += changed if x.name in in_place else 0
                share = min(1.0, needed[x.name] / x.elements)
                for y, elements in zip(computation.operands_of(x), reads, strict=False):
                    needed[y.name] = min(y.elements, needed[y.name] + share * elements)
        if computation.name.startswith("all-reduce-scatter"):
            sent /= 2  # a TPU's reduce-scatter, written as an all-reduce and a slice
        given = {x.value: needed[x.name] for x in computation if x.opcode == "parameter"}
        return flops, [given[number] for number in range(len(given))], written, sent

    def _work(self, computation: Computation, x: Instruction, in_place: bool) -> _Work:
        """One run of an instruction, all of whose results are needed."""
        operands, opcode = computation.operands_of(x), x.opcode.removesuffix("-start")
        if opcode == "fusion":
            return self._inside(self.module.computations[x.called("calls")[0]])
        reads = [float(operand.elements) for operand in operands]
        results, flops = x.arrays[:1] if x.opcode == "copy-start" else x.arrays, 0.0
        if opcode in _SENT:  # the link is slower than the memory on both of its ends
            put_in = sum(a.elements * a.item_bytes for y in operands for a in y.arrays)
            return 0.0, [], 0.0, put_in * _SENT[opcode](self._group(x))
        if opcode in ("slice", "dynamic-slice", "gather"):
            reads[0] = min(reads[0], x.elements)
        elif opcode == "dynamic-update-slice":
            reads[0] = 0.0 if in_place else reads[0] - reads[1]
            results = operands[1].arrays if in_place else results
        elif opcode == "scatter" and in_place:
            updates = operands[-(len(operands) // 2) :]
            reads[: len(updates)] = [update.elements for update in updates]
            results = tuple(update.arrays[0] for update in updates)
        elif opcode == "dot":
            flops = _product(x, operands[0].arrays[0], "lhs_contracting_dims")
        elif opcode == "convolution":
            flops = _convolution(x, operands[0].arrays[0], operands[1].arrays[0])
        elif opcode == "custom-call":
            if "__cublas" in x.attributes:
                flops = _product(x, operands[0].arrays[0], "lhs_contracting_dimensions")
            # Of bytes in one dimension: a library's workspace.
            results = tuple(a for a in results if a.item_bytes != 1 or len(a.dims) != 1)
        if flops and operands[0].arrays[0].item_bytes > 2:
            self.notes.append(f"{x.name} multiplies {operands[0].arrays[0].dtype} at bf16's rate.")
        return flops, reads, sum(array.memory_bytes for array in results), 0.0

    def _group(self, x: Instruction) -> int:
        """Devices that a collective joins: named axes, [groups,size], lists, or all."""
        if axes := x.text(r"replica_groups=mesh\[.*?\] \{(.*?)\}"):
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", x.attributes))
            named = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes)
            return math.prod(int(part or sizes[axis]) for axis, part in named)
        first = x.text(r"replica_groups=\{\{([\d,]+)\}")
        size = x.text(r"replica_groups=\[\d+,(\d+)\]") or (first and first.count(",") + 1)
        return int(size or self.module.partitions)

    def _attention(self, x: Instruction, operands: Sequence[Instruction]) -> tuple[float, float]:
        """FLOPs and seconds of an attention kernel; 0 for other custom calls."""
        target = x.text(r'custom_call_target="([^"]*)')
        letters = re.sub(r"\W", "", target).lstrip("_")
        kernel = next((begin for begin in _KERNELS if letters.startswith(begin)), "")
        name = f"{target} {x.name} {x.text(r'\bop_name="([^"]*)')}"
        # Queries, keys, values, gradients: [B, T, heads…, h], on a TPU [B, heads, T, h]; wider
        # numbers are statistics.
        arrays = [y.arrays[0] for y in operands if len(y.arrays[0].dims) > 3]
        narrow = min((array.item_bytes for array in arrays), default=0)
        arrays = [array for array in arrays if array.item_bytes == narrow]
        if not kernel or not arrays or not re.search("fmha|attention|splash|flash", name):
            self.notes.append(f"custom call {target}: costed by its bytes alone.")
            return 0.0, 0.0
        axis = -2 if kernel == "tpu_custom_call" else 1
        lengths = [array.dims[axis] for array in arrays]
        # Keys may be more than queries (gathered from other devices), queries have more heads.
        rows = [a.elements for a in arrays if a.dims[axis] == min(lengths)]
        a_pair = next((n for pattern, n in _PASSES if re.search(pattern, name)), _FORWARD)
        flops = a_pair * max(rows) * max(lengths) * self.attention.pairs_share
        width = arrays[0].dims[-1]
        known = self.attention.flops
        measured = known.get((kernel, width), known.get(("", 0)))
        if measured is None:
            self.notes.append(f"{kernel}, width {width}: no rate measured, costed as a product.")
        forward, backward = measured or (self.rates.matrix_flops,) * 2
        return flops, flops / (forward if a_pair == _FORWARD else backward)


def _product(x: Instruction, lhs: Array, key: str) -> float:
    return 2.0 * x.arrays[0].elements * math.prod(lhs.dims[axis] for axis in x.numbers(key))


def _convolution(x: Instruction, lhs: Array, rhs: Array) -> float:
    """A TPU's matrix product; a batch of them is a window whose dilation lets few pairs meet."""
    left, right, out = re.split("_|->", x.text(r"dim_labels=([\w>-]+)"))
    given = dict(re.findall(r"(\w+)=(\S+)", x.text(r"window=\{([^}]*)\}")))
    window = {key: [int(n.split("_")[0]) for n in v.split("x")] for key, v in given.items()}
    products = lhs.dims[left.index("b")] * math.prod(rhs.dims[right.index(i)] for i in "io")
    ones, zeros = [1] * len(left), [0] * len(left)
    for axis in range(len(left) - 2):
        stride, spread = window.get("stride", ones)[axis], window.get("rhs_dilate", ones)[axis]
        gap, pad = window.get("lhs_dilate", ones)[axis], window.get("pad", zeros)[axis]
        end = (lhs.dims[left.index(str(axis))] - 1) * gap
        taps, places = range(window["size"][axis]), range(x.arrays[0].dims[out.index(str(axis))])
        met = (place * stride + tap * spread - pad for place in places for tap in taps)
        products *= sum(0 <= at <= end and at % gap == 0 for at in met)
    return 2.0 * products / int(x.text(r"batch_group_count=(\d+)") or 1)
