"""What the families of our transformer trunk share."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from pretrain.models.transformer import TransformerConfig
from pretrain.schema import MODELS, RUNTIME_FIELDS

# Of no meaning for weights that are there.
INIT_FIELDS = ("init_std", "scale_residual_init", "fan_in_init")


def transformer(**options: Any) -> TransformerConfig:
    """The trunk with these options and the defaults of `pretrain.schema` for the rest."""
    return TransformerConfig(**MODELS["transformer"] | options)


def comparable(options: Any, heads: Sequence[str]) -> dict[str, Any]:
    """The options that have an effect on a model with these heads, each written in one way."""
    fields = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    for key in (*RUNTIME_FIELDS, *INIT_FIELDS):
        fields.pop(key, None)
    usual = {
        "embedding_size": options.hidden_size,
        "num_kv_heads": options.num_heads,
        "head_size": options.hidden_size // options.num_heads,
        "num_decoder_layers": options.num_layers,
    }
    fields |= {key: fields[key] or value for key, value in usual.items() if key in fields}
    if not isinstance(options, TransformerConfig):
        return fields
    default = MODELS["transformer"]
    without = ["mup_base_width", "mup_base_head_size"]  # no model that needs them comes here
    if "lm_head" not in heads:
        without += ["head_transform", "head_bias", "tied"]
    if "pooler" not in heads:
        without.append("pooler")
    if options.position != "rotary":
        without.append("rotary_base")
    if options.position != "learned":
        without.append("position_offset")
    if not options.local_window:
        without += ["local_window", "global_every", "local_rotary_base"]
    if options.norm == "rms":
        without.append("norm_bias")
    return fields | {key: default[key] for key in without}
