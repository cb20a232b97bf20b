"""What a family of Hugging Face models declares, and how their config.json is read."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pretrain.errors import UserError
from pretrain.hf.tensors import Tensor

CONFIG = "config.json"
CLASSES = ("classification_head", "tagging_head")
HEADS = ("pair_head", "lm_head", *CLASSES, "discriminator_head")  # "": none


@dataclasses.dataclass(frozen=True)
class Family:
    """One ``model_type`` of transformers, or some of its architectures.

    Attributes:
      model_type: as config.json has it.
      base: prefix of the trunk's tensors in checkpoints with a head; files of base models lack it.
      model: name of ours in `pretrain.models.families.FAMILIES`.
      architectures: the class of transformers for each of our heads, ``""`` for the trunk alone.
      from_hf: config.json to our options; `UserError` for what our model does not implement.
      to_hf: our options to config.json, without what belongs to a head. A family can express
        options if ``from_hf(to_hf(options))`` gives them back.
      tensors: all tensors of our options; those whose arrays a model lacks do not apply to it.
      accepts: further architectures and the head that we take from them.
      ignored: patterns of tensors that hold no parameters, such as ``position_ids``.
      tied: tensors that repeat another one, in some files: their name to that of the other.
      copied: those of ``tied`` that are written too, as ``from_pretrained`` takes them from there.
      bare: heads whose checkpoints lack the prefix ``base``; always that without a head.
      pool: ``objective.pool`` of its classifiers.
      tag_pooler: ``objective.pooler`` of its taggers.
      head_dropout: keys for the dropout before a head's last layer with the class's defaults; the
        first that is not None counts.
    """

    model_type: str
    base: str
    model: str
    architectures: Mapping[str, str]
    from_hf: Callable[[dict[str, Any]], Any]
    to_hf: Callable[[Any], dict[str, Any]]
    tensors: Callable[[Any], list[Tensor]]
    accepts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    copied: tuple[str, ...] = ()
    bare: tuple[str, ...] = ("",)
    pool: str = "pooler"
    tag_pooler: bool = False
    head_dropout: Mapping[str, float | None] = dataclasses.field(
        default_factory=lambda: {"classifier_dropout": None, "hidden_dropout_prob": 0.1}
    )


def read_options(
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    only: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The options of a config.json that ``defaults`` names, with those of transformers' class.

    A default of None stands for an optional int.

    ``only``: further options with the one value, or the tuple of values, that our model implements;
    absent ones are fine. `UserError` names the option, what was found, and what is expected.
    """
    model_type = config.get("model_type")
    for key, expected in (only or {}).items():
        allowed = expected if isinstance(expected, tuple) else (expected,)
        if key in config and config[key] not in allowed:
            found, wanted = config[key], " or ".join(map(repr, allowed))
            raise UserError(
                f"{CONFIG}: {key} of model_type {model_type!r}: found {found!r}, expected {wanted}"
            )
    options = {key: config.get(key, default) for key, default in defaults.items()}
    for key, value in options.items():
        if value is None and defaults[key] is None:
            continue
        kind = int if defaults[key] is None else type(defaults[key])
        fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            options[key], fits = float(value), True
        if not fits:
            raise UserError(f"{CONFIG}: {key}: found {value!r}, expected {kind.__name__}")
    return options


def one_of(key: str, found: Any, known: Mapping[str, Any]) -> Any:
    """``known[found]``; `UserError` names the key of config.json and lists the known values."""
    if found not in known:
        raise UserError(f"{CONFIG}: {key}: found {found!r}, expected one of {', '.join(known)}")
    return known[found]


ACTIVATIONS = {  # of transformers, by name, to ours
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
TO_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}
