"""From a config to the objectives that write sequences, and to the rows that they read."""

import dataclasses
import itertools
from typing import Any

from pretrain.config import Reader
from pretrain.data import noise
from pretrain.data.encoders import TokenEncoder
from pretrain.data.loader import Dataset
from pretrain.data.sentences import Sentences
from pretrain.data.store import TokenStore
from pretrain.data.tokenizer import AnyTokenizer
from pretrain.errors import UserError
from pretrain.masked import masking
from pretrain.models.families import language_model
from pretrain.objectives.language import Language
from pretrain.objectives.prefix import PrefixLM
from pretrain.objectives.recurrent import RecurrentLM
from pretrain.objectives.spans import Infilling, Spans

NAMES = ("spans", "infilling", "prefix", "recurrent")
SENTINEL = "<extra_id_{}>"  # T5's name of one


def make_objective(config: Reader, options: Any, encoder: TokenEncoder) -> Language:
    """One of `NAMES`; ``options`` are those of the model."""
    objective, name = config.objective, config.model.name
    model, chunk_size = language_model(name, options), objective.chunk_size
    if objective.name == "prefix":
        return PrefixLM(model, chunk_size)
    if objective.name == "recurrent":
        if not config.train.batch_size:
            raise UserError(
                "config.train.batch_size: found 0 with objective.name 'recurrent', expected the "
                "number of streams"
            )
        return RecurrentLM(model, chunk_size, language_model(name, _held_out(config, options)))
    if objective.name == "infilling":
        masking(encoder.tokenizer, objective.name)
        return Infilling(model, chunk_size, encoder.seq_len)
    sentinel_ids(config, encoder.tokenizer, options.vocab_size)
    _, target_length, _ = _span_lengths(config, encoder.seq_len)
    if target_length > options.max_positions:
        raise UserError(
            f"config.model.max_positions: found {options.max_positions}, expected at least "
            f"{target_length}, the length of targets with objective.noise_density "
            f"{objective.noise_density} and mean_span {objective.mean_span}"
        )
    return Spans(model, chunk_size, target_length)


def sentinel_ids(config: Reader, pieces: AnyTokenizer, vocab_size: int) -> tuple[int, ...]:
    """What stands for spans: the tokenizer's own sentinels, or ids above its pieces.

    `UserError` if the model's vocabulary has no room for these.
    """
    own = {piece: i for i, piece in enumerate(pieces.pieces)}
    if SENTINEL.format(0) in own:
        names = itertools.takewhile(own.__contains__, map(SENTINEL.format, itertools.count()))
        return tuple(own[name] for name in names)
    count = config.objective.num_sentinels
    if vocab_size < pieces.vocab_size + count:
        raise UserError(
            f"config.model.vocab_size: found {vocab_size}, expected at least "
            f"{pieces.vocab_size + count}: the tokenizer's {pieces.vocab_size} pieces and "
            f"objective.num_sentinels {count}, which it has not itself"
        )
    return tuple(range(pieces.vocab_size, pieces.vocab_size + count))


def _span_lengths(config: Reader, seq_len: int) -> tuple[int, int, int]:
    objective = config.objective
    return noise.span_lengths(
        seq_len, objective.noise_density, objective.mean_span, config.data.packing
    )


def _held_out(config: Reader, options: Any) -> Any:
    """The model's options in evaluation."""
    if not (longest := config.objective.eval_mem_len):
        return options
    clamp = config.objective.eval_clamp_len
    return dataclasses.replace(options, mem_len=longest, clamp_len=clamp, same_length=True)


def row_length(config: Reader, seq_len: int) -> int:
    """Tokens of a row of the store, for ``seq_len`` of the encoder."""
    return _span_lengths(config, seq_len)[0] if config.objective.name == "spans" else seq_len


def rows(config: Reader, store: TokenStore, encoder: TokenEncoder) -> Dataset:
    """The dataset that the objective reads, of a store with rows of `row_length`."""
    objective, pieces = config.objective, encoder.tokenizer
    if objective.name == "infilling":
        sentences = Sentences.of(pieces) if objective.permute_sentences else None
        infilling = noise.Infilling(
            encoder.seq_len,
            objective.noise_density,
            objective.mean_span,
            pieces.mask_id,
            pieces.pad_id,
            sentences,
        )
        return noise.Corrupted(store, infilling)
    if objective.name == "spans":
        spans = noise.SpanCorruption(
            encoder.seq_len,
            objective.noise_density,
            objective.mean_span,
            config.data.packing,
            sentinel_ids(config, pieces, config.model.vocab_size or pieces.vocab_size),
            pieces.pad_id,
            pieces.sep_id,
            start=bool(pieces.prefix),
        )
        return noise.Corrupted(store, spans)
    return store
