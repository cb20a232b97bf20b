"""Hugging Face checkpoints in and out: directories as ``save_pretrained`` leaves them.

Each family of models is one file beside this one, which declares how its config.json and its
tensors are ours (`pretrain.hf.family.Family`). Nothing here needs torch or transformers.
"""

import pathlib
from typing import Any

from pretrain.hf import (
    bart,
    bert,
    distilbert,
    electra,
    gpt2,
    llama,
    mobilebert,
    modernbert,
    reading,
    roberta,
    t5,
    transformer_xl,
    writing,
)

FAMILIES = (
    bert.FAMILY,
    roberta.FAMILY,
    distilbert.FAMILY,
    electra.FAMILY,
    modernbert.FAMILY,
    gpt2.FAMILY,
    llama.FAMILY,
    mobilebert.FAMILY,
    transformer_xl.FAMILY,
    bart.FAMILY,
    t5.FAMILY,
    t5.ENCODER,
)


def load(directory: str | pathlib.Path) -> tuple[Any, dict]:
    """The model's options and its parameters, float32 arrays, from a directory with safetensors.

    `UserError` for an unknown family, an option that our model does not implement, or a tensor that
    is missing or misshapen. `read` tells more: the head, labels and unused tensors.
    """
    loaded = read(directory)
    return loaded.options, loaded.params


def read(directory: str | pathlib.Path) -> "reading.Loaded":
    """As `load`, with all that the directory says of the model."""
    return reading.read(pathlib.Path(directory), FAMILIES)


def save(directory: str | pathlib.Path, options: Any, params: dict, **about: Any) -> str:
    """Writes a directory that ``from_pretrained`` of transformers loads; returns its architecture.

    ``about``: see `pretrain.hf.writing.write`.
    """
    return writing.write(pathlib.Path(directory), FAMILIES, options, params, **about)
