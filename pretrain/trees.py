"""Nested dictionaries of arrays as flat ones, by path: ``trunk/layers/ffn/in/kernel``."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

Names = tuple[str | None, ...]  # of an array's dimensions: "layers", "embed", "heads", "kv"


def _is_boxed(x: Any) -> bool:
    return isinstance(x, nn.LogicallyPartitioned)


def flatten(tree: Any) -> dict[str, Any]:
    """``{"a": {"b": x}} -> {"a/b": x}``; an array boxed with logical axis names is one leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_boxed)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    nested: dict = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = leaf
    return nested


def split(tree: Any, chosen: Callable[[str], bool]) -> tuple[dict, dict]:
    """The leaves whose path is ``chosen``, and the others, each nested as in ``tree``."""
    parts: tuple[dict, dict] = ({}, {})
    for path, leaf in flatten(tree).items():
        parts[0 if chosen(path) else 1][path] = leaf
    return nest(parts[0]), nest(parts[1])


def merge(*parts: Any) -> dict:
    """The inverse of `split`."""
    return nest({k: x for part in parts for k, x in flatten(part).items()})


def dimension_names(boxed: Any) -> dict[str, Names]:
    """By path, of parameters that carry names (``nn.with_logical_partitioning``)."""
    return {path: x.names for path, x in flatten(boxed).items() if _is_boxed(x)}
