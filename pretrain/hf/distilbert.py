"""DistilBERT (Sanh et al. 2019): BERT without token types and pooler."""

from typing import Any

from pretrain.hf.family import ACTIVATIONS, TO_ACTIVATIONS, Family, one_of, read_options
from pretrain.hf.tensors import LINEAR_2, Tensor, linear, norm
from pretrain.hf.trunk import transformer
from pretrain.models.transformer import TransformerConfig

DEFAULTS = {  # of transformers.DistilBertConfig; sinusoidal_pos_embds only initialises the table
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "n_layers": 6,
    "n_heads": 12,
    "dim": 768,
    "hidden_dim": 3072,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation": "gelu",
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}
ONLY = {"pruned_heads": ({}, None)}


def _from_hf(config: dict[str, Any]) -> TransformerConfig:
    options = read_options(config, DEFAULTS, ONLY)
    return transformer(
        vocab_size=options["vocab_size"],
        num_layers=options["n_layers"],
        hidden_size=options["dim"],
        num_heads=options["n_heads"],
        ffn_size=options["hidden_dim"],
        max_positions=options["max_position_embeddings"],
        type_vocab_size=0,
        norm_eps=1e-12,
        activation=one_of("activation", options["activation"], ACTIVATIONS),
        pooler="distilbert",
        tied=options["tie_word_embeddings"],
        init_std=options["initializer_range"],
        dropout=options["dropout"],
        attention_dropout=options["attention_dropout"],
    )


def _to_hf(cfg: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": cfg.vocab_size,
        "n_layers": cfg.num_layers,
        "dim": cfg.hidden_size,
        "n_heads": cfg.num_heads,
        "hidden_dim": cfg.ffn_size,
        "max_position_embeddings": cfg.max_positions,
        "activation": TO_ACTIVATIONS[cfg.activation],
        "tie_word_embeddings": cfg.tied,
        "initializer_range": cfg.init_std,
        "dropout": cfg.dropout,
        "attention_dropout": cfg.attention_dropout,
    }


def _tensors(cfg: TransformerConfig) -> list[Tensor]:
    embeddings, layer = "distilbert.embeddings", "distilbert.transformer.layer.{}"
    untied = linear("vocab_projector", "lm_head")[:1]
    return [
        Tensor(f"{embeddings}.word_embeddings.weight", ("trunk/word/embedding",)),
        Tensor(f"{embeddings}.position_embeddings.weight", ("trunk/position/embedding",)),
        *norm(f"{embeddings}.LayerNorm", "trunk/embedding_norm"),
        *linear(f"{layer}.attention.q_lin", "trunk/layers/attention/query"),
        *linear(f"{layer}.attention.k_lin", "trunk/layers/attention/key"),
        *linear(f"{layer}.attention.v_lin", "trunk/layers/attention/value"),
        *linear(f"{layer}.attention.out_lin", "trunk/layers/attention/out", LINEAR_2),
        *norm(f"{layer}.sa_layer_norm", "trunk/layers/attention_norm"),
        *linear(f"{layer}.ffn.lin1", "trunk/layers/ffn/in"),
        *linear(f"{layer}.ffn.lin2", "trunk/layers/ffn/out"),
        *norm(f"{layer}.output_layer_norm", "trunk/layers/ffn_norm"),
        *linear("vocab_transform", "lm_head/transform"),
        *norm("vocab_layer_norm", "lm_head/norm"),
        Tensor("vocab_projector.bias", ("lm_head/bias",)),
        *([] if cfg.tied else untied),
        *linear("pre_classifier", "pooler/dense"),
        *linear("classifier", "classification_head"),
        *linear("classifier", "tagging_head"),
    ]


FAMILY = Family(
    model_type="distilbert",
    base="distilbert",
    model="transformer",
    architectures={
        "": "DistilBertModel",
        "lm_head": "DistilBertForMaskedLM",
        "classification_head": "DistilBertForSequenceClassification",
        "tagging_head": "DistilBertForTokenClassification",
    },
    from_hf=_from_hf,
    to_hf=_to_hf,
    tensors=_tensors,
    ignored=(r"embeddings\.position_ids$",),
    tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    head_dropout={"seq_classif_dropout": 0.2},
)
