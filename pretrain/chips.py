"""What accelerators can do at most, from their makers' published tables.

Numbers are those of one JAX device: a TPU chip (v4 and later show one device a chip) or a GPU.
Sources: cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e (peak, HBM, inter-chip bandwidth of a
chip); NVIDIA's data sheets of A100, H100, H200 and B200 (dense bf16, without sparsity; NVLink) with
openxla/xla's ``xla/backends/gpu/target_config/specs`` (bytes of memory).
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from pretrain.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device. Bandwidths in bytes a second.

    ``links``: into the device over all its links at once, in one direction. ``flops_per_cycle``: of
    the matrix units at their peak, 0 where the compiler tells no cycles; v6e's is what the
    compiler reckons with, for which public tables have no number.
    """

    name: str  # also that of a topology: "v5e:16x16"
    device_kind: str  # as ``jax.Device.device_kind`` has it
    peak_flops: float  # bf16 operands, fp32 sums
    memory_bytes: int
    memory_bandwidth: float
    links: float
    flops_per_cycle: int = 0

    @property
    def is_tpu(self) -> bool:
        return self.flops_per_cycle > 0

    @property
    def clock_hz(self) -> float:
        """Of the matrix units."""
        return self.peak_flops / self.flops_per_cycle


GIB = 2**30
CHIPS = (
    Chip("v4", "TPU v4", 275e12, 32 * GIB, 1.228e12, 300e9, 2 * 4 * 2 * 128**2),
    Chip("v5e", "TPU v5 lite", 197e12, 16 * GIB, 0.819e12, 200e9, 4 * 2 * 128**2),
    Chip("v5p", "TPU v5", 459e12, 95 * GIB, 2.765e12, 600e9, 2 * 4 * 2 * 128**2),
    Chip("v6e", "TPU v6 lite", 918e12, 32 * GIB, 1.638e12, 400e9, 4 * 2 * 256**2),
    Chip("a100-40", "NVIDIA A100-SXM4-40GB", 312e12, 40 * GIB, 1.555e12, 300e9),
    Chip("a100", "NVIDIA A100-SXM4-80GB", 312e12, 80 * GIB, 2.039e12, 300e9),
    Chip("h100", "NVIDIA H100 80GB HBM3", 989e12, 84_942_979_072, 3.352e12, 450e9),
    Chip("h200", "NVIDIA H200", 989e12, 151_397_597_184, 4.8e12, 450e9),
    Chip("b200", "NVIDIA B200", 2250e12, 180 * GIB, 8.0e12, 900e9),
)
_BY_NAME = {chip.name: chip for chip in CHIPS}
_BY_KIND = {chip.device_kind: chip for chip in CHIPS}
# Other spellings of the same devices.
_BY_KIND |= {"TPU v5e": _BY_NAME["v5e"], "TPU v5p": _BY_NAME["v5p"], "TPU v6e": _BY_NAME["v6e"]}


def of_device(device_kind: str) -> Chip | None:
    """The chip that ``jax.Device.device_kind`` names, None for one that is not in the table."""
    return _BY_KIND.get(device_kind)


def named(name: str) -> Chip:
    """The chip of a topology's name; `UserError` lists the known ones."""
    if name not in _BY_NAME:
        raise UserError(f"--topology: no chip {name!r}, expected one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def peak(devices: Iterable[Any]) -> float | None:
    """FLOP/s that JAX devices can do together, None if one of them is not in the table."""
    chips = [of_device(device.device_kind) for device in devices]
    return None if None in chips else sum(chip.peak_flops for chip in chips)
