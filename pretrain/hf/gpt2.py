"""GPT-2 (Radford et al. 2019), distilgpt2 and the shapes of GPT-3."""

from typing import Any

from pretrain.hf.family import ACTIVATIONS, TO_ACTIVATIONS, Family, one_of, read_options
from pretrain.hf.tensors import CONV1D, CONV1D_2, Tensor, linear, norm
from pretrain.hf.trunk import transformer
from pretrain.models.transformer import TransformerConfig

DEFAULTS = {  # of transformers.GPT2Config
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,  # 4 * n_embd
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}
ONLY = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "pruned_heads": ({}, None),
}


def _from_hf(config: dict[str, Any]) -> TransformerConfig:
    options = read_options(config, DEFAULTS, ONLY)
    activation = one_of("activation_function", options["activation_function"], ACTIVATIONS)
    return transformer(
        vocab_size=options["vocab_size"],
        num_layers=options["n_layer"],
        hidden_size=options["n_embd"],
        num_heads=options["n_head"],
        ffn_size=options["n_inner"] or 4 * options["n_embd"],
        max_positions=options["n_positions"],
        type_vocab_size=0,
        causal=True,
        norm_position="pre",
        norm_eps=options["layer_norm_epsilon"],
        embedding_norm=False,
        activation=activation,
        tied=options["tie_word_embeddings"],
        head_transform=False,
        head_bias=False,
        init_std=options["initializer_range"],
        scale_residual_init=True,
        dropout=options["resid_pdrop"],
        attention_dropout=options["attn_pdrop"],
    )


def _to_hf(cfg: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": cfg.vocab_size,
        "n_layer": cfg.num_layers,
        "n_embd": cfg.hidden_size,
        "n_head": cfg.num_heads,
        "n_inner": None if cfg.ffn_size == 4 * cfg.hidden_size else cfg.ffn_size,
        "n_positions": cfg.max_positions,
        "layer_norm_epsilon": cfg.norm_eps,
        "activation_function": TO_ACTIVATIONS[cfg.activation],
        "tie_word_embeddings": cfg.tied,
        "initializer_range": cfg.init_std,
        "resid_pdrop": cfg.dropout,
        "embd_pdrop": cfg.dropout,
        "attn_pdrop": cfg.attention_dropout,
    }


def _tensors(cfg: TransformerConfig) -> list[Tensor]:
    layer, ours = "transformer.h.{}", "trunk/layers"
    attention = [f"{ours}/attention/{name}" for name in ("query", "key", "value")]
    untied = linear("lm_head", "lm_head")[:1]
    return [
        Tensor("transformer.wte.weight", ("trunk/word/embedding",)),
        Tensor("transformer.wpe.weight", ("trunk/position/embedding",)),
        *norm(f"{layer}.ln_1", f"{ours}/attention_norm"),
        *linear(f"{layer}.attn.c_attn", attention, CONV1D),
        *linear(f"{layer}.attn.c_proj", f"{ours}/attention/out", CONV1D_2),
        *norm(f"{layer}.ln_2", f"{ours}/ffn_norm"),
        *linear(f"{layer}.mlp.c_fc", f"{ours}/ffn/in", CONV1D),
        *linear(f"{layer}.mlp.c_proj", f"{ours}/ffn/out", CONV1D),
        *norm("transformer.ln_f", "trunk/final_norm"),
        *([] if cfg.tied else untied),
        *linear("score", "classification_head")[:1],
        *linear("classifier", "tagging_head"),
    ]


FAMILY = Family(
    model_type="gpt2",
    base="transformer",
    model="transformer",
    architectures={
        "": "GPT2Model",
        "lm_head": "GPT2LMHeadModel",
        "classification_head": "GPT2ForSequenceClassification",
        "tagging_head": "GPT2ForTokenClassification",
    },
    accepts={"GPT2DoubleHeadsModel": "lm_head"},
    from_hf=_from_hf,
    to_hf=_to_hf,
    tensors=_tensors,
    ignored=(r"(^|\.)h\.\d+\.attn\.(masked_)?bias$",),
    tied={"lm_head.weight": "transformer.wte.weight"},
    pool="last",
    head_dropout={"classifier_dropout": None, "hidden_dropout": 0.1},
)
