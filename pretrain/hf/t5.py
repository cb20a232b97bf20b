"""T5 (1.0, 1.1 and Flan) as transformers keeps it; its encoder alone is a family of its own."""

import functools
from collections.abc import Mapping
from typing import Any

from pretrain.errors import UserError
from pretrain.hf.family import Family, one_of, read_options
from pretrain.hf.tensors import LINEAR, LINEAR_2, Tensor, linear, norm
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.schema import MODELS

SIZES = {  # theirs to ours
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "d_ff": "ffn_size",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "n_positions": "max_positions",
    "relative_attention_num_buckets": "relative_buckets",
    "relative_attention_max_distance": "relative_distance",
    "layer_norm_epsilon": "norm_eps",
    "dropout_rate": "dropout",
}
DEFAULTS = {  # of their class
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_decoder_layers": None,
    "num_heads": 8,
    "n_positions": 512,  # no limit of theirs: what their config files say of the training
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "dropout_rate": 0.1,
    "initializer_factor": 1.0,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "decoder_start_token_id": None,
}
FEED_FORWARD = {  # feed_forward_proj to activation and gated; their gated GELU is always tanh's
    "relu": ("relu", False),
    "gelu": ("gelu", False),
    "gelu_new": ("gelu_tanh", False),
    "silu": ("silu", False),
    "gated-gelu": ("gelu_tanh", True),
    "gated-relu": ("relu", True),
    "gated-silu": ("silu", True),
}
FIXED = dict(  # what makes an encoder-decoder T5
    position="relative", norm="rms", norm_position="pre", embedding_norm=False,
    scale_embedding=False, scale_scores=False, bias=False, pooler="bart", head_bias=False,
    fan_in_init=True,
)  # fmt: skip


def from_hf(config: dict[str, Any], reads: str) -> EncoderDecoderConfig:
    given = read_options(config, DEFAULTS)
    layers, width = given["num_decoder_layers"], given["d_model"]
    start = given["decoder_start_token_id"]
    ours = {name: given[theirs] for theirs, name in SIZES.items()} | FIXED
    ours["num_decoder_layers"] = 0 if layers in (None, given["num_layers"]) else layers
    ours["head_size"] = 0 if given["d_kv"] * given["num_heads"] == width else given["d_kv"]
    ours["activation"], ours["gated"] = one_of(
        "feed_forward_proj", given["feed_forward_proj"], FEED_FORWARD
    )
    ours["tied"] = ours["scale_logits"] = given["tie_word_embeddings"]
    ours["decoder_start_id"] = given["pad_token_id"] if start is None else start
    ours["attention_dropout"] = given["dropout_rate"]
    ours["init_std"] = given["initializer_factor"] * width**-0.5
    return EncoderDecoderConfig(**MODELS["encoder_decoder"] | ours | {"reads": reads})


def to_hf(cfg: EncoderDecoderConfig) -> dict[str, Any]:
    kinds = {kind: name for name, kind in FEED_FORWARD.items()}
    if (kind := (cfg.activation, cfg.gated)) not in kinds:
        raise UserError(
            f"config.model.activation: found {cfg.activation!r} with gated {cfg.gated}, expected "
            f"one of {', '.join(name for name, gated in kinds if gated == cfg.gated)}"
        )
    return {theirs: getattr(cfg, ours) for theirs, ours in SIZES.items()} | {
        "d_kv": cfg.head_width,
        "num_decoder_layers": cfg.decoder_layers,
        "feed_forward_proj": kinds[kind],
        "tie_word_embeddings": cfg.tied,
        "decoder_start_token_id": cfg.decoder_start_id,
        "is_encoder_decoder": True,
    }


def tensors(cfg: EncoderDecoderConfig) -> list[Tensor]:
    found = [
        Tensor("transformer.shared.weight", ("trunk/word/embedding",)),
        *([] if cfg.tied else [Tensor("lm_head.weight", ("lm_head/kernel",), LINEAR)]),
        *linear("classification_head.dense", "pooler/dense"),
        *linear("classification_head.out_proj", "classification_head"),
        *linear("classifier", "tagging_head"),
    ]
    for stack, layers in (
        ("encoder", (("SelfAttention", "attention"),)),
        ("decoder", (("SelfAttention", "attention"), ("EncDecAttention", "cross_attention"))),
    ):
        theirs, ours = f"transformer.{stack}", f"trunk/{stack}"
        found += norm(f"{theirs}.final_layer_norm", f"{ours}/final_norm")
        table = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found.append(Tensor(f"{theirs}.{table}", (f"{ours}/relative/embedding",)))
        theirs, ours = f"{theirs}.block.{{}}.layer", f"{ours}/layers"
        for index, (layer, name) in enumerate(layers):
            for matrix, kernel in (("q", "query"), ("k", "key"), ("v", "value")):
                found += linear(f"{theirs}.{index}.{layer}.{matrix}", f"{ours}/{name}/{kernel}")
            found += linear(f"{theirs}.{index}.{layer}.o", f"{ours}/{name}/out", LINEAR_2)
            found += norm(f"{theirs}.{index}.layer_norm", f"{ours}/{name}_norm")
        ffn = f"{theirs}.{len(layers)}"
        matrices = {"wi_0": "gate", "wi_1": "in"} if cfg.gated else {"wi": "in"}
        for matrix, kernel in (matrices | {"wo": "out"}).items():
            found += linear(f"{ffn}.DenseReluDense.{matrix}", f"{ours}/ffn/{kernel}")
        found += norm(f"{ffn}.layer_norm", f"{ours}/ffn_norm")
    return found


def _family(reads: str, architectures: Mapping[str, str], **options: Any) -> Family:
    embedded = [f"transformer.{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")]
    return Family(
        model_type="t5",
        base="transformer",
        model="encoder_decoder",
        architectures=architectures,
        from_hf=functools.partial(from_hf, reads=reads),
        to_hf=to_hf,
        tensors=tensors,
        pool="pooler",
        head_dropout={"classifier_dropout": 0.0},
        tied=dict.fromkeys([*embedded, "lm_head.weight"], "transformer.shared.weight"),
        **options,
    )


FAMILY = _family(
    "decoder",
    {
        "": "T5Model",
        "lm_head": "T5ForConditionalGeneration",
        "classification_head": "T5ForSequenceClassification",
    },
    bare=("", "lm_head"),
)
ENCODER = _family("encoder", {"": "T5EncoderModel", "tagging_head": "T5ForTokenClassification"})
