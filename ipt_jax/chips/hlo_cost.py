"""What a compiled step would take on a chip, foretold from its HLO kernel by kernel.

Each kernel takes as long as its matrix products at the chip's rate or its bytes at the memory's,
whichever is longer (a roofline), attention at a rate measured for it, and never less than a floor.
Nothing here has run: it is a prediction. Not modelled: caches, kernels side by side, poor tiles,
arithmetic outside matrix products, gaps between kernels, and what autotuning would choose.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from ipt_jax.chips.hlo_text import Array, Computation, Instruction, Module, parse

FREE = frozenset(
    "parameter constant get-tuple-element tuple bitcast after-all partition-id replica-id domain "
    "opt-barrier add-dependency".split()
)
"""Opcodes that do nothing when the program runs."""
_OP_NAME = r'\bop_name="([^"]*)'
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Attention:
    """How attention kernels are costed: 4 · h FLOPs a pair forward, 10 · h backward."""

    pairs_share: float
    """Of all T × S pairs of a row and head, those that the mask lets through."""
    forward_flops: float
    """FLOP/s of those pairs, measured."""
    backward_flops: float
    """The same for the backward pass alone."""


@dataclass(frozen=True)
class Rates:
    """What a chip reaches, not what its data sheet says."""

    matrix_flops: float
    """FLOP/s of large bfloat16 matrix products."""
    memory_bytes_per_second: float
    """Of kernels that only read and write."""
    link_bytes_per_second: float = math.inf
    """One way, of one device, to the others of its group."""
    kernel_seconds: float = 2e-6
    """What the smallest kernel takes."""


@dataclass(frozen=True)
class Work:
    """What one run of an instruction or computation asks of the chip."""

    flops: float = 0.0
    """Of matrix products."""
    read_elements: tuple[float, ...] = ()
    """Of each operand or parameter, those that are needed."""
    written_bytes: float = 0.0
    """Of its results; of an update in place only what changes."""
    link_bytes: float = 0.0
    """That leave this device."""


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
    memory_bytes: float
    """Read and written."""
    link_bytes: float
    """Sent to other devices."""
    seconds: float
    """Predicted."""
    op_name: str
    """The JAX operation that it comes from."""
    source: str
    """`file:line` of the Python that asked for it."""


@dataclass(frozen=True)
class Prediction:
    """A step's kernels, dearest first."""

    kernels: tuple[Kernel, ...]
    """Each once."""
    notes: tuple[str, ...]
    """What had to be assumed."""

    def total(self, what: str, kind: str | None = None) -> float:
        """Of a Kernel's numeric field, over all kernels or those of one kind."""
        return sum(getattr(x, what) for x in self.kernels if kind in (None, x.kind))

    @property
    def seconds(self) -> float:
        """Of a step whose kernels run one after another, collectives too."""
        return self.total("seconds")

    @property
    def overlapped_seconds(self) -> float:
        """Of a step that sends and computes at the same time wherever it may: the best case."""
        link = self.total("seconds", "link")
        return max(link, self.seconds - link)


def predict(hlo_text: str, rates: Rates, attention: Attention | None) -> Prediction:
    """Cost the step that `hlo_text` describes.

    Args:
      hlo_text: optimised HLO of one device's program, as `compiled.as_text()` prints it.
      rates: of the chip.
      attention: of attention kernels; None: they are costed by their bytes, and a note says so.

    Raises:
      UserError: the text is no HLO.
    """
    coster = _Coster(parse(hlo_text), rates, attention)
    merged: dict[str, Kernel] = {}
    for kernel in coster.kernels(coster.module.entry, 1):
        before = merged.get(kernel.name)
        sums = "runs", "flops", "memory_bytes", "link_bytes", "seconds"
        merged[kernel.name] = kernel if before is None else replace(
            kernel, **{key: getattr(kernel, key) + getattr(before, key) for key in sums}
        )  # fmt: skip
    ordered = sorted(merged.values(), key=lambda kernel: -kernel.seconds)
    return Prediction(tuple(ordered), tuple(dict.fromkeys(coster.notes)))


