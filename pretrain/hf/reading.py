"""A Hugging Face checkpoint becomes our options and parameters."""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pretrain.errors import UserError
from pretrain.hf import models
from pretrain.hf.family import CLASSES, CONFIG, HEADS, Family, read_options
from pretrain.hf.files import Weights, read_json
from pretrain.hf.tensors import Tensor
from pretrain.trees import nest

LEGACY = {".gamma": ".weight", ".beta": ".bias"}  # endings of old names, from TensorFlow


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A checkpoint that was read.

    Attributes:
      family: that config.json names.
      architecture: the class of transformers it was saved from.
      head: ours, ``""`` for a trunk alone.
      config: config.json.
      options: of our model.
      params: nested dict of float32 arrays.
      label_names: by class, for the heads that have classes.
      used: names of the tensors that became parameters, or repeat one that did.
      unused: names of all other tensors.
    """

    family: Family
    architecture: str
    head: str
    config: dict[str, Any]
    options: Any
    params: dict[str, Any]
    label_names: list[str]
    used: list[str]
    unused: list[str]


def read(directory: pathlib.Path, families: Sequence[Family]) -> Loaded:
    """Reads config.json and all tensors that the architecture it names has."""
    with Weights(directory) as weights:  # first of all: tells of files that are not safetensors
        config = read_json(directory / CONFIG)
        family = _family(config, families)
        options = family.from_hf(config)
        names = _Names(weights, family)
        tensors = family.tensors(options)
        head, architecture = _head(config, family, tensors, names)
        label_names = _label_names(config) if head in CLASSES else []
        pooler = _has_pooler(family, tensors, names)
        shapes = models.shapes(family, options, head, len(label_names), pooler)
        params = _read(tensors, shapes, names)
        _check_tied(family, tensors, names)
        return Loaded(
            family, architecture, head, config, options, nest(params), label_names,
            used=sorted(names.used), unused=[n for n in weights.names if n not in names.used],
        )  # fmt: skip


class _Names:
    """Finds tensors by the name that a checkpoint with a head has, and remembers which were."""

    def __init__(self, weights: Weights, family: Family):
        self.weights, self.prefix = weights, f"{family.base}." if family.base else ""
        self.used: set[str] = set()
        self._known = {}
        for name in weights.names:
            if not any(re.search(pattern, name) for pattern in family.ignored):
                ending = next((e for e in LEGACY if name.endswith(e)), "")
                self._known[name.removesuffix(ending) + LEGACY.get(ending, "")] = name

    def find(self, name: str) -> str | None:
        """Its name in the file: as it is, or without the base prefix."""
        bare = name.removeprefix(self.prefix)
        return self._known.get(name, self._known.get(bare))

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor, which must be there and have this shape."""
        found = self.find(name)
        if found is None:
            raise UserError(f"{self.weights.where}: lacks tensor {name!r}, expected shape {shape}")
        if (there := self.weights.shape(found)) != shape:
            raise UserError(
                f"{self.weights.where}: tensor {found!r} has shape {there}, expected {shape}"
            )
        self.used.add(found)
        return self.weights.read(found)


def _family(config: dict[str, Any], families: Iterable[Family]) -> Family:
    """By ``model_type``; of several, that which knows the architecture, else the first."""
    found, architectures = config.get("model_type"), config.get("architectures") or [None]
    if not isinstance(architectures, list):
        raise UserError(
            f"{CONFIG}: architectures: found {architectures!r}, expected a list of one name"
        )
    fitting = [family for family in families if family.model_type == found]
    if not fitting:
        known = dict.fromkeys(family.model_type for family in families)
        raise UserError(
            f"{CONFIG}: model_type: found {found!r}, expected one of {', '.join(known)}"
        )
    for family in fitting:
        if architectures[0] in (*family.architectures.values(), *family.accepts):
            return family
    return fitting[0]


def _head(
    config: dict[str, Any], family: Family, tensors: Iterable[Tensor], names: _Names
) -> tuple[str, str]:
    """Our head and the architecture that says so; without one, the tensors say it."""
    known = {name: head for head, name in family.architectures.items()} | dict(family.accepts)
    if found := config.get("architectures"):
        if found[0] not in known:
            raise UserError(
                f"{CONFIG}: architectures: found {found[0]!r}, expected one of {', '.join(known)} "
                f"({family.architectures['']} reads the trunk alone)"
            )
        return known[found[0]], found[0]
    there = {t.ours[0].split("/")[0] for t in tensors if names.find(t.theirs) is not None}
    head = next((head for head in HEADS if head in there and head in family.architectures), "")
    return head, family.architectures[head]


def _label_names(config: dict[str, Any]) -> list[str]:
    """Names by class: of ``id2label``, else what transformers calls them."""
    named = config.get("id2label")
    if named is None:
        count = read_options(config, {"num_labels": 2})["num_labels"]
        return [f"LABEL_{i}" for i in range(count)]
    if not isinstance(named, dict):
        raise UserError(f'{CONFIG}: id2label: found {named!r}, expected {{"0": NAME, ...}}')
    names = [named.get(str(i)) for i in range(len(named))]
    if None in names or not names:
        found = ", ".join(named) or "none"
        raise UserError(f"{CONFIG}: id2label: found the classes {found}, expected 0, 1, ...")
    if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise UserError(f"{CONFIG}: id2label: {twice[0]!r} names two classes, expected one")
    return [str(name) for name in names]


def _has_pooler(family: Family, tensors: Iterable[Tensor], names: _Names) -> bool:
    """Whether the file has the pooler of the base model, which goes with any head."""
    pooler = [
        tensor
        for tensor in tensors
        if tensor.ours[0].startswith("pooler/") and tensor.theirs.startswith(names.prefix)
    ]
    return bool(family.base and pooler) and all(names.find(t.theirs) for t in pooler)


def _read(tensors: Iterable[Tensor], shapes: models.Shapes, names: _Names) -> dict[str, np.ndarray]:
    """All parameters, from one tensor of the file at a time."""
    params = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
    left = set(params)
    for tensor in tensors:
        if not set(tensor.ours) <= params.keys():
            continue
        ours = [shapes[path] for path in tensor.ours]
        expected = tensor.their_shape(ours)
        for name, index in tensor.indexed(ours):
            parts = tensor.to_ours(names.take(name, expected), ours)
            for path, part in zip(tensor.ours, parts, strict=True):
                params[path][index] = part
        left -= set(tensor.ours)
    assert not left, f"no tensor gives {sorted(left)}"
    return params


def _check_tied(family: Family, tensors: Iterable[Tensor], names: _Names) -> None:
    """Tensors that the file has twice must be equal."""
    own = {tensor.theirs for tensor in tensors}
    for copy, original in family.tied.items():
        there, of = names.find(copy), names.find(original)
        if copy in own or there is None or of is None or there == of:
            continue
        if not np.array_equal(names.weights.read(there), names.weights.read(of)):
            raise UserError(
                f"{names.weights.where}: tensor {there!r} differs from {of!r}, expected them "
                f"equal: the model ties them (tie_word_embeddings in {CONFIG})"
            )
        names.used.add(there)
