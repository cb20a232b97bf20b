"""MobileBERT as transformers keeps it."""

from typing import Any

from pretrain import schema
from pretrain.errors import UserError
from pretrain.hf.family import ACTIVATIONS, CONFIG, TO_ACTIVATIONS, Family, one_of, read_options
from pretrain.hf.tensors import LINEAR_2, SAME, Tensor, linear, norm
from pretrain.models.mobilebert import MobileBertConfig

SIZES = {  # theirs, whose class has our defaults, to ours
    "vocab_size": "vocab_size",
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "embedding_size": "embedding_size",
    "intra_bottleneck_size": "bottleneck_size",
    "num_attention_heads": "num_heads",
    "intermediate_size": "ffn_size",
    "num_feedforward_networks": "num_ffns",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "type_vocab_size",
    "layer_norm_eps": "norm_eps",
    "initializer_range": "init_std",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
ONLY = {"use_bottleneck": True, "trigram_input": True, "is_decoder": False}
NORMS = {"no_norm": "none", "layer_norm": "layer"}
OUTER_NORM_EPS = 1e-5  # their class forgets layer_norm_eps at these layer norms


def from_hf(config: dict[str, Any]) -> MobileBertConfig:
    """Refuses models without bottlenecks or trigrams, and attention inputs that cannot run."""
    ours = dict(schema.MODELS["mobilebert"], vocab_size=30522)
    defaults = {theirs: ours[name] for theirs, name in SIZES.items()} | {
        "hidden_act": "relu",
        "normalization_type": "no_norm",
        "use_bottleneck_attention": False,
        "key_query_shared_bottleneck": True,
        "classifier_activation": True,
    }
    given = read_options(config, defaults, ONLY)
    attention_input = "full"
    if given["use_bottleneck_attention"]:
        attention_input = "bottleneck"
    elif given["key_query_shared_bottleneck"]:
        attention_input = "shared"
    elif given["intra_bottleneck_size"] != given["hidden_size"]:
        raise UserError(
            f"{CONFIG}: key_query_shared_bottleneck: found False without use_bottleneck_attention, "
            f"where transformers multiplies hidden_size {given['hidden_size']} by matrices of "
            f"intra_bottleneck_size {given['intra_bottleneck_size']}; expected equal sizes"
        )
    ours |= {name: given[theirs] for theirs, name in SIZES.items()}
    ours["attention_input"] = attention_input
    ours["norm"] = one_of("normalization_type", given["normalization_type"], NORMS)
    if ours["norm"] == "layer":
        ours["outer_norm_eps"] = OUTER_NORM_EPS
    ours["activation"] = one_of("hidden_act", given["hidden_act"], ACTIVATIONS)
    ours["pooler"] = "bert" if given["classifier_activation"] else "none"
    return MobileBertConfig(**ours)


def to_hf(cfg: MobileBertConfig) -> dict[str, Any]:
    norms = {ours: theirs for theirs, ours in NORMS.items()}
    return {theirs: getattr(cfg, ours) for theirs, ours in SIZES.items()} | {
        "hidden_act": TO_ACTIVATIONS[cfg.activation],
        "normalization_type": norms[cfg.norm],
        "use_bottleneck_attention": cfg.attention_input == "bottleneck",
        "key_query_shared_bottleneck": cfg.attention_input == "shared",
        "classifier_activation": cfg.pooler == "bert",
        "use_bottleneck": True,
        "trigram_input": True,
    }


def tensors(cfg: MobileBertConfig) -> list[Tensor]:
    embeddings, head = "mobilebert.embeddings", "cls.predictions"
    found = [
        Tensor(f"{embeddings}.word_embeddings.weight", ("trunk/word/embedding",)),
        Tensor(f"{embeddings}.position_embeddings.weight", ("trunk/position/embedding",)),
        Tensor(f"{embeddings}.token_type_embeddings.weight", ("trunk/type/embedding",)),
        *linear(f"{embeddings}.embedding_transformation", "trunk/embedding_projection"),
        *norm(f"{embeddings}.LayerNorm", "trunk/embedding_norm"),
        *linear("mobilebert.pooler.dense", "pooler/dense"),
        *linear(f"{head}.transform.dense", "lm_head/transform"),
        *norm(f"{head}.transform.LayerNorm", "lm_head/norm"),
        Tensor(f"{head}.dense.weight", ("lm_head/kernel",), SAME),  # [D - E, V] in theirs too
        Tensor(f"{head}.bias", ("lm_head/bias",)),
        *linear("classifier", "classification_head"),
        *linear("classifier", "tagging_head"),
    ]
    layer, ours = "mobilebert.encoder.layer.{}", "trunk/layers"
    for theirs, name in (("input", "bottleneck"), ("attention", "shared_bottleneck")):
        found += linear(f"{layer}.bottleneck.{theirs}.dense", f"{ours}/{name}")
        found += norm(f"{layer}.bottleneck.{theirs}.LayerNorm", f"{ours}/{name}_norm")
    for name in ("query", "key", "value"):
        found += linear(f"{layer}.attention.self.{name}", f"{ours}/attention/{name}")
    found += linear(f"{layer}.attention.output.dense", f"{ours}/attention/out", LINEAR_2)
    found += norm(f"{layer}.attention.output.LayerNorm", f"{ours}/attention_norm")
    for i in range(cfg.num_ffns):
        ffn = f"{layer}.ffn.{i}" if i < cfg.num_ffns - 1 else layer
        found += linear(f"{ffn}.intermediate.dense", f"{ours}/ffn_{i}/in")
        found += linear(f"{ffn}.output.dense", f"{ours}/ffn_{i}/out")
        found += norm(f"{ffn}.output.LayerNorm", f"{ours}/ffn_{i}/norm")
    found += linear(f"{layer}.output.bottleneck.dense", f"{ours}/output")
    found += norm(f"{layer}.output.bottleneck.LayerNorm", f"{ours}/output_norm")
    return found


FAMILY = Family(
    model_type="mobilebert",
    base="mobilebert",
    model="mobilebert",
    architectures={
        "": "MobileBertModel",
        "lm_head": "MobileBertForMaskedLM",
        "classification_head": "MobileBertForSequenceClassification",
        "tagging_head": "MobileBertForTokenClassification",
    },
    accepts={"MobileBertForPreTraining": "lm_head"},
    from_hf=from_hf,
    to_hf=to_hf,
    tensors=tensors,
    ignored=(r"mobilebert\.embeddings\.position_ids",),
    tied={
        "cls.predictions.decoder.weight": "mobilebert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    head_dropout={"classifier_dropout": None, "hidden_dropout_prob": 0.0},
)
