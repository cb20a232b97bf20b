"""Llama (Touvron et al. 2023): RMSNorm, SwiGLU, rotary positions, grouped-query attention."""

from typing import Any

from pretrain.hf.family import ACTIVATIONS, TO_ACTIVATIONS, Family, one_of, read_options
from pretrain.hf.tensors import LINEAR_2, Tensor, linear, norm
from pretrain.hf.trunk import transformer
from pretrain.models.transformer import TransformerConfig

DEFAULTS = {  # of transformers.LlamaConfig
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,  # num_attention_heads
    "head_dim": None,  # hidden_size / num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
}
ONLY = {
    "rope_scaling": (None, {"rope_type": "default"}, {"type": "default"}),
    "attention_bias": False,
    "mlp_bias": False,
}


def _from_hf(config: dict[str, Any]) -> TransformerConfig:
    options = read_options(config, DEFAULTS, ONLY)
    heads, width = options["num_attention_heads"], options["hidden_size"]
    kv_heads, head_size = options["num_key_value_heads"], options["head_dim"]
    return transformer(
        vocab_size=options["vocab_size"],
        num_layers=options["num_hidden_layers"],
        hidden_size=width,
        num_heads=heads,
        num_kv_heads=0 if kv_heads in (None, heads) else kv_heads,
        head_size=0 if head_size in (None, width // heads) else head_size,
        ffn_size=options["intermediate_size"],
        max_positions=options["max_position_embeddings"],
        type_vocab_size=0,
        position="rotary",
        rotary_base=options["rope_theta"],
        causal=True,
        norm="rms",
        norm_position="pre",
        norm_eps=options["rms_norm_eps"],
        embedding_norm=False,
        activation=one_of("hidden_act", options["hidden_act"], ACTIVATIONS),
        gated=True,
        bias=False,
        tied=options["tie_word_embeddings"],
        head_transform=False,
        head_bias=False,
        init_std=options["initializer_range"],
        dropout=0.0,
        attention_dropout=options["attention_dropout"],
    )


def _to_hf(cfg: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": cfg.vocab_size,
        "num_hidden_layers": cfg.num_layers,
        "hidden_size": cfg.hidden_size,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads or cfg.num_heads,
        "head_dim": cfg.head_size or cfg.hidden_size // cfg.num_heads,
        "intermediate_size": cfg.ffn_size,
        "max_position_embeddings": cfg.max_positions,
        "rope_theta": cfg.rotary_base,
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": TO_ACTIVATIONS[cfg.activation],
        "tie_word_embeddings": cfg.tied,
        "initializer_range": cfg.init_std,
        "attention_dropout": cfg.attention_dropout,
    }


def _tensors(cfg: TransformerConfig) -> list[Tensor]:
    layer, ours = "model.layers.{}", "trunk/layers"
    untied = linear("lm_head", "lm_head")[:1]
    return [
        Tensor("model.embed_tokens.weight", ("trunk/word/embedding",)),
        *norm(f"{layer}.input_layernorm", f"{ours}/attention_norm"),
        *linear(f"{layer}.self_attn.q_proj", f"{ours}/attention/query"),
        *linear(f"{layer}.self_attn.k_proj", f"{ours}/attention/key"),
        *linear(f"{layer}.self_attn.v_proj", f"{ours}/attention/value"),
        *linear(f"{layer}.self_attn.o_proj", f"{ours}/attention/out", LINEAR_2),
        *norm(f"{layer}.post_attention_layernorm", f"{ours}/ffn_norm"),
        *linear(f"{layer}.mlp.gate_proj", f"{ours}/ffn/gate"),
        *linear(f"{layer}.mlp.up_proj", f"{ours}/ffn/in"),
        *linear(f"{layer}.mlp.down_proj", f"{ours}/ffn/out"),
        *norm("model.norm", "trunk/final_norm"),
        *([] if cfg.tied else untied),
        *linear("score", "classification_head")[:1],
        *linear("score", "tagging_head"),
    ]


FAMILY = Family(
    model_type="llama",
    base="model",
    model="transformer",
    architectures={
        "": "LlamaModel",
        "lm_head": "LlamaForCausalLM",
        "classification_head": "LlamaForSequenceClassification",
        "tagging_head": "LlamaForTokenClassification",
    },
    from_hf=_from_hf,
    to_hf=_to_hf,
    tensors=_tensors,
    ignored=(r"rotary_emb\.inv_freq$",),
    tied={"lm_head.weight": "model.embed_tokens.weight"},
    pool="last",
    head_dropout={"classifier_dropout": None, "hidden_dropout": 0.1},
)
