"""Plans: here compiled for the tests' CPU devices, as if these were a chip of the table."""

import dataclasses
import functools
import re
import types

import jax
import pytest

from configs import bert, classify, linear, mup
from pretrain import chips, costs, plan
from pretrain.errors import UserError

CHIP = chips.Chip("cpu", "cpu", 1e12, 2**30, 1e11, 1e9)
MEMORY = plan.Memory(600, 500, 400, 300, 0)


def target(devices=8):
    return plan.Target(CHIP, jax.devices()[:devices], (devices,))


def small(**changes):
    config = bert.get_config("micro,seq=32")
    config.model.vocab_size = 128
    config.tokenizer.vocab_size = 128
    config.train.batch_size, config.mesh.data, config.mesh.fsdp = 16, 2, 4
    config.model.update(changes)
    return config


@functools.cache
def compiled(**changes):
    """A plan, and the executable that it is of."""
    compile_train_step, programs = plan.state.compile_train_step, []

    @functools.lru_cache
    def kept(*args):
        step = compile_train_step(*args)
        programs.append(step.program)
        return step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan.state, "compile_train_step", kept)
        return plan.make(small(**changes), target()), programs[0]


def planned(**changes):
    return compiled(**changes)[0]


def test_a_plan_is_of_one_device():
    found = planned()
    assert found.mesh == {"data": 2, "fsdp": 4} and found.num_devices == 8
    # All that is split: parameters and two moments over fsdp, three int32 columns over all.
    state, batch = 3 * 4 * found.num_params / 4, 3 * 4 * 16 * 32 / 8
    assert state + batch <= found.memory.arguments < 1.1 * (state + batch)
    assert found.memory.aliased == pytest.approx(state, rel=0.1)  # the state is donated
    assert {"all-gather", "all-reduce"} <= found.costs.collectives.keys()
    assert found.fits and not found.costs.unknown_loops


def test_memory_is_what_the_executable_says(monkeypatch):
    found, program = compiled()
    memory, said = found.memory, program.memory_analysis()
    assert memory.peak == said.peak_memory_in_bytes > memory.arguments > 0
    assert memory.arguments == said.argument_size_in_bytes
    assert memory.temporaries == said.temp_size_in_bytes > 0
    assert memory.outputs == said.output_size_in_bytes > 0
    # A CPU's program has nothing on the host; one that has.
    names = ("argument_size", "output_size", "alias_size", "temp_size", "peak_memory")
    names += ("host_argument_size", "host_temp_size")
    said = {f"{name}_in_bytes": 10**power for power, name in enumerate(names)}
    program = types.SimpleNamespace(
        memory_analysis=lambda: types.SimpleNamespace(**said), as_text=program.as_text
    )
    step = functools.lru_cache(lambda *_: types.SimpleNamespace(program=program))
    monkeypatch.setattr(plan.state, "compile_train_step", step)
    memory = plan.make(small(), target()).memory
    assert memory == plan.Memory(1, 10, 100, 1000, 10_000, host=1_100_000)


def test_compiled_flops_are_those_of_the_model_and_do_not_depend_on_the_scan():
    """XLA's own count would have one layer of a scan."""
    scanned, unrolled = planned(), planned(unroll=2)
    assert scanned.costs.flops == unrolled.costs.flops
    assert scanned.costs.flops == pytest.approx(scanned.model_flops, rel=0.02)


def test_rematerialisation_computes_the_layers_again():
    """All of their products, forward, but for the last one: nothing needs its output."""
    again = planned(remat="full").costs.flops - planned().costs.flops
    width, positions = 64, 16 * 32 / 8
    layer = positions * (2 * 12 * width**2 + 4 * 32 * width)
    last = positions * 2 * 4 * width**2
    assert 2 * (layer - last) <= again <= 2 * layer


def test_what_does_not_fit():
    assert MEMORY.needed == 1000
    found = dataclasses.replace(planned(), memory=MEMORY)
    exact = dataclasses.replace(CHIP, memory_bytes=1000)
    assert dataclasses.replace(found, chip=exact).fits
    assert not dataclasses.replace(found, chip=dataclasses.replace(CHIP, memory_bytes=999)).fits


def test_roofline():
    """6 TFLOP of which 4 are the model's at 1 TFLOP/s, 5 GB at 1 GB/s."""
    spent = costs.Costs(flops=6e12, collectives={"all-gather": costs.Traffic(1, 6e9, 5e9, 5e9)})
    found = dataclasses.replace(planned(), costs=spent, model_flops=4e12)
    assert found.step_seconds == (6.0, 11.0)
    assert found.mfu(6.0) == pytest.approx(4 / 6)
    # 1000 FLOPs a cycle: a clock of 1 GHz. Cycles say more than FLOPs at the peak, or less.
    clocked = dataclasses.replace(CHIP, flops_per_cycle=1000)
    for cycles, seconds in ((8e9, 8.0), (5e9, 6.0)):
        told = dataclasses.replace(spent, cycles=cycles)
        assert dataclasses.replace(found, chip=clocked, costs=told).compute_seconds == seconds


