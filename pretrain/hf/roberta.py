"""RoBERTa (Liu et al. 2019) and DistilRoBERTa: BERT with positions that start behind the pad id."""

from typing import Any

from pretrain.errors import UserError
from pretrain.hf import bert
from pretrain.hf.family import CONFIG, Family, read_options
from pretrain.hf.tensors import Tensor, linear, norm
from pretrain.hf.trunk import transformer
from pretrain.models.transformer import TransformerConfig

DEFAULTS = bert.DEFAULTS | {"vocab_size": 50265, "pad_token_id": 1}
# The vocabulary head has the erf GELU whatever hidden_act says.
ONLY = bert.ONLY | {"hidden_act": "gelu"}


def _from_hf(config: dict[str, Any]) -> TransformerConfig:
    options = read_options(config, DEFAULTS, ONLY)
    offset = options["pad_token_id"] + 1
    if (rows := options["max_position_embeddings"]) <= offset:
        raise UserError(
            f"{CONFIG}: max_position_embeddings: found {rows}, expected more than {offset}: "
            "positions are counted from pad_token_id + 1"
        )
    shared = bert.shared_options(options)
    shared |= {"max_positions": rows - offset, "position_offset": offset}
    return transformer(**shared, pooler="roberta")


def _to_hf(cfg: TransformerConfig) -> dict[str, Any]:
    offset = cfg.position_offset
    rows = {"max_position_embeddings": cfg.max_positions + offset, "pad_token_id": offset - 1}
    return bert.shared_config(cfg) | rows


def _tensors(cfg: TransformerConfig) -> list[Tensor]:
    untied = linear("lm_head.decoder", "lm_head")[:1]
    return [
        *bert.trunk_tensors("roberta"),
        *linear("classifier.dense", "pooler/dense"),
        *linear("lm_head.dense", "lm_head/transform"),
        *norm("lm_head.layer_norm", "lm_head/norm"),
        Tensor("lm_head.bias", ("lm_head/bias",)),
        *([] if cfg.tied else untied),
        *linear("classifier.out_proj", "classification_head"),
        *linear("classifier", "tagging_head"),
    ]


FAMILY = Family(
    model_type="roberta",
    base="roberta",
    model="transformer",
    architectures={
        "": "RobertaModel",
        "lm_head": "RobertaForMaskedLM",
        "classification_head": "RobertaForSequenceClassification",
        "tagging_head": "RobertaForTokenClassification",
    },
    from_hf=_from_hf,
    to_hf=_to_hf,
    tensors=_tensors,
    ignored=(r"embeddings\.position_ids$",),
    tied={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    copied=("lm_head.decoder.bias",),  # without it, transformers 4 has zeros for both
)
