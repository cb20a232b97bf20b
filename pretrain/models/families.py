"""The families of backbones that ``config.model.name`` chooses from."""

from typing import Any, NamedTuple

import flax.linen as nn

from pretrain.models.adaptive import AdaptiveSoftmax
from pretrain.models.encoder_decoder import (
    EncoderDecoder,
    EncoderDecoderConfig,
    EncoderDecoderLMHead,
)
from pretrain.models.heads import LanguageModel, LMHead, PairModel
from pretrain.models.mobilebert import MobileBert, MobileBertConfig, MobileBertLMHead
from pretrain.models.transformer import Transformer, TransformerConfig
from pretrain.models.transformer_xl import TransformerXL, TransformerXLConfig


class Family(NamedTuple):
    """A backbone, its frozen options, its vocabulary head, and the objectives it can learn."""

    options: type
    backbone: type[nn.Module]
    lm_head: type[nn.Module]
    objectives: tuple[str, ...]  # of those on raw text; classify and tag go with every family


FAMILIES = {
    "transformer": Family(
        TransformerConfig, Transformer, LMHead, ("mlm", "causal", "prefix", "rtd")
    ),
    "mobilebert": Family(MobileBertConfig, MobileBert, MobileBertLMHead, ("mlm",)),
    "transformer_xl": Family(
        TransformerXLConfig, TransformerXL, AdaptiveSoftmax, ("causal", "recurrent")
    ),
    "encoder_decoder": Family(
        EncoderDecoderConfig,
        EncoderDecoder,
        EncoderDecoderLMHead,
        ("spans", "infilling", "denoising"),
    ),
}


def language_model(name: str, options: Any) -> LanguageModel:
    """The backbone of a family with its vocabulary head."""
    family = FAMILIES[name]
    return LanguageModel(family.backbone(options), family.lm_head(options))


def pair_model(name: str, options: Any) -> PairModel:
    """As `language_model`, with a head for pairs of texts."""
    family = FAMILIES[name]
    return PairModel(family.backbone(options), family.lm_head(options))
