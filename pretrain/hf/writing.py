"""Our options and parameters become a Hugging Face checkpoint."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pretrain.data.cache import atomic_directory
from pretrain.errors import UserError
from pretrain.files import check_new_folder, write_text
from pretrain.hf import models
from pretrain.hf.family import CLASSES, CONFIG, HEADS, Family
from pretrain.hf.files import SHARD_BYTES, write_weights
from pretrain.hf.tensors import Tensor
from pretrain.hf.trunk import comparable
from pretrain.models.options import Widths
from pretrain.trees import flatten

logger = logging.getLogger(__name__)


def write(
    directory: pathlib.Path,
    families: Sequence[Family],
    options: Any,
    params: Mapping[str, Any],
    *,
    head: str | None = None,
    label_names: Sequence[str] = (),
    special_ids: Mapping[str, int] | None = None,
    head_dropout: float | None = None,
    pool: str = "",
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Writes config.json and the weights; returns the architecture.

    Args:
      directory: must not exist, or be empty; it appears whole or not at all.
      families: those to choose from: the first that can express ``options``.
      options: of the model, such as a `TransformerConfig`.
      params: nested dict of arrays.
      head: one of `HEADS`, ``""``: none. Default: the one in ``params``, or the vocabulary head
        where it has no parameters of its own.
      label_names: of the classes of its head; default: LABEL_0, ...
      special_ids: ``{"pad_token_id": 0, ...}``, for config.json; one that would make another model
        of it is left out with a warning (RoBERTa counts positions from its padding id).
      head_dropout: before the head's last layer.
      pool: how a classifier pools, `UserError` unless the family does so; "": as it does.
      shard_bytes: of a file of weights, at most.
    """
    check_new_folder(directory, "directory")
    family = find_family(families, options, params)
    if head is None:
        head = _head_of(family, options, params)
    if head not in family.architectures:
        raise UserError(f"params: {family.model_type} of transformers has no model with {head}")
    if head == "classification_head" and pool not in ("", family.pool):
        raise UserError(
            f"config.objective.pool: found {pool!r}, expected {family.pool!r}, which is how "
            f"{family.architectures[head]} of transformers pools"
        )
    flat = flatten(params)
    num_classes = flat[f"{head}/kernel"].shape[-1] if head in CLASSES else 0
    tensors = _check(family, options, head, num_classes, flat)
    config = {"architectures": [family.architectures[head]], "model_type": family.model_type}
    config |= family.to_hf(options) | {"torch_dtype": "float32"}
    model = family.from_hf(config)
    for key, value in (special_ids or {}).items():
        if family.from_hf(config | {key: value}) == model:
            config[key] = value
        else:
            logger.warning(
                "%s: %s stays %s, from which %s of transformers counts positions, though the "
                "tokenizer has %s: padded rows need attention_mask, and those that hold token %s "
                "get other positions there",
                CONFIG, key, config[key], family.model_type, value, config[key],
            )  # fmt: skip
    if head in CLASSES:
        names = list(label_names) or [f"LABEL_{i}" for i in range(num_classes)]
        if len(names) != num_classes:
            raise UserError(f"label_names: found {len(names)}, expected {num_classes} of {head}")
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
        if head_dropout is not None:
            config[next(iter(family.head_dropout))] = head_dropout
    prefix = f"{family.base}." if family.base and head in family.bare else ""
    with atomic_directory(directory) as building:
        write_text(building / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
        write_weights(building, _tensors(family, tensors, flat, prefix), shard_bytes)
        if directory.is_dir():
            directory.rmdir()  # empty; a folder cannot take its place on every system
    return family.architectures[head]


def find_family(families: Sequence[Family], options: Any, params: Mapping[str, Any]) -> Family:
    """The first family whose config.json gives the options back.

    If none does exactly: the first that does up to what has no effect on a model with these
    parameters, such as the options of a head that is not there.
    """
    if isinstance(options, Widths) and not options.is_standard:
        raise UserError(
            f"config.model.mup_base_width: found {options.mup_base_width} (mup_base_head_size "
            f"{options.mup_base_head_size}) with hidden_size {options.hidden_size} in heads of "
            f"{options.head_width}: transformers has no muP, expected 0"
        )
    closest: dict[str, list[str]] = {}
    for heads in ((*HEADS, "pooler"), tuple(params)):
        closest = {}
        for family in families:
            if models.families.FAMILIES[family.model].options is not type(options):
                continue
            told = _differences(family, options, heads)
            if not told:
                return family
            closest[family.model_type] = told
    if not closest:
        raise UserError(f"model: transformers has none for a {type(options).__name__}")
    name = min(closest, key=lambda model_type: len(closest[model_type]))
    raise UserError(
        f"config.model: no family of transformers has these options; {name}, the closest, differs "
        f"in {'; '.join(closest[name])}"
    )


def _head_of(family: Family, options: Any, params: Mapping[str, Any]) -> str:
    if found := next((name for name in HEADS if name in params), ""):
        return found
    of_lm = models.shapes(family, options, "lm_head", 0, pooler=False)
    return "" if any(path.startswith("lm_head/") for path in of_lm) else "lm_head"


def _differences(family: Family, options: Any, heads: Sequence[str]) -> list[str]:
    """What stands in the way of expressing ``options``."""
    try:
        back = comparable(family.from_hf(_with_type(family, options)), heads)
    except UserError as error:
        return [str(error)]
    ours = comparable(options, heads)
    return [
        f"{key}: found {value!r}, expected {back[key]!r}"
        for key, value in ours.items()
        if value != back[key]
    ]


def _with_type(family: Family, options: Any) -> dict[str, Any]:
    return {"model_type": family.model_type} | family.to_hf(options)


def _check(
    family: Family, options: Any, head: str, num_classes: int, flat: Mapping[str, Any]
) -> list[Tensor]:
    """The tensors to write; the parameters must be just those of the model."""
    pooler = "pooler/dense/kernel" in flat
    expected = models.shapes(family, options, head, num_classes, pooler)
    for path in sorted(expected.keys() | flat.keys()):
        wanted = expected.get(path, "none")
        found = flat[path].shape if path in flat else "none"
        if found != wanted:
            raise UserError(
                f"params: {path}: found shape {found}, expected {wanted} for "
                f"{family.architectures[head]}"
            )
    tensors = [t for t in family.tensors(options) if set(t.ours) <= flat.keys()]
    if left := flat.keys() - {path for tensor in tensors for path in tensor.ours}:
        raise UserError(
            f"params: {min(left)}: found, expected none: {family.architectures[head]} of "
            "transformers has nothing like it"
        )
    names = [tensor.theirs for tensor in tensors]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"params: a pooler and {head} would both be tensor {min(twice)!r}")
    return tensors


def _tensors(
    family: Family, tensors: Sequence[Tensor], flat: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays; ``prefix`` is dropped."""
    copies = [
        dataclasses.replace(tensor, theirs=copy)
        for copy in family.copied
        for tensor in tensors
        if tensor.theirs == family.tied[copy]
    ]
    for tensor in (*tensors, *copies):
        arrays = [np.asarray(flat[path], np.float32) for path in tensor.ours]
        for name, index in tensor.indexed([array.shape for array in arrays]):
            yield name.removeprefix(prefix), tensor.to_theirs([array[index] for array in arrays])
