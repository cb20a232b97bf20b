"""The program that plans; its compiler is that of the tests' CPU devices."""

import dataclasses
import json
import subprocess
import sys
import types

import pytest
from absl import flags

from configs import bert, gpt
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
    memory = dataclasses.replace(found.memory, host=3 * 2**20)
    lines = tool.report(dataclasses.replace(found, memory=memory), test_plan.small())
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
        ("v5e", (1, 1), 1, ["fsdp:1"]),
        ("v5e", (1, 1), 2, ["fsdp:1"]),
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
    made = dataclasses.replace(made, costs=dataclasses.replace(made.costs, kernels={}))

    def make(config, target):
        rows = config.train.batch_size // len(target.devices)
        if rows > 8:
            raise plan.TooLarge("much too large")
        if config.mesh.tensor > 1:
            raise plan.UserError("config.mesh.tensor: no")
        needed = rows * (50 if config.model.remat == "full" else 100)
        memory = plan.Memory(needed, 0, 0, 0, 0)
        chip = dataclasses.replace(test_plan.CHIP, memory_bytes=400)
        flops = made.model_flops * rows  # the collectives stay: larger batches use more of the chip
        return dataclasses.replace(made, chip=chip, memory=memory, model_flops=flops)

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
    assert "not counted" not in shown
    assert shown.count("config.mesh.tensor: no") == 2
    assert "batch_per_device=16: does not fit" in shown.partition("The fastest")[0]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the program; every plan that it makes is `test_plan.planned` with ``changes``.

    ``memory``: that plan's by rows a device.
    """

    def program(*given, config="bert.py:micro,seq=32", memory=None, **changes):
        done = types.SimpleNamespace(targets=[], configs=[])

        def target(*args):
            done.targets.append(args)
            return test_plan.target()._replace(num_slices=args[1])

        def make(config, target):
            done.configs.append(config)
            found = dataclasses.replace(test_plan.planned(), **changes)
            rows = config.train.batch_size // len(target.devices)
            return dataclasses.replace(found, memory=memory(rows)) if memory else found

        values = flags.FlagValues()
        tool.define_flags(values)
        values(["plan", f"--config={small_runs.ROOT}/configs/{config}", *given])
        monkeypatch.setattr(tool.flags, "FLAGS", values)
        monkeypatch.setattr(plan, "target", target)
        monkeypatch.setattr(plan, "make", make)
        with pytest.raises(SystemExit) as left:
            tool.run()
        done.code, done.shown = left.value.code, capsys.readouterr().out
        return done

    return program


def test_a_plan_that_fits(run, tmp_path):
    found, numbers, text = test_plan.planned(), tmp_path / "numbers.json", tmp_path / "program.txt"
    chosen = "--mesh=data:2,fsdp:4", "--batch_per_device=3", "--remat=full"
    done = run("--topology=v5e:2x4", *chosen, f"--json={numbers}", f"--hlo={text}")
    assert done.code == 0 and done.targets == [("v5e:2x4", 1)]
    (config,) = done.configs
    assert config.mesh.data == 2 and config.mesh.fsdp == 4 and config.mesh.slices == 1
    assert config.train.batch_size == 3 * 8 and config.model.remat == "full"
    assert done.shown.strip() == tool.report(found, config)
    assert text.read_text() == found.text and found.text.startswith("HloModule")
    about = json.loads(numbers.read_text())
    assert about["label"] == "BERT-micro" and about["fits"] is True
    assert about["num_params"] == found.num_params
    assert about["model_flops"] == found.model_flops
    assert about["memory"]["peak"] == found.memory.peak > 0
    assert about["memory"]["needed"] == found.memory.needed
    assert about["compiled"]["flops"] == found.costs.flops


def test_a_plan_that_does_not_fit(run, tmp_path):
    numbers = tmp_path / "numbers.json"
    chip = dataclasses.replace(test_plan.CHIP, memory_bytes=9)
    done = run("--topology=v5e:2x2", f"--json={numbers}", chip=chip)
    assert done.code == 1 and "DOES NOT FIT" in done.shown
    about = json.loads(numbers.read_text())
    assert about["fits"] is False and about["memory"]["of"] == 9


def test_what_no_flag_says_is_as_the_config_has_it(run, tmp_path):
    done = run("--topology=v5e:2x2", "--num_slices=2")
    assert done.targets == [("v5e:2x2", 2)] and not list(tmp_path.iterdir())
    (config,) = done.configs
    given = bert.get_config("micro,seq=32")
    assert config.mesh.slices == 2
    config.mesh.slices = given.mesh.slices
    assert config.to_dict() == given.to_dict()


@pytest.mark.parametrize("limit, rows", [(4, [2, 4]), (1, [])])
def test_what_a_search_finds(run, tmp_path, limit, rows):
    """A row takes one byte; kernels are called eight times."""
    numbers = tmp_path / "numbers.json"
    costs = dataclasses.replace(test_plan.planned().costs, kernels={"tpu:fwd": 3, "tpu:bwd": 5})
    done = run(
        *("--search", "--topology=v5e:2x4", "--mesh=fsdp:8", "--remat=full", f"--json={numbers}"),
        *(f"--batch_per_device={n}" for n in (2, 4, 8)),
        memory=lambda n: plan.Memory(n, 0, 0, 0, 0),
        chip=dataclasses.replace(test_plan.CHIP, memory_bytes=limit),
        costs=costs,
    )
    assert done.code == (0 if rows else 1) and done.targets == [("v5e:2x4", 1)]
    assert {(c.mesh.fsdp, c.mesh.data, c.model.remat) for c in done.configs} == {(8, 1, "full")}
    assert {
        found["flags"]: found["memory"]["needed"] for found in json.loads(numbers.read_text())
    } == {f"--mesh=fsdp:8 --remat=full --batch_per_device={n}": n for n in rows}
    assert done.shown.count(", not counted: 8 x kernels\n") == 2 * len(rows)
    assert ("None fits." in done.shown) == (not rows)


@pytest.mark.parametrize("more", [[], ["--search"], ["--batch_per_device=2", "--remat=full"]])
@pytest.mark.parametrize(
    "config, said",
    [
        ("linear.py", "config.objective.name: found 'classify', whose rows depend on the data"),
        ("linear.py:ner", "config.objective.name: found 'tag', whose rows depend on the data"),
        ("mup.py:quick", "config.runs: found a study of"),
    ],
)
def test_configs_without_rows_are_refused_first(run, config, said, more):
    with pytest.raises(plan.UserError, match=said):
        run("--topology=nowhere", *more, config=config)


def test_a_search_writes_no_program(run):
    with pytest.raises(plan.UserError, match=r"--hlo: found 'all.txt' with --search, expected"):
        run("--topology=v5e:2x2", "--search", "--hlo=all.txt")


def test_a_plan_for_a_tpu():
    """By its own compiler, where that is installed."""
    pytest.importorskip("libtpu")
    config = gpt.get_config("tiny,seq=128")
    layers, width, vocab, seq, rows = 1, 256, 1024, 128, 2
    config.model.num_layers, config.model.hidden_size, config.model.ffn_size = 1, width, 4 * width
    config.model.vocab_size = config.tokenizer.vocab_size = vocab
    config.model.max_positions, config.model.attention = seq, "plain"
    config.model.dropout = config.model.attention_dropout = 0.0
    config.optimizer.offload = True
    target = plan.target("v5e:2x2")
    found = plan.make(tool.configured(config, target, "data:2,fsdp:2", rows), target)
    assert len(target.devices) == found.num_devices == 4 and found.mesh == {"data": 2, "fsdp": 2}
    # Matrices, and the vectors of two layers and a final norm; all matrices are split.
    matrices = layers * 12 * width**2 + (vocab + seq) * width
    assert found.num_params == pytest.approx(matrices, rel=0.02)
    batch = rows * 3 * 4 * seq
    assert found.memory.arguments == pytest.approx(4 * matrices / 2 + batch, rel=0.02)
    assert found.memory.host == pytest.approx(2 * 4 * matrices / 2, rel=0.02)
    # Two FLOPs a parameter and token forward, twice that backward; half of the pairs attend.
    weights = layers * 12 * width**2 + vocab * width
    pairs = layers * 2 * 2 * width * seq * (seq + 1) / 2
    assert found.model_flops == pytest.approx(3 * rows * (2 * weights * seq + pairs), rel=1e-3)
    assert found.costs.flops >= 0.99 * found.model_flops
    assert 0 < found.costs.matmul_cycles < found.costs.cycles
    # The matrix units cannot be faster than at their peak.
    assert found.costs.cycles * target.chip.flops_per_cycle > found.costs.flops
    assert found.fits and found.costs.collectives.keys() & {"all-gather", "reduce-scatter"}


@pytest.mark.parametrize(
    "given, said",
    [
        (["--topology=v5e:2x2"], "--config must have a value"),
        (["--config=configs/gpt.py:tiny"], "--topology must have a value"),
        (
            ["--config=configs/gpt.py:tiny", "--topology=v5e:2x2", "--remat=full", "--remat=none"],
            "--remat: found 2 without --search",
        ),
    ],
)
def test_wrong_flags_are_clear_errors(given, said):
    done = subprocess.run(
        [sys.executable, "-m", "tools.plan", *given],
        cwd=small_runs.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 and said in done.stderr
