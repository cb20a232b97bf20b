"""What a train step needs and takes on chips that are not here: compiled ahead of time, not run.

The step is that of training (`pretrain.state.compile_train_step`), on abstract arrays.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from pretrain import blank, sharding, state, tasks
from pretrain import config as configs
from pretrain.chips import Chip, named
from pretrain.costs import Costs, costs
from pretrain.errors import UserError

INSTALL = "pip install -e '.[plan]'"
# What the compiler for GPUs wants to know of one, by compute capability: multiprocessors, shared
# memory of each and of a block that asks for much, L2 cache, clock in GHz. From openxla/xla,
# xla/backends/gpu/target_config/specs.
GPUS = {
    "a100-40": ("8.0", 108, 167_936, 166_912, 41_943_040, 1.41),
    "a100": ("8.0", 108, 167_936, 166_912, 41_943_040, 1.41),
    "h100": ("9.0", 132, 233_472, 232_448, 52_428_800, 1.98),
    "h200": ("9.0", 132, 233_472, 232_448, 52_428_800, 1.98),
}


class Target(NamedTuple):
    """Devices to compile for; ``shape``: of one slice."""

    chip: Chip
    devices: Sequence[jax.Device]
    shape: tuple[int, ...]
    num_slices: int = 1


def target(topology: str, num_slices: int = 1) -> Target:
    """What ``"v5e:16x16"``, times slices, or ``"h100:1x1x8"`` names.

    A TPU's shape is that of the torus; of GPUs: slices (NVLink domains) x hosts x GPUs of a host.
    `UserError` for a topology that is none, and where a compiler is not installed.
    """
    name, _, shape = topology.partition(":")
    chip = named(name)
    sizes = shape.split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise UserError(f"--topology: found {topology!r}, expected CHIP:SHAPE such as v5e:16x16")
    options: dict[str, Any] = {"platform": "tpu", "topology_name": topology}
    if chip.is_tpu:
        host = [2 - int(size) % 2 for size in sizes[:2]]
        options |= {"chips_per_host_bounds": [*host, 1]}  # by default 2 x 2: none for single chips
        options |= {"num_slices": num_slices} if num_slices > 1 else {}
        options |= {"chip_config_name": "megacore"} if name == "v4" else {}  # else two devices
    elif name not in GPUS or len(sizes) != 3 or num_slices > 1:
        raise UserError(
            f"--topology: found {topology!r} in {num_slices} slice(s), expected one of "
            f"{', '.join(GPUS)} and slices x hosts x GPUs: h100:1x1x8"
        )
    else:
        options |= {"platform": "cuda", "topology_name": name, "topology": shape}
        options |= {"target_config": target_config(chip)}
    try:
        devices = topologies.get_topology_desc(**options).devices
    except RuntimeError as error:  # NotImplementedError is one
        said = str(error).strip().partition("\n")[0]
        missing = "not installed" in said or isinstance(error, NotImplementedError)
        hint = f"needs its compiler: {INSTALL}" if missing else "is no topology that it knows"
        raise UserError(f"--topology: {topology!r} {hint} ({said})") from None
    return Target(chip, devices, tuple(map(int, sizes)), num_slices)


def target_config(chip: Chip) -> str:
    """A GPU as XLA's ``GpuTargetConfigProto``, in text."""
    capability, cores, shared, opt_in, cache, clock = GPUS[chip.name]
    major, minor = capability.split(".")
    info = {
        "core_count": cores,
        "clock_rate_ghz": clock,
        "fpus_per_core": 128,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "threads_per_block_limit": 1024,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
        "shared_memory_per_core": shared,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_block_optin": opt_in,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "l2_cache_size": cache,
        "memory_bandwidth": int(chip.memory_bandwidth),
        "device_memory_size": chip.memory_bytes,
    }
    fields = " ".join(f"{name}: {value}" for name, value in info.items())
    return (
        f"gpu_device_info {{ {fields} "
        f"cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 patch: 0 } '
        f'device_description_str: "{chip.device_kind}"'
    )


