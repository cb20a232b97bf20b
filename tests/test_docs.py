"""The training commands of docs/distributed.md, each checked for the devices that it is for."""

import math
import re
import shlex
import types

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from pretrain import blank, evaluators, processes, sharding, state, tasks, train
from pretrain import config as configs
from tests import tiny
from tests.small_runs import ROOT


def commands():
    """(section of the page, arguments of `pretrain.train`) of every run that it starts."""
    page = (ROOT / "docs" / "distributed.md").read_text()
    for section in page.split("\n## ")[1:]:
        for text in re.findall(r"python -m pretrain\.train (.*)", section.replace("\\\n", " ")):
            if text.count("'") % 2:  # the end of one that is quoted for another shell
                text = text.rpartition("'")[0]
            yield section, shlex.split(text.replace("$i", "0").rstrip("& "))


def devices(section):
    """What the section asks a cloud, a cluster or a machine for."""

    def number(name):
        found = re.search(rf"{name}(\d+)", section)
        return int(found[1]) if found else 0

    if chips := number("v5litepod-"):
        slices = number("node-count=") or 1
        return [tiny.Chip(i, math.isqrt(chips)) for i in range(slices * chips)]
    if gpus := number("gpus-per-node="):  # those of a node are a row
        return [tiny.Chip(i, gpus, "gpu") for i in range(number("nodes=") * gpus)]
    return [
        tiny.Chip(i, 2, "cpu")
        for i in range(number("num_processes=") * number("JAX_NUM_CPU_DEVICES="))
    ]


def parsed(arguments, monkeypatch):
    """The config with its overrides, by the program's kinds of flags."""
    values, argv = flags.FlagValues(), ["pretrain.train", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    for name in ("workdir", *processes.FLAGS):
        flags.DEFINE_string(name, None, "", flag_values=values)
    monkeypatch.chdir(ROOT)
    assert values(argv) == argv[:1] and values.workdir
    return values.config


@pytest.mark.parametrize(
    "section, arguments",
    [pytest.param(*pair, id=pair[0].partition("\n")[0]) for pair in commands()],
)
def test_training_would_start(section, arguments, monkeypatch, caplog):
    """Nothing is refused and nothing falls back; FSDP follows nodes or the sides of a torus."""
    config, chips = parsed(arguments, monkeypatch), devices(section)
    configs.check(config)
    read = configs.Reader(config)
    mesh = sharding.make_mesh(dict(read.mesh), chips)
    for axis in sharding.FSDP:
        lines = np.moveaxis(mesh.devices, sharding.AXES.index(axis), -1)
        for line in lines.reshape(-1, mesh.shape[axis]):
            assert len({chip.slice_index for chip in line}) == 1
            assert 1 in (len({chip.coords[side] for chip in line}) for side in (0, 1))
    train.batch_rows(types.SimpleNamespace(encoder=blank.encoder(config)), read, mesh)
    objective, optimizer = blank.objective(config), tasks.make_optimizer(read)
    evaluators.Batches(objective, None, mesh, config.evals.batch_size)
    sharding._warn.cache_clear()
    params = state.abstract(objective, optimizer, sharding.abstract_mesh(mesh.shape)).params
    sharding.check_sharded(params, mesh)
    assert not caplog.messages
    assert chips[0].platform == "cpu" or config.model.attention_dropout == 0, "no kernel has it"


def test_every_section_is_read():
    counts = [len(devices(section)) for section, _ in commands()]
    assert counts == [256, 512, 32, 4, 4, 4]
