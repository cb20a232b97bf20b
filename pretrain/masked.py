"""From a config to the objectives that mask or replace pieces, and to the rows that they read."""

import dataclasses
from typing import Any

import numpy as np

from pretrain.config import Reader
from pretrain.data import pairs
from pretrain.data.encoders import TokenEncoder
from pretrain.data.loader import Dataset
from pretrain.data.static_masks import StaticMasks
from pretrain.data.store import TokenStore
from pretrain.data.tokenizer import AnyTokenizer
from pretrain.errors import UserError
from pretrain.models.families import FAMILIES, language_model, pair_model
from pretrain.models.heads import Discriminator
from pretrain.objectives.mlm import MaskedLM
from pretrain.objectives.pairs import SentencePairLM
from pretrain.objectives.rtd import ReplacedTokenDetection

SHORTEST_PAIR = pairs.NUM_SPECIAL + 2


def masking(pieces: AnyTokenizer, name: str) -> dict[str, Any]:
    """What a `MaskedLM` needs to know of the tokenizer; `UserError` if it has no mask token."""
    if pieces.mask_id is None:
        other = {"rtd": "objective.generator_size 0", "mlm": "causal"}.get(name, "spans")
        raise UserError(
            f"config.objective.name: found {name!r} with a tokenizer that has no mask token, "
            f"expected {other}, or a tokenizer with one"
        )
    return {
        "mask_id": pieces.mask_id,
        "special_ids": pieces.special_ids,
        "num_pieces": pieces.vocab_size,
    }


def masked_lm(config: Reader, options: Any, pieces: AnyTokenizer) -> MaskedLM:
    """The objective "mlm", with or without pairs of sentences."""
    objective, name = config.objective, config.model.name
    fields = masking(pieces, objective.name)
    fields |= {key: objective[key] for key in ("mask_rate", "mask_prob", "random_prob")}
    if objective.whole_words:
        fields["word_start"] = _word_start(pieces).tobytes()
    if not objective.sentence_pairs:
        return MaskedLM(language_model(name, options), **fields)
    _check_pairs(config)
    if options.type_vocab_size == 1:
        raise UserError(
            "config.model.type_vocab_size: found 1 with objective.sentence_pairs "
            f"{objective.sentence_pairs!r}, expected 2, or 0: no token types"
        )
    return SentencePairLM(pair_model(name, options), **fields)


def _word_start(pieces: AnyTokenizer) -> np.ndarray:
    """The tokenizer's own; `UserError` if it does not mark where words begin."""
    start = pieces.word_start
    if not np.delete(start, pieces.special_ids).any():
        raise UserError(
            "config.objective.whole_words: found True with a tokenizer none of whose pieces begins "
            "a word (it may mark the ends of words), expected False"
        )
    return start


def _check_pairs(config: Reader) -> None:
    found = config.objective.sentence_pairs
    if found not in pairs.KINDS:
        known = ", ".join(("''", *pairs.KINDS))
        raise UserError(
            f"config.objective.sentence_pairs: found {found!r}, expected one of {known}"
        )
    if config.data.packing:
        raise UserError(
            f"config.data.packing: found True with objective.sentence_pairs {found!r}, whose rows "
            "are one pair each; expected False"
        )
    if config.train.seq_len < SHORTEST_PAIR:
        raise UserError(
            f"config.train.seq_len: found {config.train.seq_len} with objective.sentence_pairs "
            f"{found!r}, expected at least {SHORTEST_PAIR}"
        )


def replaced_token_detection(
    config: Reader, options: Any, pieces: AnyTokenizer
) -> ReplacedTokenDetection:
    """The objective "rtd", with or without a generator."""
    objective, backbone = config.objective, FAMILIES[config.model.name].backbone
    size = objective.generator_size
    if not size:  # nothing is masked, all that is chosen is replaced
        return ReplacedTokenDetection(
            Discriminator(backbone(options)),
            mask_id=pieces.pad_id,
            special_ids=pieces.special_ids,
            num_pieces=pieces.vocab_size,
            mask_rate=objective.replace_rate,
            mask_prob=0.0,
            random_prob=1.0,
        )
    smaller = generator_options(options, size, objective.generator_layers)
    return ReplacedTokenDetection(
        Discriminator(backbone(options)),
        **masking(pieces, objective.name),
        mask_rate=objective.replace_rate,
        mask_prob=objective.mask_prob,
        random_prob=0.0,
        generator=language_model(config.model.name, smaller),
        discriminator_weight=objective.discriminator_weight,
    )


def generator_options(options: Any, size: float, layers: int = 0) -> Any:
    """The discriminator's ``options`` with ``size`` times the width, the heads and so on.

    Its embeddings stay as wide as the discriminator's, whose they are (Clark et al. 2020).
    ``layers``: its own, or 0 for as many as the discriminator has.
    """

    def part(count: int) -> int:
        return max(1, round(count * size))

    heads = part(options.num_heads)
    width = heads * max(1, round(options.hidden_size * size / heads))
    embedding = options.embedding_width
    smaller = dataclasses.replace(
        options,
        num_layers=layers or options.num_layers,
        hidden_size=width,
        embedding_size=embedding if embedding != width else 0,
        num_heads=heads,
        num_kv_heads=options.num_kv_heads and part(options.num_kv_heads),
        ffn_size=part(options.ffn_size),
        mup_base_width=options.mup_base_width and round(width / options.width_ratio),
    )
    if smaller.width_ratio != options.width_ratio:
        raise UserError(
            f"config.objective.generator_size: {size} makes a generator {width} wide, which is no "
            f"whole width times {options.width_ratio:g}, the ratio of hidden_size to "
            "mup_base_width; expected another size"
        )
    return smaller


def rows(config: Reader, store: TokenStore, encoder: TokenEncoder) -> Dataset:
    """The dataset that the objective "mlm" reads, of a store with rows of `row_length`."""
    objective = config.objective
    if kind := objective.sentence_pairs:
        store = pairs.SentencePairs(
            store, encoder.tokenizer, kind, encoder.seq_len, objective.short_rate
        )
    return StaticMasks(store, objective.static_masks) if objective.static_masks else store


def row_length(config: Reader, seq_len: int) -> int:
    """Tokens of a row of the store: a pair has one special token more than its window."""
    if config.objective.name != "mlm" or not config.objective.sentence_pairs:
        return seq_len
    _check_pairs(config)
    return seq_len - 1
