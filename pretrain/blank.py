"""A config's model, objective and batches without data or a tokenizer, to count and compile them.

The vocabulary is that of ``model.vocab_size``, else as large as ``tokenizer.vocab_size`` asks for;
a labelled task has two classes.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from pretrain import config as configs
from pretrain import masked, sequences, state, tasks
from pretrain.data.loader import Batch
from pretrain.data.store import Stats
from pretrain.errors import UserError
from pretrain.objectives.base import Objective

LABELS = ("0", "1")


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The part of a tokenizer that models and rows need."""

    vocab_size: int
    pad_id: int = 0
    cls_id: int = 2
    sep_id: int = 3
    mask_id: int = 4
    special_ids: tuple[int, ...] = (0, 1, 2, 3, 4)
    prefix: tuple[int, ...] = (2,)

    @property
    def pieces(self) -> tuple[str, ...]:
        return ("",) * self.vocab_size

    texts = pieces

    @property
    def word_start(self) -> np.ndarray:
        return np.ones(self.vocab_size, bool)


class Encoder(NamedTuple):
    """The part of an encoder that models and rows need."""

    tokenizer: Pieces | None
    seq_len: int
    label_names: tuple[str, ...]


class Rows(NamedTuple):
    """In place of a token store: two rows, each one whole document."""

    seq_len: int
    stream: bool
    stats: Stats = Stats(2, 0, 2, 0, 0.0)
    name: str = "no data"

    @property
    def begins(self) -> np.ndarray:
        return np.ones(len(self), bool)

    def __len__(self) -> int:
        return self.stats.num_rows

    def __getitem__(self, indices: np.ndarray) -> Batch:
        tokens = np.full((len(indices), self.seq_len), 5, np.int32)
        positions = np.broadcast_to(np.arange(self.seq_len, dtype=np.int32), tokens.shape)
        rows = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": positions}
        return rows | ({"next_token": tokens[:, 0]} if self.stream else {})


def encoder(config: ConfigDict) -> Encoder:
    """Of a config's rows."""
    labelled = config.objective.name not in configs.LANGUAGE_MODELS
    pieces = None
    if "tokenizer" in config:
        wanted = config.tokenizer.vocab_size
        pieces = Pieces(min(wanted, config.model.vocab_size or wanted))
    return Encoder(pieces, config.train.get("seq_len", 1), LABELS if labelled else ())


def check_has_rows(config: ConfigDict) -> None:
    """`UserError` for a config without rows that are known before its data: reads only that much.

    Such are studies, which are many runs, and labelled tasks, as long as their longest text.
    """
    if "runs" in config:
        raise UserError(
            f"config.runs: found a study of {len(config.runs)} runs, expected the config of one run"
        )
    if (name := config.objective.name) not in configs.LANGUAGE_MODELS:
        raise UserError(
            f"config.objective.name: found {name!r}, whose rows depend on the data, expected one "
            f"of {', '.join(configs.LANGUAGE_MODELS)}"
        )


def objective(config: ConfigDict) -> Objective:
    """The model of ``config`` with its loss."""
    return tasks.make_objective(configs.Reader(config), encoder(config))


def batch_shapes(config: ConfigDict, num_rows: int) -> tuple:
    """`pretrain.state.shapes` of a batch, of a config that `check_has_rows` lets pass."""
    read, about, name = configs.Reader(config), encoder(config), config.objective.name
    helper = sequences if name in sequences.NAMES else masked
    rows = Rows(helper.row_length(read, about.seq_len), name == "recurrent")
    if name in ("mlm", *sequences.NAMES):
        rows = helper.rows(read, rows, about)
    columns = rows[np.arange(1)]
    return tuple((n, (num_rows, *s[1:]), d) for n, s, d in state.shapes(columns))