@dataclass
class _Coster:
    module: Module
    rates: Rates
    attention: Attention | None
    notes: list[str] = field(default_factory=list)
    works: dict[str, Work] = field(default_factory=dict)

    def kernels(self, computation: Computation, runs: int) -> Iterator[Kernel]:
        """All that the computation starts, loops and branches followed."""
        for x in computation:
            if x.opcode in FREE or x.opcode.endswith("-done"):
                continue
            if x.opcode == "while":
                trips = x.text(r"known_trip_count\W+n\W+(\d+)")
                if not trips:
                    self.notes.append(f"loop {x.name}: its trip count is unknown; counted once.")
                for name in x.called("body") + x.called("condition"):
                    yield from self.kernels(self.module.computations[name], runs * int(trips or 1))
            elif x.opcode == "conditional":
                keys = "branch_computations", "true_computation", "false_computation"
                names = [name for key in keys for name in x.called(key)]
                branches = [list(self.kernels(self.module.computations[n], runs)) for n in names]
                yield from max(branches, key=lambda branch: sum(k.seconds for k in branch))
            elif x.opcode in ("call", "async-start"):
                for name in x.called("to_apply") + x.called("calls"):
                    yield from self.kernels(self.module.computations[name], runs)
            else:
                yield self._kernel(computation, x, runs)

    def _kernel(self, computation: Computation, x: Instruction, runs: int) -> Kernel:
        operands = computation.operands_of(x)
        work = self._work(computation, x, in_place=True)
        read = sum(
            y.arrays[0].memory_bytes * min(1.0, elements / y.elements)
            for y, elements in zip(operands, work.read_elements, strict=False)
            if y.elements
        )
        flops, memory_bytes = work.flops, read + work.written_bytes
        seconds = max(
            flops / self.rates.matrix_flops,
            memory_bytes / self.rates.memory_bytes_per_second,
            work.link_bytes / self.rates.link_bytes_per_second,
        )
        kind = "link" if work.link_bytes else "matrix" if flops else "memory"
        if x.opcode == "custom-call" and not flops:
            pairs_flops, forward = _attention_flops(x, operands)
            if pairs_flops and self.attention:
                rates = self.attention
                kind, flops = "attention", pairs_flops * rates.pairs_share
                fast = rates.forward_flops if forward else rates.backward_flops
                seconds = max(seconds, flops / fast)
            else:
                target = x.text(r'custom_call_target="([^"]*)')
                self.notes.append(f"custom call {target}: costed by its bytes alone.")
        return Kernel(
            name=x.name,
            kind=kind,
            runs=runs,
            flops=flops * runs,
            memory_bytes=memory_bytes * runs,
            link_bytes=work.link_bytes * runs,
            seconds=max(seconds, self.rates.kernel_seconds) * runs,
            op_name=x.text(_OP_NAME),
            source=self.module.source_of(x),
        )

    def _inside(self, computation: Computation) -> Work:
        """One run of a fusion: operands as far as its results need them, results, products."""
        if computation.name in self.works:
            return self.works[computation.name]
        needed = dict.fromkeys(computation.instructions, 0.0)
        root = computation.instructions[computation.root]
        in_place: set[str] = set()
        flops = written = link = 0.0
        for result in computation.operands_of(root) if root.opcode == "tuple" else [root]:
            needed[result.name] = result.elements
            changed, x = [], result
            # Updates at a result's end are made in the operand's own memory.
            while x.opcode in ("bitcast", "dynamic-update-slice", "scatter"):
                changed += [x] if x.opcode != "bitcast" else []
                x = computation.operands_of(x)[0]
            in_place |= {x.name for x in changed}
            if not changed:
                written += sum(array.memory_bytes for array in result.arrays)
        for x in reversed(list(computation)):
            if not needed[x.name] or x.opcode == "parameter":
                continue
            work = self._work(computation, x, x.name in in_place)
            flops, link = flops + work.flops, link + work.link_bytes
            written += work.written_bytes if x.name in in_place else 0
            share = min(1.0, needed[x.name] / x.elements)
            for name, elements in zip(x.operands, work.read_elements, strict=False):
                whole = computation.instructions[name].elements
                needed[name] = min(whole, needed[name] + share * elements)
        if computation.name.startswith("all-reduce-scatter"):
            link /= 2  # a TPU's reduce-scatter, written as an all-reduce and a slice
        reads = tuple(needed[x.name] for x in computation.parameters)
        work = self.works[computation.name] = Work(flops, reads, written, link)
        return work

    def _work(self, computation: Computation, x: Instruction, in_place: bool) -> Work:
        """One run of an instruction, all of whose results are needed."""
        operands, opcode = computation.operands_of(x), x.opcode.removesuffix("-start")
        if opcode == "fusion":
            (name,) = x.called("calls")
            return self._inside(self.module.computations[name])
        reads = [float(operand.elements) for operand in operands]
        results = x.arrays[:1] if x.opcode == "copy-start" else x.arrays
        flops = 0.0
        if opcode in COLLECTIVES:
            # Slower links hide what it reads and writes here.
            sent = sum(a.elements * a.item_bytes for y in operands for a in y.arrays)
            return Work(link_bytes=sent * _ring(opcode, self._group(x)))
        if opcode in ("slice", "dynamic-slice", "gather"):
            reads[0] = min(reads[0], x.elements)
        elif opcode == "dynamic-update-slice" and in_place:
            reads[0], results = 0.0, operands[1].arrays
        elif opcode == "scatter" and in_place:
            count = len(operands) // 2
            updates = operands[-count:]
            reads[:count] = [update.elements for update in updates]
            results = tuple(update.arrays[0] for update in updates)
        elif opcode == "dot":
            flops = _product(x, operands, "lhs_contracting_dims")
        elif opcode == "convolution":
            flops = _convolution(x, operands[0].arrays[0], operands[1].arrays[0])
        elif opcode == "custom-call":
            if "__cublas" in x.attributes:
                flops = _product(x, operands, "lhs_contracting_dimensions")
            results = tuple(a for a in results if not (a.item_bytes == 1 and len(a.dims) == 1))
        if flops and operands[0].arrays[0].item_bytes > 2:
            self.notes.append(f"{x.name} multiplies {operands[0].arrays[0].dtype} at bf16's rate.")
        return Work(flops, tuple(reads), sum(array.memory_bytes for array in results))

    def _group(self, x: Instruction) -> int:
        """Devices that a collective joins."""
        mesh = re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", x.attributes)
        if mesh:
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
            axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
            return math.prod(int(part or sizes[axis]) for axis, part in axes)
        if rows := x.text(r"replica_groups=\[\d+,(\d+)\]"):
            return int(rows)
        first = x.text(r"replica_groups=\{\{([\d,]+)\}")
        return first.count(",") + 1 if first else self.module.partitions


