"""BART as transformers keeps it."""

from typing import Any

from pretrain.errors import UserError
from pretrain.hf.family import ACTIVATIONS, CONFIG, TO_ACTIVATIONS, Family, one_of, read_options
from pretrain.hf.tensors import LINEAR_2, Layout, Tensor, linear, norm
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.schema import MODELS

SIZES = {  # theirs to ours
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "encoder_layers": "num_layers",
    "encoder_attention_heads": "num_heads",
    "encoder_ffn_dim": "ffn_size",
    "max_position_embeddings": "max_positions",
    "scale_embedding": "scale_embedding",
    "decoder_start_token_id": "decoder_start_id",
    "init_std": "init_std",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
}
DEFAULTS = {  # of their class
    "vocab_size": 50265,
    "d_model": 1024,
    "encoder_layers": 12,
    "encoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "max_position_embeddings": 1024,
    "scale_embedding": False,
    "decoder_start_token_id": 2,
    "init_std": 0.02,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "decoder_layers": 12,
    "decoder_attention_heads": 16,
    "decoder_ffn_dim": 4096,
    "activation_function": "gelu",
}
ONLY = {"tie_word_embeddings": True, "is_encoder_decoder": True}
FIXED = dict(  # what makes an encoder-decoder BART
    position="learned", position_offset=2, norm="layer", norm_position="post", norm_eps=1e-5,
    embedding_norm=True, scale_scores=True, gated=False, bias=True, pooler="bart", tied=True,
    scale_logits=False, head_bias=True, fan_in_init=False,
)  # fmt: skip
ROW = Layout(inputs=0, transposed=False)  # a vector that they keep as a matrix of one row


def from_hf(config: dict[str, Any]) -> EncoderDecoderConfig:
    """Refuses stacks that differ in more than their number of layers."""
    given = read_options(config, DEFAULTS, ONLY)
    for name in ("attention_heads", "ffn_dim"):
        if (found := given[f"decoder_{name}"]) != given[f"encoder_{name}"]:
            raise UserError(
                f"{CONFIG}: decoder_{name}: found {found}, expected that of the encoder, "
                f"{given[f'encoder_{name}']}"
            )
    layers = given["decoder_layers"]
    ours = {name: given[theirs] for theirs, name in SIZES.items()} | FIXED
    ours["num_decoder_layers"] = 0 if layers == given["encoder_layers"] else layers
    ours["activation"] = one_of("activation_function", given["activation_function"], ACTIVATIONS)
    return EncoderDecoderConfig(**MODELS["encoder_decoder"] | ours)


def to_hf(cfg: EncoderDecoderConfig) -> dict[str, Any]:
    return {theirs: getattr(cfg, ours) for theirs, ours in SIZES.items()} | {
        "decoder_layers": cfg.decoder_layers,
        "decoder_attention_heads": cfg.num_heads,
        "decoder_ffn_dim": cfg.ffn_size,
        "activation_function": TO_ACTIVATIONS[cfg.activation],
        "num_hidden_layers": cfg.num_layers,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
    }


def tensors(cfg: EncoderDecoderConfig) -> list[Tensor]:
    del cfg
    found = [
        Tensor("model.shared.weight", ("trunk/word/embedding",)),
        Tensor("final_logits_bias", ("lm_head/bias",), ROW),
        *linear("classification_head.dense", "pooler/dense"),
        *linear("classification_head.out_proj", "classification_head"),
    ]
    for stack in ("encoder", "decoder"):
        theirs, ours = f"model.{stack}", f"trunk/{stack}"
        found.append(Tensor(f"{theirs}.embed_positions.weight", (f"{ours}/position/embedding",)))
        found += norm(f"{theirs}.layernorm_embedding", f"{ours}/embedding_norm")
        theirs, ours = f"{theirs}.layers.{{}}", f"{ours}/layers"
        for layer, name in (("self_attn", "attention"), ("encoder_attn", "cross_attention")):
            for matrix, kernel in (("q", "query"), ("k", "key"), ("v", "value")):
                found += linear(f"{theirs}.{layer}.{matrix}_proj", f"{ours}/{name}/{kernel}")
            found += linear(f"{theirs}.{layer}.out_proj", f"{ours}/{name}/out", LINEAR_2)
            found += norm(f"{theirs}.{layer}_layer_norm", f"{ours}/{name}_norm")
        found += linear(f"{theirs}.fc1", f"{ours}/ffn/in")
        found += linear(f"{theirs}.fc2", f"{ours}/ffn/out")
        found += norm(f"{theirs}.final_layer_norm", f"{ours}/ffn_norm")
    return found


FAMILY = Family(
    model_type="bart",
    base="model",
    model="encoder_decoder",
    architectures={
        "": "BartModel",
        "lm_head": "BartForConditionalGeneration",
        "classification_head": "BartForSequenceClassification",
    },
    from_hf=from_hf,
    to_hf=to_hf,
    tensors=tensors,
    tied={
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
        "lm_head.weight": "model.shared.weight",
    },
    pool="pooler",
    head_dropout={"classifier_dropout": 0.0},
)
