"""Optimized HLO as text: computations, their instructions, and how often loops run.

The text is ``compiled.as_text()``. A loop's trips stand in its configuration or, where the TPU
compiler drops them, follow from the counter that its condition compares: the first value, the step
and the bound, which may come from loops around it.
"""

import math
import re
from typing import NamedTuple

BITS = {"pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16}
BITS |= {"f16": 16, "bf16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64}
BITS |= {"c64": 64, "c128": 128}  # kinds of f8 have 8, tokens none
PASSED_ON = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "opt-barrier")
MIRRORED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE"}

_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,<=]*)\]")
_HEADER = re.compile(r"(ENTRY )?%?([^\s(]+) \(.*\{\s*(?:/\*.*\*/)?$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([^\s=]+) = (.*)", re.DOTALL)
_OPERAND = re.compile(r"(?:^|[\s,])%?([A-Za-z_][\w.\-]*)(?=\s*(?:,|$))")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')


class Instruction:
    """One line of a computation."""

    def __init__(self, name: str, root: bool, text: str):
        self.name, self.is_root = name, root
        end = _closing(text) if text.startswith("(") else text.index(" ")
        self.type, text = text[:end], text[end:].lstrip()
        self.opcode, _, text = text.partition("(")
        end = _closing("(" + text) - 1
        self.argument = re.sub(r"/\*.*?\*/", "", text[: end - 1])  # of constants and parameters
        self.operands = _OPERAND.findall(self.argument)
        self.attributes = text[end:]

    def attribute(self, name: str) -> str:
        """A computation or a number among the attributes, "" for none."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    @property
    def cycles(self) -> int | None:
        found = _CYCLES.search(self.attributes)
        return int(found[1]) if found and int(found[1]) < 2**60 else None  # else: unknown

    @property
    def shape(self) -> list[int]:
        """Of an array, or of the first one of a tuple."""
        return _dimensions(_ARRAY.search(self.type)[2])

    @property
    def num_bytes(self) -> int:
        """Of the array, or of all of a tuple."""
        return sum(
            math.prod(_dimensions(sizes)) * BITS.get(kind, 8 if kind.startswith("f8") else 0)
            for kind, sizes in _ARRAY.findall(self.type)
        ) // 8  # fmt: skip


def _dimensions(text: str) -> list[int]:
    return [int(size.lstrip("<=")) for size in text.split(",") if size]


def _closing(text: str) -> int:
    """Behind the parenthesis that closes the one that ``text`` begins with."""
    depth = 0
    for found in re.finditer(r'[()]|"(?:[^"\\]|\\.)*"', text):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if not depth:
            return found.end()
    return len(text)


class Computation(dict[str, Instruction]):
    """Instructions by name, in order."""

    @property
    def root(self) -> Instruction:
        return next(x for x in reversed(self.values()) if x.is_root)


class Module(NamedTuple):
    """A program for each of ``num_partitions`` devices."""

    computations: dict[str, Computation]
    entry: str
    num_partitions: int


def parse(text: str) -> Module:
    """The computations of a module's text."""
    computations, entry, current, pending = {}, "", None, []

    def finish():
        if pending:
            root, name, rest = _INSTRUCTION.match(" ".join(pending)).groups()
            current[name] = Instruction(name, bool(root), rest)
            pending.clear()

    for line in text.split("\n"):
        if current is None:
            if header := _HEADER.match(line):
                current = computations[header[2]] = Computation()
                entry = header[2] if header[1] else entry
        elif re.match(r"\}(,|$)", line):  # "}}": of a kernel's metadata, which holds line breaks
            finish()
            current = None
        elif _INSTRUCTION.match(line):
            finish()
            pending.append(line)
        elif pending:
            pending.append(line)  # metadata may hold line breaks
    partitions = re.search(r"num_partitions=(\d+)", text)
    return Module(computations, entry, int(partitions[1]) if partitions else 1)


class Value(NamedTuple):
    """A whole number: ``offset``, plus element ``source`` of the computation's tuple, if any.

    ``source`` is (parameter, element of the tuple that it is; None: it is no tuple).
    """

    source: tuple[int, int | None] | None
    offset: int = 0


Given = list[Value | None] | None


class Loop(NamedTuple):
    """A ``while`` and the computation that it stands in."""

    outside: str
    instruction: Instruction


