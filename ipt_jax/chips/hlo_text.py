"""A compiled program's HLO as its compiler prints it (`compiled.as_text()`), read into values."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from ipt_jax.errors import UserError

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%([^\s(]+) \(.*\{$")
_BEGIN = re.compile(r"^\s+(?:ROOT )?%[^\s=]+ = ")
# A shape is one word, or a tuple in parentheses that ends where the opcode follows.
_INSTRUCTION = re.compile(
    r"^\s+(?P<root>ROOT )?%(?P<name>[^\s=]+) = (?P<shape>\(.*?\)|\S+) (?P<opcode>[a-z][\w-]*)\(",
    re.DOTALL,
)
_CALLED = re.compile(r"%([^\s,(){}]+)")


@dataclass(frozen=True)
class Array:
    """One array in a shape."""

    dtype: str
    """As HLO writes it: `bf16`, `s32`, `pred`."""
    dims: tuple[int, ...]
    """Its extent in each dimension."""
    near: bool = False
    """In a TPU core's own memory (space 1 of a tiled layout), which costs the chip's none."""

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.dims)

    @property
    def item_bytes(self) -> float:
        """Of one number; 0 for a token."""
        bits = re.match(r"[a-z]+(\d+)", self.dtype)
        return int(bits[1]) / 8 if bits else float(self.dtype == "pred")

    @property
    def memory_bytes(self) -> float:
        """In the chip's memory, without what a tiled layout pads."""
        return 0.0 if self.near else self.elements * self.item_bytes


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    """Unique within its computation."""
    opcode: str
    """`fusion`, `dot`, `while`, …"""
    arrays: tuple[Array, ...]
    """Its results; those of a tuple in order, inner tuples opened."""
    operands: tuple[str, ...]
    """Names within the same computation."""
    attributes: str
    """What follows the operands, as it stands."""

    @property
    def elements(self) -> int:
        """Of all results."""
        return sum(array.elements for array in self.arrays)

    def called(self, key: str) -> list[str]:
        """Computations that the attribute `key` names."""
        found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%[^\s,]+)", self.attributes)
        return _CALLED.findall(found[1]) if found else []

    def numbers(self, key: str) -> list[int]:
        """Of an attribute such as `lhs_contracting_dims={1,2}`, or of its like in JSON."""
        found = re.search(rf'\b{key}"?[=:]\s*[{{\[]([^}}\]]*)', self.attributes)
        return [int(number) for number in re.findall(r"\d+", found[1])] if found else []

    def text(self, pattern: str) -> str:
        """The first group of the pattern's first match in the attributes; empty for none."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""


@dataclass
class Computation:
    """A function of the program: a loop's body, a fusion's inside, the program itself."""

    name: str
    """Unique in the module."""
    instructions: dict[str, Instruction] = field(default_factory=dict)
    """By name, each behind its operands."""
    root: str = ""
    """The instruction whose value it returns."""

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def operands_of(self, instruction: Instruction) -> list[Instruction]:
        """The instructions whose results it takes."""
        return [self.instructions[name] for name in instruction.operands]

    @cached_property
    def parameters(self) -> list[Instruction]:
        """In the order of its caller's operands."""
        found = [x for x in self if x.opcode == "parameter"]
        return sorted(found, key=lambda x: int(x.attributes.partition(")")[0] or 0))


@dataclass
class Module:
    """A compiled program."""

    computations: dict[str, Computation]
    """By name."""
    entry: Computation
    """Where it begins."""
    partitions: int
    """Devices that run it together, each on its share; shapes are one device's."""
    frames: dict[str, str]
    """Stack frame id -> `file:line` of the Python that asked for an instruction."""

    def source_of(self, instruction: Instruction) -> str:
        """`file:line` of the Python that asked for it; empty where the compiler did."""
        frame = self.frames.get(instruction.text(r"stack_frame_id=(\d+)"), "")
        return frame or ":".join(
            filter(None, map(instruction.text, (r'source_file="([^"]*)', r"source_line=(\d+)")))
        )


def parse(text: str) -> Module:
    """Read a module.

    Raises:
      UserError: the text is no HLO, or ends within a computation.
    """
    if not text.startswith("HloModule"):
        begin = text.strip().split("\n")[0][:60]
        raise UserError(f"this is no HLO: it begins {begin!r}, not HloModule; dump `as_text()`.")
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    entry, lines = "", []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header and current is None:
            current = computations[header[2]] = Computation(header[2])
            entry = header[2] if header[1] else entry
        elif current is not None and line.rstrip() == "}":
            for joined in lines:
                _add(current, joined)
            current, lines = None, []
        elif current is not None and (_BEGIN.match(line) or not lines):
            lines.append(line)
        elif current is not None:
            lines[-1] += "\n" + line  # a kernel's metadata may hold line ends
    if not entry or current is not None:
        what = f"computation {current.name} has no end" if current else "it has no ENTRY"
        raise UserError(f"this HLO is not whole: {what}; dump it again.")
    partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    count = int(partitions[1]) if partitions else 1
    return Module(computations, computations[entry], count, _frames(text))


def _add(computation: Computation, line: str) -> None:
    found = _INSTRUCTION.match(line)
    if found is None:
        raise UserError(f"this HLO has a line that cannot be read: {line.strip()[:80]!r}.")
    depth, end = 1, found.end()
    while depth and end < len(line):
        depth += {"(": 1, ")": -1}.get(line[end], 0)
        end += 1
    inside = line[found.end() : end - 1]
    plain = found["opcode"] in ("parameter", "constant")
    instruction = Instruction(
        name=found["name"],
        opcode=found["opcode"],
        arrays=_arrays(found["shape"]),
        operands=() if plain else tuple(_CALLED.findall(inside)),
        attributes=line[found.end() :] if plain else line[end:],
    )
    computation.instructions[instruction.name] = instruction
    if found["root"]:
        computation.root = instruction.name


def _arrays(shape: str) -> tuple[Array, ...]:
    return tuple(
        Array(
            dtype,
            tuple(int(size.lstrip("<=")) for size in dims.split(",") if size),
            "T(" in layout and "S(1)" in layout,
        )
        for dtype, dims, layout in _ARRAY.findall(shape)
    )


def _frames(text: str) -> dict[str, str]:
    """Of the tables in front of the computations, in which only the innermost frame is followed."""
    files = dict(re.findall(r'^(\d+) "(.*\.py)"$', text, re.MULTILINE))
    places = re.findall(r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)", text, re.MULTILINE)
    lines = {key: f"{files.get(file, '?')}:{line}" for key, file, line in places}
    frames = re.findall(r"^(\d+) \{file_location_id=(\d+)", text, re.MULTILINE)
    return {key: lines.get(place, "") for key, place in frames}
