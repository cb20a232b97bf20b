"""Parameters of models and the operations they take, from shapes alone: nothing is allocated.

    python -m tools.params --all
    python -m tools.params --config=configs/bert.py:base,published
    python -m tools.params --config=configs/gpt.py:1b3 --config.tokenizer.vocab_size=32768 --json

--all lists every variant of every file in configs/ that names some, with the published vocabulary
where there is one. Without a published one a vocabulary counts as large as `tokenizer.vocab_size`
asks for, and a labelled task has two classes.

`embedding` counts the rows of tables (words, positions, token types, relative positions) and an
output matrix over the vocabulary that is not one of these tables: what grows with the vocabulary
and the longest row. `FLOPs` are the matrix products of a training step, forward and backward, for
one token of a full row of `train.seq_len`.
"""

import importlib
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from pretrain import blank, cli, state
from pretrain.errors import UserError

_ALL = flags.DEFINE_bool("all", False, "Every variant of every file in configs/.")
_JSON = flags.DEFINE_bool("json", False, "Print JSON, a list with one object a model.")
_CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/bert.py", "One model: a config file and its argument behind a colon."
)

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "configs"
COLUMNS = ("total", "embedding", "non_embedding", "MFLOPs/token", "seq_len")


class Leaf(NamedTuple):
    """One array of parameters."""

    module: str
    name: str
    shape: tuple[int, ...]
    embedding: bool  # a table, or a matrix over the vocabulary

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def leaves(objective: Any) -> list[Leaf]:
    """All arrays of an objective's parameters, in the order of their paths."""
    boxed = jax.eval_shape(objective.init, jax.random.key(0))["params"]
    found = []
    for path, box in jax.tree_util.tree_leaves_with_path(
        boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    ):
        *module, name = (key.key for key in path)
        embedding = state.is_embedding((*module, name))
        found.append(Leaf("/".join(module), name, tuple(box.value.shape), embedding))
    return found


def describe(config: ConfigDict) -> dict[str, Any]:
    """Counts of a config's model, and its arrays by module."""
    objective = blank.objective(config)
    seq_len = config.train.get("seq_len", 1)
    found = leaves(objective)
    total = sum(leaf.size for leaf in found)
    embedding = sum(leaf.size for leaf in found if leaf.embedding)
    modules: dict[str, dict] = {}
    for leaf in found:
        module = modules.setdefault(leaf.module, {"parameters": 0, "arrays": {}})
        module["parameters"] += leaf.size
        module["arrays"][leaf.name] = leaf.shape
    return {
        "objective": config.objective.name,
        "total": total,
        "embedding": embedding,
        "non_embedding": total - embedding,
        "seq_len": seq_len,
        "flops_per_token": objective.train_flops(seq_len) / seq_len,
        "modules": modules,
    }


def shipped() -> Iterator[tuple[str, ConfigDict]]:
    """``("bert:base", config)`` for each entry of SIZES or VARIANTS of each config file."""
    for file in sorted(FOLDER.glob("[a-z]*.py")):
        module = importlib.import_module(f"configs.{file.stem}")
        for variant in getattr(module, "SIZES", None) or getattr(module, "VARIANTS", ()):
            try:
                config = module.get_config(f"{variant},published")
            except UserError:  # nobody has published one
                config = module.get_config(variant)
            yield f"{file.stem}:{variant}", config


def counts(about: dict[str, Any]) -> tuple[str, ...]:
    """The cells under COLUMNS."""
    numbers = (f"{about[key]:,}" for key in COLUMNS[:3])
    return *numbers, f"{about['flops_per_token'] / 1e6:,.1f}", str(about["seq_len"])


def breakdown(about: dict[str, Any]) -> str:
    """One model, module by module."""
    rows = [("module", "parameters", "share")]
    for name, module in about["modules"].items():
        share = module["parameters"] / about["total"]
        rows.append((name, f"{module['parameters']:,}", f"{share:.1%}"))
    lines = cli.table(rows, right=(1, 2)).split("\n")
    for index, module in enumerate(about["modules"].values(), 1):
        arrays = (f"{name} {list(shape)}" for name, shape in module["arrays"].items())
        lines[index] += "  " + ", ".join(arrays)
    return "\n".join(lines)


def run() -> None:
    if _ALL.value and flags.FLAGS["config"].present:
        raise UserError("--all: found with --config, expected one of them")
    if _ALL.value:
        models = {name: describe(config) for name, config in shipped()}
    else:
        spec = config_flags.get_config_filename(flags.FLAGS["config"])
        models = {spec: describe(_CONFIG.value)}
    if _JSON.value:
        print(json.dumps([{"model": name, **about} for name, about in models.items()], indent=1))
        return
    rows = [("model", *COLUMNS), *((name, *counts(m)) for name, m in models.items())]
    print(cli.table(rows, right=range(1, len(rows[0]))))
    if not _ALL.value:
        print(f"\n{breakdown(models[spec])}")


if __name__ == "__main__":
    cli.main(run, __doc__)
