"""Nested dictionaries of arrays as flat ones, by path: ``trunk/layers/ffn/in/kernel``."""

from collections.abc import Callable, Mapping
from typing import Any

import jax


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """``{"a": {"b": x}} -> {"a/b": x}``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
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