@dataclasses.dataclass(frozen=True)
class Memory:
    """Of one device, in bytes, as the compiler lays it out.

    ``peak``: of what lives at one time. Temporaries are one block whose pieces do not always fit
    together as tightly.
    """

    arguments: int
    outputs: int
    aliased: int  # outputs in the place of arguments, which are donated
    temporaries: int
    peak: int
    host: int = 0  # what lies in the host's memory instead

    @property
    def needed(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries


@dataclasses.dataclass(frozen=True)
class Plan:
    """A compiled step; costs and FLOPs are those of one device."""

    chip: Chip
    mesh: dict[str, int]  # axes of more than one device
    num_devices: int
    batch_size: int  # rows over all devices
    remat: str
    num_params: int
    memory: Memory
    model_flops: float
    costs: Costs
    compile_seconds: float
    text: str = dataclasses.field(repr=False)

    @property
    def fits(self) -> bool:
        return self.memory.needed <= self.chip.memory_bytes

    @property
    def compute_seconds(self) -> float:
        """At the compiler's cycles where it tells them, else its FLOPs at the chip's peak."""
        at_peak = max(self.costs.flops, self.model_flops) / self.chip.peak_flops
        cycles = self.costs.cycles
        return max(cycles / self.chip.clock_hz, at_peak) if cycles else at_peak

    @property
    def wire_seconds(self) -> float:
        """Of all collectives over all links at once."""
        return self.costs.wire / self.chip.links

    @property
    def step_seconds(self) -> tuple[float, float]:
        """Where all communication hides behind work, and where none does."""
        compute, wire = self.compute_seconds, self.wire_seconds
        return max(compute, wire), compute + wire

    def mfu(self, seconds: float) -> float:
        return self.model_flops / (seconds * self.chip.peak_flops)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        hidden, exposed = self.step_seconds
        memory = dataclasses.asdict(self.memory) | {"needed": self.memory.needed}
        told = ("mesh", "num_devices", "batch_size", "remat", "num_params", "model_flops")
        return {
            "chip": self.chip.name,
            **{name: getattr(self, name) for name in told},
            "memory": memory | {"of": self.chip.memory_bytes},
            "fits": self.fits,
            "compiled": dataclasses.asdict(self.costs),
            "wire_bytes": self.costs.wire,
            "step_seconds": {"hidden": hidden, "exposed": exposed},
            "mfu": {"hidden": self.mfu(hidden), "exposed": self.mfu(exposed)},
            "compile_seconds": self.compile_seconds,
        }


class TooLarge(Exception):
    """The compiler refused a program that does not fit; its first words."""


def make(config: ConfigDict, target: Target) -> Plan:
    """Compiles the train step of ``config`` for a target.

    `TooLarge` where the compiler finds that it does not fit, `UserError` for a config that does not
    go with the devices.
    """
    blank.check_has_rows(config)
    configs.check(config)
    for key in ("init_from", "distill.teacher"):
        if found := configs.flatten(config)[key]:
            raise UserError(f"config.{key}: found {found!r}, expected '': plans read no other run")
    read = configs.Reader(config)
    mesh = sharding.make_mesh(dict(read.mesh), target.devices)
    objective, optimizer = blank.objective(config), tasks.make_optimizer(read)
    rows, accumulate, seq_len = (
        config.train[key] for key in ("batch_size", "accumulate", "seq_len")
    )
    sharding.check_length("train.seq_len", seq_len, mesh)
    sharding.check_batch("train.batch_size", rows, mesh, accumulate)
    params = state.abstract(objective, optimizer, mesh).params
    sharding.check_sharded(params, mesh)
    shapes = blank.batch_shapes(config, rows)
    started = time.perf_counter()
    try:
        compiled = state.compile_train_step(objective, optimizer, mesh, accumulate, shapes).program
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLarge(str(error).partition("\n")[0]) from None
    seconds = time.perf_counter() - started
    state.compile_train_step.cache_clear()  # a search compiles many
    found, text = compiled.memory_analysis(), compiled.as_text()
    memory = Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
        found.alias_size_in_bytes,
        found.temp_size_in_bytes,
        found.peak_memory_in_bytes,
        found.host_argument_size_in_bytes + found.host_temp_size_in_bytes,
    )
    return Plan(
        target.chip,
        {axis: size for axis, size in mesh.shape.items() if size > 1},
        mesh.size,
        rows,
        config.model.remat,
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        memory,
        objective.train_flops(seq_len) * rows / mesh.size,
        costs(text),
        seconds,
        text,
    )
