"""What the options of all families have in common: choices, checks, and ways of pooling."""

from typing import Any, NamedTuple

import jax

from pretrain.errors import UserError

# What a layer keeps for the backward pass: nothing but its input, or what a policy says.
POLICIES = {n: p for n, p in vars(jax.checkpoint_policies).items() if n.endswith("saveable")}
POLICIES |= {"full": None, "minimal": POLICIES["dots_with_no_batch_dims_saveable"]}
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
