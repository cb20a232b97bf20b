"""What a compiled program costs a device: FLOPs, cycles and collectives, loops weighted.

XLA's own ``cost_analysis`` counts the body of a loop once, so a scan over layers as one layer; here
everything counts as often as it runs.

Cycles are the TPU compiler's ``estimated_cycles``: of the instruction that carries them, whatever
it calls (instructions within a fusion keep stale ones). Collectives, asynchronous copies and
kernels (custom calls, such as Pallas's) carry none; other compilers give none at all.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pretrain.hlo import Computation, Instruction, Loop, Module, Reader, parse

MATMULS = ("dot", "convolution")
BY_ALL_REDUCE = "all-gather by all-reduce"  # of shards that are padded with zeros
COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
BOOKKEEPING = (  # custom calls that stand for no work
    *("AllocateBuffer", "ConcatBitcast", "BitcastConcat", "Sharding", "AsyncCollectiveStart"),
    *("AsyncCollectiveDone", "AssumeGatherIndicesInBound"),
)


class Step(NamedTuple):
    """An instruction that runs ``times`` times; ``around``: fusions that it is part of."""

    instruction: Instruction
    computation: Computation
    times: int
    around: tuple[Instruction, ...]
    costed: bool  # the cycles of a fusion around it are its
    first: bool  # of the pieces that an asynchronous collective is cut into


class _Walk:
    def __init__(self, module: Module):
        self.computations = module.computations
        self.reader = Reader(module)
        self.unknown: set[str] = set()

    def steps(
        self,
        where: str,
        times: int = 1,
        loops: tuple[Loop, ...] = (),
        around: tuple[Instruction, ...] = (),
        costed: bool = False,
        channels: set | None = None,
    ) -> Iterator[Step]:
        """All that a computation runs, with what it calls."""
        computation = self.computations[where]
        channels = set() if channels is None else channels
        for this in computation.values():
            channel = (this.opcode, this.attribute("channel_id"))
            first = not around or not channel[1] or channel not in channels
            if around:
                channels.add(channel)
            yield Step(this, computation, times, around, costed, first)
            inner = costed or this.cycles is not None
            if this.opcode == "while":
                nested = (*loops, Loop(where, this))
                if (trips := self.reader.trips(nested)) is None:
                    self.unknown.add(f"{where}/{this.name}")
                    trips = 1
                yield from self.steps(this.attribute("body"), times * trips, nested)
            elif this.opcode == "conditional":
                runs = [list(self.steps(name, times, loops)) for name in _branches(this)]
                yield from max(runs, key=_dearness)
            elif this.opcode in ("fusion", "call", "async-start"):
                called = this.attribute("calls") or this.attribute("to_apply")
                inside = around if this.opcode == "call" else (*around, this)
                shared = channels if this.opcode == "fusion" else None
                yield from self.steps(called, times, loops, inside, inner, shared)


def _branches(conditional: Instruction) -> list[str]:
    if found := re.search(r"branch_computations=\{([^}]*)\}", conditional.attributes):
        return [name.strip().lstrip("%") for name in found[1].split(",")]
    return [conditional.attribute(f"{name}_computation") for name in ("true", "false")]


def _dearness(steps: list[Step]) -> tuple[int, int]:
    return sum(map(_own_cycles, steps)), sum(map(_own_flops, steps))


def _own_cycles(step: Step) -> int:
    if step.costed or step.instruction.opcode == "while":
        return 0
    return step.times * (step.instruction.cycles or 0)


def _own_flops(step: Step) -> int:
    this = step.instruction
    if this.opcode not in MATMULS and '"dot_dimension_numbers"' not in this.attributes:
        return 0
    return step.times * matmul_flops(step.computation, this)


@dataclasses.dataclass
class Traffic:
    """Of one kind of collective, on one device, in bytes.

    ``payload``: what is communicated; ``wire``: what each device sends with ring algorithms.
    ``synchronous``: of ``wire``, what is not issued ahead, so that nothing can hide it.
    """

    count: int = 0
    payload: float = 0.0
    wire: float = 0.0
    synchronous: float = 0.0


@dataclasses.dataclass
class Costs:
    """What one run of a program costs a device."""

    cycles: int = 0
    matmul_cycles: int = 0
    flops: int = 0  # of matrix products and convolutions
    collectives: dict[str, Traffic] = dataclasses.field(default_factory=dict)
    kernels: dict[str, int] = dataclasses.field(default_factory=dict)  # calls without cycles
    unknown_loops: tuple[str, ...] = ()  # counted once

    @property
    def wire(self) -> float:
        return sum(traffic.wire for traffic in self.collectives.values())

    @property
    def synchronous(self) -> float:
        return sum(traffic.synchronous for traffic in self.collectives.values())


def costs(text: str) -> Costs:
    """Reads the text of a compiled program."""
    module = parse(text)
    walk, total = _Walk(module), Costs()
    for step in walk.steps(module.entry):
        this = step.instruction
        if cycles := _own_cycles(step):
            total.cycles += cycles
            total.matmul_cycles += cycles * _is_matmul(module, this)
        total.flops += (flops := _own_flops(step))
        if this.opcode == "custom-call" and this.cycles is None and not flops:
            target = re.search(r'custom_call_target="([^"]*)"', this.attributes)[1]
            if target not in BOOKKEEPING:
                name = f"{target}:{this.name.rstrip('.0123456789')}"
                total.kernels[name] = total.kernels.get(name, 0) + step.times
        kind = this.opcode.removesuffix("-start")
        if kind in COLLECTIVES and step.first:
            _add_collective(total.collectives, module, step, kind)
    total.unknown_loops = tuple(sorted(walk.unknown))
    return total


def _is_matmul(module: Module, this: Instruction) -> bool:
    if this.opcode != "fusion":
        return this.opcode in MATMULS
    inside = module.computations[this.attribute("calls")].values()
    return any(_is_matmul(module, x) for x in inside)


def _add_collective(found: dict[str, Traffic], module: Module, step: Step, kind: str) -> None:
    this, computation = step.instruction, step.computation
    devices = group_size(this.attributes, module.num_partitions)
    size = sum(computation[name].num_bytes for name in this.operands)
    hidden = this.opcode.endswith("-start")
    if any("all-reduce-scatter" in outer.attribute("calls") for outer in step.around):
        kind = "reduce-scatter"
    elif step.around:
        outer = step.around[0]
        hidden |= any("async" in x for x in (outer.opcode, outer.name, outer.attribute("calls")))
    name = kind
    if kind == "all-reduce":
        padded = sum(
            computation[x].num_bytes for x in this.operands if _is_update(module, computation[x])
        )
        name = BY_ALL_REDUCE if 2 * padded > size else name
    payload = size * devices if kind == "all-gather" else size
    wire = payload
    if "permute" not in kind and "broadcast" not in kind:
        wire *= (2 if kind == "all-reduce" else 1) * (devices - 1) / devices
    traffic = found.setdefault(name, Traffic())
    traffic.count += step.times
    traffic.payload += step.times * payload
    traffic.wire += step.times * wire
    traffic.synchronous += 0 if hidden else step.times * wire


def _is_update(module: Module, this: Instruction) -> bool:
    """Whether an array was made by writing a part of it."""
    if this.opcode == "fusion":
        this = module.computations[this.attribute("calls")].root
    return this.opcode == "dynamic-update-slice"


def group_size(attributes: str, num_partitions: int) -> int:
    """How many devices take part in each group of a collective."""
    groups = re.search(r"replica_groups=(.*)", attributes, re.DOTALL)
    text = groups[1] if groups else ""
    if iota := re.match(r"\[\d+,(\d+)\]<=", text):
        return int(iota[1])
    if listed := re.match(r"\{\{([\d,]+)\}", text):
        return listed[1].count(",") + 1
    if mesh := re.match(r"mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):  # {'x':(before)size} is a part
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    return num_partitions


def matmul_flops(computation: Computation, this: Instruction) -> int:
    """Of a ``dot``, a ``convolution`` or a library's product; a multiply-add counts as two."""
    left = computation[this.operands[0]].shape
    if this.opcode == "convolution":
        return _convolution_flops(left, computation[this.operands[1]].shape, this)
    dims = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:]\s*[{\[]([\d,"\s]*)', this.attributes)
    contracted = [left[int(d)] for d in re.findall(r"\d+", dims[1])]
    return 2 * math.prod(this.shape) * math.prod(contracted)


def _convolution_flops(left: list[int], right: list[int], this: Instruction) -> int:
    """By XLA's rule: a position counts where the window lies on real input.

    The TPU compiler writes matrix products as convolutions, batch dimensions as spatial ones.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", this.attributes)
    window = re.search(r"window=\{([^}]*)\}", this.attributes)
    window = dict(part.split("=") for part in window[1].split()) if window else {}
    spatial = sorted(x for x in labels[1] if x.isdigit())

    def sizes(name: str, default: str) -> list[str]:
        return window[name].split("x") if name in window else [default] * len(spatial)

    names = ("size", "1"), ("stride", "1"), ("pad", "0_0"), ("lhs_dilate", "1"), ("rhs_dilate", "1")
    positions = math.prod(
        _positions(
            left[labels[1].index(label)],
            this.shape[labels[3].index(label)],
            *(int(x.partition("_")[0]) for x in options),
        )
        for label, *options in zip(spatial, *(sizes(*name) for name in names), strict=True)
    )
    features = left[labels[1].index("f")] // int(this.attribute("feature_group_count") or 1)
    batch = left[labels[1].index("b")] // int(this.attribute("batch_group_count") or 1)
    return 2 * features * right[labels[2].index("o")] * batch * positions


@functools.lru_cache(1024)
def _positions(
    source: int, target: int, size: int, stride: int, pad: int, dilate: int, kernel_dilate: int
) -> int:
    """Pairs of an output and an element of the window that meet in an input, in one dimension."""
    place = np.arange(target)[:, None] * stride + np.arange(size) * kernel_dilate - pad
    real = (place >= 0) & (place <= (source - 1) * dilate) & (place % dilate == 0)
    return int(real.sum())
