"""ModernBERT (Warner et al. 2024): rotary positions, local and global layers, GeGLU, no biases."""

from typing import Any

from pretrain.errors import UserError
from pretrain.hf.family import CONFIG, TO_ACTIVATIONS, Family, one_of, read_options
from pretrain.hf.tensors import LINEAR_2, Tensor, linear, norm
from pretrain.hf.trunk import transformer
from pretrain.models.transformer import TransformerConfig

DEFAULTS = {  # of transformers.ModernBertConfig
    "vocab_size": 50368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "norm_eps": 1e-5,
    "norm_bias": False,
    "global_rope_theta": 160_000.0,
    "attention_dropout": 0.0,
    "global_attn_every_n_layers": 3,
    "local_attention": 128,
    "local_rope_theta": 10_000.0,  # None: that of the global layers
    "mlp_dropout": 0.0,
    "decoder_bias": True,
    "classifier_pooling": "cls",
    "tie_word_embeddings": True,
}
ONLY = {
    "attention_bias": False,
    "mlp_bias": False,
    "classifier_bias": False,
    "classifier_activation": "gelu",
    "hidden_activation": "gelu",
    "rope_scaling": None,
}
POOLERS = {"cls": "modernbert", "mean": "modernbert_mean"}
TO_POOLING = {ours: theirs for theirs, ours in POOLERS.items()}


def _from_hf(config: dict[str, Any]) -> TransformerConfig:
    if config.get("local_rope_theta", 0.0) is None:
        shared = config.get("global_rope_theta", DEFAULTS["global_rope_theta"])
        config = config | {"local_rope_theta": shared}
    options = read_options(config, DEFAULTS, ONLY)
    if (window := options["local_attention"]) < 2:
        raise UserError(f"{CONFIG}: local_attention: found {window}, expected at least 2")
    return transformer(
        vocab_size=options["vocab_size"],
        num_layers=options["num_hidden_layers"],
        hidden_size=options["hidden_size"],
        num_heads=options["num_attention_heads"],
        ffn_size=options["intermediate_size"],
        max_positions=options["max_position_embeddings"],
        type_vocab_size=0,
        position="rotary",
        rotary_base=options["global_rope_theta"],
        local_window=window // 2 if options["global_attn_every_n_layers"] > 1 else 0,
        global_every=options["global_attn_every_n_layers"],
        local_rotary_base=options["local_rope_theta"],
        norm_position="pre",
        norm_eps=options["norm_eps"],
        norm_bias=options["norm_bias"],
        first_norm=False,
        activation="gelu",
        gated=True,
        bias=False,
        pooler=one_of("classifier_pooling", options["classifier_pooling"], POOLERS),
        tied=options["tie_word_embeddings"],
        head_bias=options["decoder_bias"],
        init_std=options["initializer_range"],
        scale_residual_init=True,
        dropout=options["mlp_dropout"],
        attention_dropout=options["attention_dropout"],
    )


def _to_hf(cfg: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": cfg.vocab_size,
        "num_hidden_layers": cfg.num_layers,
        "hidden_size": cfg.hidden_size,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": cfg.ffn_size,
        "max_position_embeddings": cfg.max_positions,
        "global_rope_theta": cfg.rotary_base,
        "local_attention": 2 * cfg.local_window or DEFAULTS["local_attention"],
        "global_attn_every_n_layers": cfg.global_every,
        "local_rope_theta": cfg.local_rotary_base,
        "norm_eps": cfg.norm_eps,
        "norm_bias": cfg.norm_bias,
        "hidden_activation": TO_ACTIVATIONS[cfg.activation],
        "classifier_pooling": TO_POOLING.get(cfg.pooler, "cls"),
        "tie_word_embeddings": cfg.tied,
        "decoder_bias": cfg.head_bias,
        "initializer_range": cfg.init_std,
        "embedding_dropout": cfg.dropout,
        "mlp_dropout": cfg.dropout,
        "attention_dropout": cfg.attention_dropout,
        "pad_token_id": 0,  # the class has that of its own vocabulary
    }


def _layer(theirs: str, ours: str, first: int) -> list[Tensor]:
    attention = [f"{ours}/attention/{name}" for name in ("query", "key", "value")]
    return [
        *norm(f"{theirs}.attn_norm", f"{ours}/attention_norm", first=first),
        *linear(f"{theirs}.attn.Wqkv", attention, first=first),
        *linear(f"{theirs}.attn.Wo", f"{ours}/attention/out", LINEAR_2, first=first),
        *norm(f"{theirs}.mlp_norm", f"{ours}/ffn_norm", first=first),
        *linear(f"{theirs}.mlp.Wi", [f"{ours}/ffn/gate", f"{ours}/ffn/in"], first=first),
        *linear(f"{theirs}.mlp.Wo", f"{ours}/ffn/out", first=first),
    ]


def _tensors(cfg: TransformerConfig) -> list[Tensor]:
    untied = linear("decoder", "lm_head")[:1]
    return [
        Tensor("model.embeddings.tok_embeddings.weight", ("trunk/word/embedding",)),
        *norm("model.embeddings.norm", "trunk/embedding_norm"),
        *_layer("model.layers.0", "trunk/first_layer", first=0),
        *_layer("model.layers.{}", "trunk/layers", first=1),
        *norm("model.final_norm", "trunk/final_norm"),
        *linear("head.dense", "lm_head/transform"),
        *norm("head.norm", "lm_head/norm"),
        Tensor("decoder.bias", ("lm_head/bias",)),
        *([] if cfg.tied else untied),
        *linear("head.dense", "pooler/dense"),
        *norm("head.norm", "pooler/norm"),
        *linear("classifier", "classification_head"),
        *linear("classifier", "tagging_head"),
    ]


FAMILY = Family(
    model_type="modernbert",
    base="model",
    model="transformer",
    architectures={
        "": "ModernBertModel",
        "lm_head": "ModernBertForMaskedLM",
        "classification_head": "ModernBertForSequenceClassification",
        "tagging_head": "ModernBertForTokenClassification",
    },
    from_hf=_from_hf,
    to_hf=_to_hf,
    tensors=_tensors,
    tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    tag_pooler=True,
    head_dropout={"classifier_dropout": 0.0},
)
