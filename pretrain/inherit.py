"""What a run takes from the one it starts from: the model section, and the weights."""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pretrain import config as configs
from pretrain import processes, surgery, tasks
from pretrain.checkpoint import load_params
from pretrain.data import encoders
from pretrain.errors import UserError
from pretrain.files import read_json, write_text
from pretrain.schema import RUNTIME_FIELDS, SMALL_MODELS
from pretrain.surgery import FRESH, Surgery
from pretrain.trees import Names, dimension_names

logger = logging.getLogger(__name__)

REPORT = "surgery.txt"  # in the workdir: what became of every array
SPECIAL = ("pad_id", "unk_id", "cls_id", "sep_id", "mask_id")  # of a tokenizer


def resolve(config: ConfigDict) -> ConfigDict:
    """A copy in which the model of ``init_from``, if any, stands under ``model``.

    With ``surgery.layers`` it has so many layers, with ``surgery.resize`` this config's rows; with
    ``surgery.tile`` or ``surgery.keep_model`` the section stays this config's.
    """
    config = ConfigDict(config.to_dict())
    operation = surgery.parse(**config.surgery.to_dict())
    if not config.init_from:
        if operation != Surgery():
            raise UserError("config.init_from: found '' with config.surgery, expected a workdir")
        return config
    source = _model_of(config.init_from)
    names = {source["name"], config.model.name}
    if len(names) > 1 and not names.isdisjoint(SMALL_MODELS):
        raise UserError(
            f"config.init_from: {config.init_from} holds a {source['name']} model, expected one "
            f"for a config with model.name {config.model.name!r}"
        )
    if operation.keep_model or operation.tile:
        theirs, ours = (
            {k: v for k, v in section.items() if k not in RUNTIME_FIELDS}
            for section in (source, config.model)
        )
        if differ := configs.differences(theirs, ours):
            logger.info("config.init_from: its model is another: %s", "; ".join(differ))
    else:
        if operation.layers:  # an encoder-decoder's number 0 says as many as the other stack
            depth = len(operation.layers)
            source |= {k: depth for k in ("num_layers", "num_decoder_layers") if source.get(k)}
        own = [surgery.TABLES[name] for name in operation.resize]
        config, replaced = configs.inherit(config, source, (*RUNTIME_FIELDS, *own))
        if replaced:
            told = ", ".join(replaced)
            logger.warning("config.init_from: the source's values replace %s", told)
    for name in operation.resize:
        if surgery.TABLES[name] not in config.model:
            raise UserError(
                f"config.surgery.resize: found {name!r}, which a {config.model.name} model lacks"
            )
    return config


def _model_of(init_from: str) -> dict[str, Any]:
    """The ``model`` section of a finished run."""
    file = pathlib.Path(init_from) / tasks.CONFIG
    if not file.is_file():
        raise UserError(
            f"config.init_from: no {tasks.CONFIG} in {init_from!r}; "
            "expected the workdir of a training run"
        )
    source = read_json(file)
    if "model_type" in source:
        raise UserError(
            f"config.init_from: {init_from} is a Hugging Face checkpoint; expected the workdir "
            f"that python -m tools.import_hf {init_from} WORKDIR makes of it"
        )
    if not (file.parent / tasks.RESULT).is_file():
        raise UserError(f"config.init_from: {init_from} has not finished; run it again")
    return source["model"]


def inherit_params(
    task: tasks.Task,
    params: Any,
    mesh: Mesh,
    init_from: str,
    operation: Surgery | None,
    workdir: pathlib.Path,
) -> Any:
    """``params``, freshly initialised, with those of ``init_from``.

    Prints in short what became of which array, and writes it in full into the workdir.
    """
    operation = operation or Surgery()
    boxed = jax.eval_shape(task.learner.init, jax.random.key(0))["params"]
    rows = {}
    if "vocab" in operation.resize:
        old, new = encoders.load(pathlib.Path(init_from)).tokenizer, task.encoder.tokenizer
        if old.fingerprint != new.fingerprint:
            rows["vocab"] = piece_rows(new, old)
    source, step = load_params(init_from, mesh, like=params)
    names = dimension_names(boxed)
    params, report = surgery.transplant(
        params, source, operation, origin=f"{init_from} at step {step}", names=names, rows=rows
    )
    if task.encoder.label_names:
        _check_labels(init_from, task.encoder.label_names, report, names)
    if processes.first():
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(workdir / REPORT, str(report))
    print(report.summary(), flush=True)
    return params


def _check_labels(
    init_from: str, ours: list[str], report: surgery.Report, names: Mapping[str, Names]
) -> None:
    """`UserError` if an array was taken whose classes are others than those of the data.

    ``names``: of the arrays' dimensions; "classes" in heads, and in transitions between tags.
    """
    heads = [x.path for x in report.loaded if "classes" in names.get(x.path, ())]
    theirs = encoders.load(pathlib.Path(init_from)).label_names if heads else ours
    if theirs != ours:
        hint = "it has nothing else to start from"
        if len(heads) < len(report.loaded):
            rules = "; ".join(f"{path} -> fresh" for path in heads)
            hint = f"config.surgery.rules '{rules}' would begin with a new head"
        raise UserError(
            f"config.init_from: {init_from} has the labels {', '.join(theirs)}, expected those of "
            f"data.train, {', '.join(ours)}; {hint}"
        )


def piece_rows(new: Any, old: Any) -> np.ndarray:
    """``[pieces]``: for each piece of the ``new`` tokenizer its row in a table of the ``old`` one.

    Equal pieces share a row, else special tokens that serve the same purpose; others are `FRESH`.
    """
    row_of = {piece: i for i, piece in reversed(list(enumerate(old.pieces))) if piece}
    rows = np.array([row_of.get(piece, FRESH) for piece in new.pieces])
    for name in SPECIAL:
        here, there = getattr(new, name), getattr(old, name)
        if here is not None and there is not None and rows[here] == FRESH:
            rows[here] = there
    return rows
