"""ELECTRA (Clark et al. 2020): generator and discriminator, with embeddings of their own width."""

from typing import Any

from pretrain.hf import bert
from pretrain.hf.family import Family, read_options
from pretrain.hf.tensors import Tensor, linear, norm
from pretrain.hf.trunk import transformer
from pretrain.models.transformer import TransformerConfig

DEFAULTS = bert.DEFAULTS | {
    "embedding_size": 128,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}
# Heads have the erf GELU whatever hidden_act says.
ONLY = bert.ONLY | {"hidden_act": "gelu"}


def _from_hf(config: dict[str, Any]) -> TransformerConfig:
    options = read_options(config, DEFAULTS, ONLY)
    width = options["embedding_size"]
    return transformer(
        **bert.shared_options(options),
        embedding_size=0 if width == options["hidden_size"] else width,
        pooler="electra",
    )


def _to_hf(cfg: TransformerConfig) -> dict[str, Any]:
    return bert.shared_config(cfg) | {"embedding_size": cfg.embedding_size or cfg.hidden_size}


def _tensors(cfg: TransformerConfig) -> list[Tensor]:
    untied = linear("generator_lm_head", "lm_head")[:1]
    return [
        *bert.trunk_tensors("electra"),
        *linear("electra.embeddings_project", "trunk/embedding_projection"),
        *linear("generator_predictions.dense", "lm_head/transform"),
        *norm("generator_predictions.LayerNorm", "lm_head/norm"),
        Tensor("generator_lm_head.bias", ("lm_head/bias",)),
        *([] if cfg.tied else untied),
        *linear("discriminator_predictions.dense", "discriminator_head/transform"),
        *linear("discriminator_predictions.dense_prediction", "discriminator_head/out"),
        *linear("classifier.dense", "pooler/dense"),
        *linear("classifier.out_proj", "classification_head"),
        *linear("classifier", "tagging_head"),
    ]


FAMILY = Family(
    model_type="electra",
    base="electra",
    model="transformer",
    architectures={
        "": "ElectraModel",
        "lm_head": "ElectraForMaskedLM",
        "discriminator_head": "ElectraForPreTraining",
        "classification_head": "ElectraForSequenceClassification",
        "tagging_head": "ElectraForTokenClassification",
    },
    from_hf=_from_hf,
    to_hf=_to_hf,
    tensors=_tensors,
    ignored=(r"embeddings\.position_ids$",),
    tied={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
)
