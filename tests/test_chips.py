"""The table of accelerators."""

import dataclasses

import jax
import pytest

from pretrain import chips
from pretrain.errors import UserError


@dataclasses.dataclass
class Device:
    device_kind: str


CLOCKS = {"v4": 1.05, "v5e": 1.5, "v5p": 1.75, "v6e": 1.75}


@pytest.mark.parametrize("name, gigahertz", CLOCKS.items())
def test_peak_and_matrix_units_give_the_published_clock(name, gigahertz):
    assert chips.named(name).clock_hz == pytest.approx(1e9 * gigahertz, rel=0.005)


def test_names_and_kinds_are_of_one_table():
    kinds = [chip.device_kind for chip in chips.CHIPS]
    assert len(set(kinds)) == len({chip.name for chip in chips.CHIPS}) == len(kinds)
    for chip in chips.CHIPS:
        assert chips.of_device(chip.device_kind) is chips.named(chip.name) is chip
        assert chip.is_tpu == chip.device_kind.startswith("TPU")
    with pytest.raises(UserError, match=r"--topology: no chip 'v9', expected one of v4, v5e"):
        chips.named("v9")


def test_peak_of_a_mesh():
    """Of 16 v5e: 3.152 PFLOP/s. None where a device is unknown, as a CPU is."""
    assert chips.peak([Device("TPU v5 lite")] * 16) == pytest.approx(16 * 197e12)
    assert chips.peak([Device("TPU v5 lite"), Device("cpu")]) is None
    assert chips.peak(jax.devices()) is None