def _ring(opcode: str, group: int) -> float:
    """Bytes that a device sends, to those that it puts in."""
    part = (group - 1) / group
    return {"all-reduce": 2 * part, "all-gather": group - 1.0, "collective-permute": 1.0}.get(
        opcode, part
    )


def _product(x: Instruction, operands: Sequence[Instruction], key: str) -> float:
    lhs = operands[0].arrays[0]
    return 2.0 * x.arrays[0].elements * math.prod(lhs.dims[i] for i in x.numbers(key))


def _convolution(x: Instruction, lhs: Array, rhs: Array) -> float:
    """A TPU's matrix product; a batch of them is a window whose dilation lets few pairs meet."""
    left, right, out = re.split("_|->", x.text(r"dim_labels=([\w>-]+)"))
    window = dict(re.findall(r"(\w+)=(\S+)", x.text(r"window=\{([^}]*)\}")))
    products = lhs.dims[left.index("b")] * math.prod(rhs.dims[right.index(i)] for i in "io")
    for axis in map(str, range(len(left) - 2)):

        def of(key: str, default: int, axis: str = axis) -> int:
            return (
                int(window[key].split("x")[int(axis)].split("_")[0]) if key in window else default
            )

        stride, spread, gap = of("stride", 1), of("rhs_dilate", 1), of("lhs_dilate", 1)
        end = (lhs.dims[left.index(axis)] - 1) * gap
        places = (
            at * stride + tap * spread - of("pad", 0)
            for at in range(x.arrays[0].dims[out.index(axis)])
            for tap in range(of("size", 1))
        )
        products *= sum(0 <= place <= end and place % gap == 0 for place in places)
    return 2.0 * products / int(x.text(r"batch_group_count=(\d+)") or 1)


def _attention_flops(x: Instruction, operands: Sequence[Instruction]) -> tuple[float, bool]:
    """FLOPs of all pairs and whether it is the forward pass; 0 for what is no attention kernel."""
    target = x.text(r'custom_call_target="([^"]*)')
    name = f"{x.name} {x.text(_OP_NAME)} {target}"
    known = re.search(r"^(__cudnn\$fmha|mosaic_gpu|__gpu\$xla.gpu.triton|tpu_custom_call)", target)
    if not known or not re.search("fmha|attention|splash|flash", name):
        return 0.0, False
    passes = ("dkv|d_key_value", 40 / 7), ("dq|d_query", 30 / 7), ("bwd|[Bb]ackward", 10.0)
    flops = next((flops for pattern, flops in passes if re.search(pattern, name)), 4.0)
    # Queries, keys, values and gradients: [B, T, heads…, h], on a TPU [B, heads, T, h].
    arrays = [y.arrays[0] for y in operands if len(y.arrays[0].dims) > 3]
    axis = -2 if target == "tpu_custom_call" else 1
    narrow = min((a.item_bytes for a in arrays), default=0)  # others are statistics
    tokens = [(a.dims[axis], a.elements) for a in arrays if a.item_bytes == narrow]
    if not tokens:
        return 0.0, False
    # Keys may be more than queries (gathered from other devices), queries have more heads.
    rows = min(length for length, _ in tokens)
    queries = max(elements for length, elements in tokens if length == rows)
    return flops * queries * max(length for length, _ in tokens), flops == 4.0