@pytest.mark.parametrize(
    "topology, slices, said",
    [
        ("v9:2x2", 1, "no chip 'v9'"),
        ("v5e", 1, "found 'v5e', expected CHIP:SHAPE"),
        ("v5e:4xx4", 1, "found 'v5e:4xx4', expected CHIP:SHAPE"),
        ("h100:8", 1, "slices x hosts x GPUs: h100:1x1x8"),
        ("h100:1x1x8", 2, "in 2 slice"),
        ("b200:1x1x8", 1, "expected one of a100-40, a100, h100, h200"),
    ],
)
def test_a_wrong_topology_is_a_clear_error(topology, slices, said):
    with pytest.raises(UserError, match=said):
        plan.target(topology, slices)


@pytest.fixture
def asked(monkeypatch):
    """Every set of options that a topology is asked for with; all give the tests' devices."""
    options = []

    def get_topology_desc(**given):
        options.append(given)
        return types.SimpleNamespace(devices=jax.devices())

    monkeypatch.setattr(plan.topologies, "get_topology_desc", get_topology_desc)
    return options


@pytest.mark.parametrize(
    "topology, slices, host, more",
    [
        ("v4:2x2x1", 1, [2, 2, 1], {"chip_config_name": "megacore"}),
        ("v5e:2x2", 2, [2, 2, 1], {"num_slices": 2}),
        ("v5e:1x1", 1, [1, 1, 1], {}),
        ("v5p:4x4x8", 1, [2, 2, 1], {}),
    ],
)
def test_what_a_slice_is_asked_for_with(asked, topology, slices, host, more):
    found = plan.target(topology, slices)
    same = {"platform": "tpu", "topology_name": topology, "chips_per_host_bounds": host}
    assert asked == [same | more]
    name, _, shape = topology.partition(":")
    assert found.chip is chips.named(name) and found.num_slices == slices
    assert found.shape == tuple(map(int, shape.split("x"))) and found.devices == jax.devices()


@pytest.mark.parametrize("name, cores, capability", [("h100", 132, (9, 0)), ("a100", 108, (8, 0))])
def test_what_gpus_are_asked_for_with(asked, name, cores, capability):
    plan.target(f"{name}:1x1x8")
    described = asked[0].pop("target_config")
    assert asked == [{"platform": "cuda", "topology_name": name, "topology": "1x1x8"}]
    fields = dict(re.findall(r'(\w+): ("[^"]*"|[\w.]+)', described))
    assert described.count("{") == described.count("}")
    chip = chips.named(name)
    assert float(fields["memory_bandwidth"]) == chip.memory_bandwidth
    assert int(fields["device_memory_size"]) == chip.memory_bytes
    assert fields["device_description_str"] == f'"{chip.device_kind}"'
    assert int(fields["core_count"]) == cores
    found = re.search(r"cuda_compute_capability { major: (\d+) minor: (\d+) }", described)
    assert tuple(map(int, found.groups())) == capability
    # FLOPs a cycle of a multiprocessor's tensor cores, by NVIDIA's white papers.
    per_core = chip.peak_flops / (cores * 1e9 * float(fields["clock_rate_ghz"]))
    assert per_core == pytest.approx({"h100": 4096, "a100": 2048}[name], rel=0.1)


@pytest.mark.parametrize("error", [RuntimeError("JAX TPU support not installed; \n cannot")])
def test_a_missing_compiler_is_named(monkeypatch, error):
    def missing(**_):
        raise error

    monkeypatch.setattr(plan.topologies, "get_topology_desc", missing)
    with pytest.raises(UserError, match=r"needs its compiler: pip install -e '.\[plan\]'"):
        plan.target("v5e:2x2")


@pytest.mark.parametrize(
    "config, said",
    [
        (
            mup.get_config("quick"),
            r"config.runs: found a study of \d+ runs, expected",
        ),
        (linear.get_config(), r"config.objective.name: found 'classify', whose rows depend"),
        (linear.get_config("ner"), r"config.objective.name: found 'tag', whose rows depend"),
        (classify.get_config(), r"config.objective.name: found 'classify', whose rows depend"),
    ],
)
def test_what_cannot_be_planned(config, said):
    with pytest.raises(UserError, match=said):
        plan.make(config, target())


def test_rows_that_micro_batches_do_not_divide_are_refused():
    config = small()
    config.train.accumulate = 4
    with pytest.raises(UserError, match=r"config.train.batch_size: 16 rows do not divide"):
        plan.make(config, target())


def test_rows_that_sequence_does_not_divide_are_refused():
    config = small()
    config.mesh.data, config.mesh.fsdp, config.mesh.sequence = 1, 1, 8
    config.train.seq_len = 36
    with pytest.raises(UserError, match=r"config.train.seq_len: rows of 36 positions do not div"):
        plan.make(config, target())


def test_plans_start_from_no_other_run():
    config = small()
    config.init_from = "runs/bert"
    with pytest.raises(UserError, match=r"config.init_from: found 'runs/bert', expected ''"):
        plan.make(config, target())