class Reader:
    """Values of counters and bounds in a module."""

    def __init__(self, module: Module):
        self.computations = module.computations

    def value(self, where: str, name: str, given: Given = None) -> Value | None:
        """What an instruction of a computation comes to, if it is so simple.

        ``given``: within a fusion, what its parameters are outside.
        """
        this = self.computations[where].get(name)
        if this is None:
            return None
        if this.opcode == "constant":
            number = re.fullmatch(r"\s*(-?\d+)\s*", this.argument)
            return Value(None, int(number[1])) if number else None
        if this.opcode == "parameter":
            parameter = int(this.argument)
            return Value((parameter, None)) if given is None else given[parameter]
        if this.opcode in PASSED_ON:
            return self.value(where, this.operands[0], given)
        if this.opcode == "get-tuple-element" and given is None:  # fusions are given no tuples
            return self.element(where, this.operands[0], int(this.attribute("index")))
        if this.opcode == "fusion":
            inside = this.attribute("calls")
            return self.value(
                inside, self.computations[inside].root.name, self._given(where, this, given)
            )
        if this.opcode in ("add", "subtract"):
            first, second = (self.value(where, operand, given) for operand in this.operands)
            if first is None or second is None:
                return None
            if this.opcode == "add" and first.source is None:
                first, second = second, first
            sign = 1 if this.opcode == "add" else -1
            if second.source is None:
                return Value(first.source, first.offset + sign * second.offset)
        return None

    def element(self, where: str, name: str, index: int) -> Value | None:
        """As `value`, of an element of a tuple."""
        this = self.computations[where].get(name)
        if this is None:
            return None
        if this.opcode == "parameter":
            return Value((int(this.argument), index))
        if this.opcode == "tuple":
            return self.value(where, this.operands[index])
        if this.opcode in PASSED_ON:
            return self.element(where, this.operands[0], index)
        if this.opcode == "while" and self.is_invariant(this, index):
            return self.element(where, this.operands[0], index)
        return None

    def is_invariant(self, loop: Instruction, index: int) -> bool:
        """Whether no iteration changes an element of a loop's tuple."""
        return self._after(loop, index) == Value((0, index))

    def _after(self, loop: Instruction, index: int) -> Value | None:
        body = loop.attribute("body")
        return self.element(body, self.computations[body].root.name, index)

    def _given(self, where: str, fusion: Instruction, given: Given) -> Given:
        """What a fusion's parameters are in the computation around it."""
        return [self.value(where, operand, given) for operand in fusion.operands]

    def number(self, value: Value | None, loops: tuple[Loop, ...]) -> int | None:
        """A value inside the innermost of ``loops`` as a number, if all of them leave it alone."""
        if value is None or value.source is None:
            return value and value.offset
        index = value.source[1]
        if not loops or index is None or not self.is_invariant(loops[-1].instruction, index):
            return None
        start = self._start(loops, index)
        return None if start is None else start + value.offset

    def _start(self, loops: tuple[Loop, ...], index: int) -> int | None:
        """With what an element of the innermost loop's tuple begins."""
        outside, loop = loops[-1]
        return self.number(self.element(outside, loop.operands[0], index), loops[:-1])

    def trips(self, loops: tuple[Loop, ...]) -> int | None:
        """How often the innermost loop runs each time that the ones around it come to it."""
        loop = loops[-1].instruction
        if known := re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        where = loop.attribute("condition")
        compare, given = self.computations[where].root, None
        while compare.opcode in ("fusion", *PASSED_ON):
            if compare.opcode == "fusion":
                given = self._given(where, compare, given)
                where = compare.attribute("calls")
                compare = self.computations[where].root
            else:
                compare = self.computations[where][compare.operands[0]]
        if compare.opcode != "compare" or len(compare.operands) != 2:
            return None
        sides = [self.value(where, operand, given) for operand in compare.operands]
        direction = compare.attribute("direction")
        for (counter, bound), way in (
            (sides, direction),
            (sides[::-1], MIRRORED.get(direction, "")),
        ):
            if counter is None or counter.source is None:
                continue
            index = counter.source[1]
            after = None if index is None else self._after(loop, index)
            if after is None or after.source != (0, index) or not after.offset:
                continue
            first, last = self._start(loops, index), self.number(bound, loops)
            if first is not None and last is not None:
                return _trips(first + counter.offset, last, after.offset, way)
        return None


def _trips(first: int, last: int, step: int, direction: str) -> int | None:
    """Of a counter that goes on while it is LT, LE, GT, GE or NE ``last``."""
    if direction in ("GT", "GE"):
        first, last, step = -first, -last, -step
    elif direction == "NE":
        first, last, step = (first, last, step) if step > 0 else (-first, -last, -step)
    if step < 0 or direction not in MIRRORED:
        return None
    return max(0, -(-(last + (direction in ("LE", "GE")) - first) // step))
