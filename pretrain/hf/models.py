"""The model that a family's trunk and head make, and the shapes of its parameters."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pretrain.hf.family import Family
from pretrain.models import families
from pretrain.models.heads import (
    Classifier,
    Discriminator,
    Encoder,
    LanguageModel,
    PairModel,
    Tagger,
)
from pretrain.trees import flatten

Shapes = dict[str, tuple[int, ...]]  # by path


def build(family: Family, options: Any, head: str, num_classes: int = 2) -> nn.Module:
    """The model with this head; none: the trunk alone."""
    ours = families.FAMILIES[family.model]
    trunk = ours.backbone(options)
    if head == "pair_head":
        return PairModel(trunk, ours.lm_head(options))
    if head == "lm_head":
        return LanguageModel(trunk, ours.lm_head(options))
    if head == "classification_head":
        return Classifier(trunk, num_classes, family.pool, 0.0)
    if head == "tagging_head":
        return Tagger(trunk, num_classes, 0.0, family.tag_pooler)
    return Discriminator(trunk) if head else Encoder(trunk, False)


def shapes(family: Family, options: Any, head: str, num_classes: int, pooler: bool) -> Shapes:
    """Of all parameters, by path; ``pooler``: also that of the base model."""
    found = dict(_shapes(build(family, options, head, num_classes)))
    if pooler:
        backbone = families.FAMILIES[family.model].backbone(options)
        found |= _shapes(Encoder(backbone, True))
    return found


@functools.lru_cache
def _shapes(model: nn.Module) -> Shapes:
    tokens = jnp.ones((1, 2), jnp.int32)

    def init():
        key = jax.random.key(0)
        if isinstance(model, Classifier | Tagger):
            return model.init(key, {"tokens": tokens, "segment_ids": tokens})
        return model.init(key, tokens, method="initialise")

    params = nn.unbox(jax.eval_shape(init))["params"]
    return {path: leaf.shape for path, leaf in flatten(params).items()}
