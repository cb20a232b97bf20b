"""BERT (Devlin et al. 2019), its miniatures, TinyBERT; what RoBERTa and ELECTRA share with it."""

from typing import Any

from pretrain.hf.family import ACTIVATIONS, TO_ACTIVATIONS, Family, one_of, read_options
from pretrain.hf.tensors import LINEAR_2, Tensor, linear, norm
from pretrain.hf.trunk import transformer
from pretrain.models.transformer import TransformerConfig

DEFAULTS = {  # of transformers.BertConfig
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "tie_word_embeddings": True,
}
ONLY = {  # options of BERT, RoBERTa and ELECTRA with the values that the trunk implements
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
}


def shared_options(options: dict[str, Any]) -> dict[str, Any]:
    """The trunk's options for those of `DEFAULTS`."""
    return {
        "vocab_size": options["vocab_size"],
        "num_layers": options["num_hidden_layers"],
        "hidden_size": options["hidden_size"],
        "num_heads": options["num_attention_heads"],
        "ffn_size": options["intermediate_size"],
        "max_positions": options["max_position_embeddings"],
        "type_vocab_size": options["type_vocab_size"],
        "norm_eps": options["layer_norm_eps"],
        "activation": one_of("hidden_act", options["hidden_act"], ACTIVATIONS),
        "tied": options["tie_word_embeddings"],
        "init_std": options["initializer_range"],
        "dropout": options["hidden_dropout_prob"],
        "attention_dropout": options["attention_probs_dropout_prob"],
    }


def shared_config(cfg: TransformerConfig) -> dict[str, Any]:
    """The inverse of `shared_options`."""
    return {
        "vocab_size": cfg.vocab_size,
        "num_hidden_layers": cfg.num_layers,
        "hidden_size": cfg.hidden_size,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": cfg.ffn_size,
        "max_position_embeddings": cfg.max_positions,
        "type_vocab_size": cfg.type_vocab_size,
        "layer_norm_eps": cfg.norm_eps,
        "hidden_act": TO_ACTIVATIONS[cfg.activation],
        "tie_word_embeddings": cfg.tied,
        "initializer_range": cfg.init_std,
        "hidden_dropout_prob": cfg.dropout,
        "attention_probs_dropout_prob": cfg.attention_dropout,
    }


def trunk_tensors(base: str) -> list[Tensor]:
    """Embeddings and layers of BERT, RoBERTa and ELECTRA."""
    layer = f"{base}.encoder.layer.{{}}"
    return [
        Tensor(f"{base}.embeddings.word_embeddings.weight", ("trunk/word/embedding",)),
        Tensor(f"{base}.embeddings.position_embeddings.weight", ("trunk/position/embedding",)),
        Tensor(f"{base}.embeddings.token_type_embeddings.weight", ("trunk/type/embedding",)),
        *norm(f"{base}.embeddings.LayerNorm", "trunk/embedding_norm"),
        *linear(f"{layer}.attention.self.query", "trunk/layers/attention/query"),
        *linear(f"{layer}.attention.self.key", "trunk/layers/attention/key"),
        *linear(f"{layer}.attention.self.value", "trunk/layers/attention/value"),
        *linear(f"{layer}.attention.output.dense", "trunk/layers/attention/out", LINEAR_2),
        *norm(f"{layer}.attention.output.LayerNorm", "trunk/layers/attention_norm"),
        *linear(f"{layer}.intermediate.dense", "trunk/layers/ffn/in"),
        *linear(f"{layer}.output.dense", "trunk/layers/ffn/out"),
        *norm(f"{layer}.output.LayerNorm", "trunk/layers/ffn_norm"),
    ]


def _from_hf(config: dict[str, Any]) -> TransformerConfig:
    return transformer(**shared_options(read_options(config, DEFAULTS, ONLY)), pooler="bert")


def _tensors(cfg: TransformerConfig) -> list[Tensor]:
    untied = linear("cls.predictions.decoder", "lm_head")[:1]
    return [
        *trunk_tensors("bert"),
        *linear("bert.pooler.dense", "pooler/dense"),
        *linear("cls.predictions.transform.dense", "lm_head/transform"),
        *norm("cls.predictions.transform.LayerNorm", "lm_head/norm"),
        Tensor("cls.predictions.bias", ("lm_head/bias",)),
        *([] if cfg.tied else untied),
        *linear("cls.seq_relationship", "pair_head"),
        *linear("classifier", "classification_head"),
        *linear("classifier", "tagging_head"),
    ]


FAMILY = Family(
    model_type="bert",
    base="bert",
    model="transformer",
    architectures={
        "": "BertModel",
        "lm_head": "BertForMaskedLM",
        "pair_head": "BertForPreTraining",
        "classification_head": "BertForSequenceClassification",
        "tagging_head": "BertForTokenClassification",
    },
    from_hf=_from_hf,
    to_hf=shared_config,
    tensors=_tensors,
    ignored=(r"embeddings\.position_ids$",),
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
)
