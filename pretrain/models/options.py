"""What the options of all families have in common: choices, checks, and ways of pooling."""

import math
from typing import Any, NamedTuple

import jax

from pretrain.errors import UserError

PRODUCT = "product"  # names what a product with weights comes to,
CONTEXT = "context"  # what attention comes to, and what its kernel keeps
# What a layer keeps for the backward pass: nothing but its input, or what a policy says. Not those
# that look for products without batch dimensions: copies of weights are one (`pretrain.fsdp`).
POLICIES = {
    name: policy
    for name, policy in vars(jax.checkpoint_policies).items()
    if name.endswith("saveable") and "no_batch_dims" not in name
}
POLICIES |= {
    "full": None,
    "minimal": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "minimal_with_context": jax.checkpoint_policies.save_only_these_names(PRODUCT, CONTEXT),
}
REMAT = ("none", *sorted(POLICIES))
SHARED = {"dtype": ("float32", "bfloat16"), "remat": REMAT}


class Pooling(NamedTuple):
    """How a published family makes one vector of a text before its classification layer."""

    position: str  # "first", "last" or "mean"
    activation: str  # after the dense layer; "": no such layer
    bias: bool = True
    norm: bool = False  # after the activation
    dropout: bool = False  # also before the dense layer


POOLERS = {  # of objective.pool "pooler", by model.pooler
    "bert": Pooling("first", "tanh"),
    "roberta": Pooling("first", "tanh", dropout=True),
    "distilbert": Pooling("first", "relu"),
    "electra": Pooling("first", "gelu", dropout=True),
    "modernbert": Pooling("first", "gelu", bias=False, norm=True),
    "modernbert_mean": Pooling("mean", "gelu", bias=False, norm=True),
    "bart": Pooling("last", "tanh", dropout=True),
    "none": Pooling("first", ""),  # MobileBERT as released: no dense layer
}
# A pooler's norm is the trunk's, with or without bias: other families have no such option.
WITHOUT_NORM = tuple(name for name, style in POOLERS.items() if not style.norm)


class Widths:
    """How the options of a family say that its parameters scale with its width.

    muP (Yang et al. 2022): a model has the hyperparameters of a narrower base. In the form of
    their Table 8, matrices from width to width begin smaller and learn at a lower rate
    (`pretrain.optim.width_scales`), and what goes into logits is divided by the ratio. With a
    ratio of 1, as of every family but the trunk, it is the standard parametrisation.
    """

    width_ratio = 1.0  # of the width to the base's
    is_standard = True

    @property
    def matrix_init_std(self) -> float:
        """Of matrices from width to width, whose fan-in grows."""
        return self.init_std / math.sqrt(self.width_ratio)


def check_choices(options: Any, choices: dict[str, tuple[str, ...]]) -> None:
    """`UserError` for a field of ``options`` that is not one of its ``choices``."""
    for name, known in (choices | SHARED).items():
        if (found := getattr(options, name)) not in known:
            raise UserError(
                f"config.model.{name}: found {found!r}, expected one of {', '.join(known)}"
            )


def check_least(options: Any, **least: int) -> None:
    """`UserError` for a field of ``options`` that is less than given."""
    for name, bound in least.items():
        if (found := getattr(options, name)) < bound:
            raise UserError(f"config.model.{name}: found {found}, expected at least {bound}")


def check_divides(options: Any, part: str, whole: str) -> None:
    """`UserError` unless the field ``part`` of ``options`` divides ``whole``."""
    found, total = getattr(options, part), getattr(options, whole)
    if found < 1 or total % found:
        raise UserError(f"config.model.{part}: {found} does not divide {whole} {total}")


def check_position_offset(options: Any) -> None:
    """`UserError` for an offset into a table of positions that is not there."""
    if options.position_offset and options.position != "learned":
        raise UserError(
            f"config.model.position_offset: found {options.position_offset} with position "
            f"{options.position!r}, which has no table; expected 0"
        )
