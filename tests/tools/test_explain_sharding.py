"""Tables of layouts: those that are committed, and what they say against arrays on devices."""

import jax
import pytest

from configs import bert
from pretrain import sharding, state
from tests import tiny
from tests.small_runs import ROOT
from tools import explain_sharding as tool

FOLDER = ROOT / "tests" / "golden" / "sharding"


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.txt")))
def test_committed_tables_are_those_of_the_configs(name):
    """Where a change is meant: python -m tools.explain_sharding --remake=tests/golden/sharding"""
    text = (FOLDER / f"{name}.txt").read_text()
    assert tool.remade(text) == text


def small():
    config = bert.get_config("micro")
    config.model.vocab_size = config.tokenizer.vocab_size = 63
    return config


def test_bytes_are_those_that_devices_hold():
    config, sizes = small(), sharding.parse_mesh("fsdp:4,tensor:2")
    text, refused = tool.explain(config, sizes)
    assert refused is None
    rows = [line.split() for line in text.splitlines() if "/" in line]
    told = {row[0]: row for row in rows}
    objective, mesh = tool.blank.objective(config), tiny.mesh(fsdp=4, tensor=2)
    held = state.sharded_init(objective, tiny.adamw(), mesh, jax.random.key(0))
    for path, array in tool.flatten(held.params).items():
        assert f"{array.addressable_shards[0].data.nbytes:,}" in told[path], path
    for name, tree in (("parameters", held.params), ("optimizer state", held.opt_state)):
        leaves = jax.tree.leaves(tree)
        total = sum(x.nbytes for x in leaves)
        part = sum(x.addressable_shards[0].data.nbytes for x in leaves)
        assert f"{name}: {total:,} bytes, {part:,} on each device" in text
    word = next(line for line in text.splitlines() if line.startswith("trunk/word/embedding"))
    assert "63 x 64" in word and "vocab, embed" in word and "tensor|fsdp, fsdp" in word
    assert word.endswith("vocab of size 63 does not divide over tensor=2: left whole")


def test_what_training_would_refuse_is_told():
    text, refused = tool.explain(small(), sharding.parse_mesh("fsdp:3"))
    assert "embed of size 64 does not divide over fsdp=3: left whole" in text
    assert str(refused).startswith("config.mesh: {'fsdp': 3} splits no dimension of ")
