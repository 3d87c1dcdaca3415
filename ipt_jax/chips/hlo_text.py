"""A compiled program's HLO as its compiler prints it (`compiled.as_text()`), read into values."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ipt_jax.core.errors import UserError

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
_BEGIN = re.compile(r"^\s+(?:ROOT )?%\S+ = ")
# A shape is one word, or a tuple in parentheses that ends where the opcode follows.
_INSTRUCTION = re.compile(
    r"\s+(ROOT )?%(\S+) = (\(.*?\)|\S+) ([a-z][\w-]*)\(([^)]*)\)(.*)", re.DOTALL
)
_NAME = re.compile(r"%([^\s,(){}]+)")


@dataclass(frozen=True)
class Array:
    """One array in a shape."""

    dtype: str
    """As HLO writes it: `bf16`, `s32`, `pred`."""
    dims: tuple[int, ...]
    """Its extent in each dimension."""
    near: bool = False
    """In a TPU core's own memory (space 1 of a tiled layout), not in the chip's."""

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
    value: int | None
    """Of a constant that is a whole number; a parameter's number."""
    attributes: str
    """What follows the operands, as it stands."""

    @property
    def elements(self) -> int:
        """Of all results."""
        return sum(array.elements for array in self.arrays)

    def text(self, pattern: str) -> str:
        """The first group of the pattern's first match in the attributes; empty for none."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""

    def called(self, *keys: str) -> list[str]:
        """Computations that these attributes name."""
        named = (self.text(rf"\b{key}=(\{{.*?\}}|%[^\s,]+)") for key in keys)
        return [name for value in named for name in _NAME.findall(value)]

    def numbers(self, key: str) -> list[int]:
        """Of an attribute such as `lhs_contracting_dims={1,2}`, or of its like in JSON."""
        return list(map(int, re.findall(r"\d+", self.text(rf'\b{key}"?[=:]\s*([{{\[][^}}\]]*)'))))


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
    """Stack frame id -> `file:line` of the Python that asked for it, after its caller's."""


def parse(text: str) -> Module:
    """Read a module.

    Raises:
      UserError: the text is no HLO, ends within a computation, or has a line of another form.
    """
    if not text.startswith("HloModule"):
        begin = text.lstrip().partition("\n")[0][:60]
        raise UserError(
            f"this is no HLO: it begins {begin!r}, not HloModule", advice="dump `as_text()`"
        )
    computations: dict[str, Computation] = {}
    entry, current, lines = "", None, []
    for line in text.splitlines():
        if current is None:
            if header := _HEADER.match(line):
                current = computations[header[2]] = Computation(header[2])
                entry = header[2] if header[1] else entry
        elif line.rstrip() == "}":
            for whole in lines:
                _add(current, whole)
            current, lines = None, []
        elif _BEGIN.match(line) or not lines:
            lines.append(line)
        else:
            lines[-1] += "\n" + line  # a kernel's metadata may hold line ends
    if not entry or current is not None:
        what = f"computation {current.name} has no end" if current else "it has no ENTRY"
        raise UserError(f"this HLO is not whole: {what}", advice="dump it again")
    partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    count = int(partitions[1]) if partitions else 1
    return Module(computations, computations[entry], count, _frames(text))


def _add(computation: Computation, line: str) -> None:
    if (found := _INSTRUCTION.match(line)) is None:
        raise UserError(f"this HLO has a line that cannot be read: {line.strip()[:80]!r}.")
    root, name, shape, opcode, inside, attributes = found.groups()
    arrays = tuple(
        Array(
            dtype,
            tuple(int(size.strip("<=")) for size in dims.split(",") if size),
            "T(" in layout and "S(1)" in layout,
        )
        for dtype, dims, layout in _ARRAY.findall(shape)
    )
    value = int(inside) if inside.isdecimal() else None
    computation.instructions[name] = Instruction(
        name, opcode, arrays, tuple(_NAME.findall(inside)), value, attributes
    )
    computation.root = name if root else computation.root


def _frames(text: str) -> dict[str, str]:
    """From the tables in front of the computations; of a stack the two innermost frames."""
    files = dict(re.findall(r'^(\d+) "(.*\.py)"$', text, re.MULTILINE))
    places = re.findall(r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)", text, re.MULTILINE)
    lines = {key: f"{files.get(file, '?')}:{line}" for key, file, line in places}
    frames = re.findall(r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?", text, re.M)
    place = {key: lines.get(location, "?") for key, location, _ in frames}
    # Parents are counted from 1, where 1 is none.
    callers = {key: place.get(str(int(parent or 1) - 1), "") for key, _, parent in frames}
    return {key: " > ".join(filter(None, (callers[key], place[key]))) for key in place}
