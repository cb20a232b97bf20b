"""The program that plans; its compiler is that of the tests' CPU devices."""

import json
import subprocess
import sys

import pytest

from pretrain import plan
from tests import small_runs, test_plan
from tools import plan as tool


def test_report():
    config = test_plan.small()
    lines = tool.report(test_plan.planned(), config).splitlines()
    assert lines[0].startswith("BERT-micro: 1") and lines[0].endswith("remat none")
    assert "8 x cpu, mesh data 2, fsdp 4; 16 rows of 32 tokens" in lines[1]
    assert any(line.split()[0] == "needed" and line.endswith("1,024: fits") for line in lines)
    assert any(line.split()[:1] == ["all-gather"] for line in lines)
    assert lines[-1].startswith("MFU at most ")


def test_report_tells_what_lies_on_the_host():
    found = test_plan.planned()
    assert "on the host" not in tool.report(found, test_plan.small())
    memory = plan.dataclasses.replace(found.memory, host=3 * 2**20)
    lines = tool.report(plan.dataclasses.replace(found, memory=memory), test_plan.small())
    assert "on the host              3.0 MiB" in lines


def test_numbers_are_json():
    found = test_plan.planned()
    about = json.loads(json.dumps(found.as_dict()))
    assert about["memory"]["needed"] == found.memory.needed and about["fits"] is True
    assert about["compiled"]["flops"] == found.costs.flops
    assert about["wire_bytes"] == sum(x["wire"] for x in about["compiled"]["collectives"].values())


def test_flags_change_the_config():
    target = test_plan.target()._replace(num_slices=2)
    config = tool.configured(test_plan.small(), target, "fsdp:4", batch=3, remat="full")
    assert config.mesh.to_dict() == {
        **dict.fromkeys(("data", "fsdp_y", "tensor", "sequence"), 1),
        "slices": 2,
        "fsdp": 4,
    }
    assert config.train.batch_size == 24 and config.model.remat == "full"
    assert test_plan.small().mesh.slices == 1


@pytest.mark.parametrize(
    "chip, shape, slices, meshes",
    [
        ("v5e", (16, 16), 1, ["fsdp:16,fsdp_y:16", "fsdp:256", "data:256"]),
        ("v5p", (4, 4, 8), 2, ["fsdp:16,fsdp_y:8", "fsdp:128", "data:128"]),
        ("h100", (1, 1, 8), 1, ["fsdp:8", "data:8"]),
        ("v5e", (1, 1), 1, ["fsdp:1", "data:1"]),
    ],
)
def test_meshes_of_a_search(chip, shape, slices, meshes):
    devices = [None] * (slices * plan.math.prod(shape))
    target = plan.Target(plan.named(chip), devices, shape, slices)
    found = tool.candidates(target)
    whole = len(devices) // slices
    assert found == meshes + [f"fsdp:{whole // n},tensor:{n}" for n in (2, 4) if whole > 1]


def test_search_stops_at_the_first_batch_that_does_not_fit(monkeypatch, capsys):
    """Memory grows with rows, 100 each; 400 are there. Rematerialised steps take half as much."""
    made = test_plan.planned()

    def make(config, target):
        rows = config.train.batch_size // len(target.devices)
        if rows > 8:
            raise plan.TooLarge("much too large")
        if config.mesh.tensor > 1:
            raise plan.UserError("config.mesh.tensor: no")
        needed = rows * (50 if config.model.remat == "full" else 100)
        memory = plan.Memory(needed, 0, 0, 0, 0)
        chip = plan.dataclasses.replace(test_plan.CHIP, memory_bytes=400)
        flops = made.model_flops * rows  # the collectives stay: larger batches use more of the chip
        return plan.dataclasses.replace(made, chip=chip, memory=memory, model_flops=flops)

    monkeypatch.setattr(plan, "make", make)
    fitting = tool.search(
        test_plan.small(),
        test_plan.target(),
        ["fsdp:8", "fsdp:4,tensor:2"],
        remats=["none", "full"],
        batches=[16, 2, 4, 8, 1],
    )
    shown = capsys.readouterr().out
    assert fitting[0][0].endswith("--remat=full --batch_per_device=8")
    assert len(fitting) == 3 + 4 and shown.count("does not fit") == 2
    assert shown.count("config.mesh.tensor: no") == 2
    assert "batch_per_device=16: does not fit" in shown.partition("The fastest")[0]


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--topology=v5e:2x2"], "--config must have a value"),
        (["--config=configs/gpt.py:tiny"], "--topology must have a value"),
        (
            ["--config=configs/gpt.py:tiny", "--topology=v5e:2x2", "--remat=full", "--remat=none"],
            "--remat: found 2 without --search",
        ),
    ],
)
def test_wrong_flags_are_clear_errors(flags, said):
    done = subprocess.run(
        [sys.executable, "-m", "tools.plan", *flags],
        cwd=small_runs.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 and said in done.stderr
