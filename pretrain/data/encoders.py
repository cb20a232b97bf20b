"""From examples to columns: the part of a trained model that turns text into its input.

An encoder is saved in the workdir beside the checkpoint, so that evaluation and prediction need
neither the training data nor the training config's sources.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pretrain.data import features, labels, tokenizer
from pretrain.data.ngrams import NgramFeatures
from pretrain.data.words import WordEncoder
from pretrain.errors import UserError
from pretrain.files import read_json, write_json

Columns = dict[str, np.ndarray]
ABOUT, FEATURES = "encoder.json", "features.npz"


class TokenEncoder:
    """Rows of sub-word tokens, for transformers.

    Attributes:
      task: the objective's name, of `pretrain.schema.OBJECTIVES`.
      label_names: of the labelled tasks, else empty.
      seq_len: length of a row.
    """

    kind = "tokens"

    def __init__(
        self,
        tokenizer: tokenizer.AnyTokenizer,
        task: str,
        label_names: Sequence[str],
        seq_len: int,
    ):
        self.tokenizer, self.task = tokenizer, task
        self.label_names, self.seq_len = list(label_names), seq_len

    def encode(self, examples: Sequence[dict[str, Any]], key: str) -> Columns:
        """Columns of `pretrain.data.labels`; ``key`` is the config key named in errors."""
        encode = {"classify": labels.encode_classification, "tag": labels.encode_tags}[self.task]
        return encode(
            examples, self.tokenizer, seq_len=self.seq_len, label_names=self.label_names, key=key
        )

    def save(self, workdir: pathlib.Path) -> None:
        self.tokenizer.save(workdir / self.tokenizer.file_name)
        about = {"label_names": self.label_names, "seq_len": self.seq_len}
        write_json(workdir / ABOUT, {"kind": self.kind, "task": self.task, **about})


class FeatureEncoder:
    """Hashed sparse features, for linear models."""

    kind = "features"
    tokenizer = None

    def __init__(
        self,
        task: str,
        label_names: Sequence[str],
        *,
        num_features: int,
        window: int = 0,
        ngrams: NgramFeatures | None = None,
    ):
        self.task, self.label_names = task, list(label_names)
        self.num_features, self.window, self.ngrams = num_features, window, ngrams
        self.seq_len = 0  # set from the training rows: features of a text, or of a row of words

    def encode(self, examples: Sequence[dict[str, Any]], key: str) -> Columns:
        """Columns of `pretrain.data.features`; ``key`` is the config key named in errors."""
        if self.task == "classify":
            return features.encode_classification_features(
                examples, self.ngrams, label_names=self.label_names, key=key
            )
        return features.encode_tag_features(
            examples,
            num_features=self.num_features,
            label_names=self.label_names,
            window=self.window,
            key=key,
        )

    def save(self, workdir: pathlib.Path) -> None:
        if self.ngrams is not None:
            self.ngrams.save(workdir / FEATURES)
        about = {"label_names": self.label_names, "seq_len": self.seq_len}
        about |= {"num_features": self.num_features, "window": self.window}
        write_json(workdir / ABOUT, {"kind": self.kind, "task": self.task, **about})


Encoder = TokenEncoder | FeatureEncoder | WordEncoder


def load(workdir: pathlib.Path) -> Encoder:
    """The encoder of a training run's workdir."""
    if not (workdir / ABOUT).is_file():
        raise UserError(f"{workdir}: no {ABOUT} found; expected the workdir of a training run")
    about = read_json(workdir / ABOUT)
    kind, task, names = about.pop("kind"), about.pop("task"), about.pop("label_names")
    if kind == TokenEncoder.kind:
        return TokenEncoder(tokenizer.load(workdir), task, names, about["seq_len"])
    if kind == WordEncoder.kind:
        return WordEncoder(task, names, **about)
    path = workdir / FEATURES
    ngrams = NgramFeatures.load(path) if path.is_file() else None
    seq_len = about.pop("seq_len")
    encoder = FeatureEncoder(task, names, ngrams=ngrams, **about)
    encoder.seq_len = seq_len
    return encoder
