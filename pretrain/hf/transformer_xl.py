"""Transformer-XL as transformers keeps it (without its tokenizer, a pickled vocabulary).

A model of theirs with ``mem_len`` above 0 lets a row that is given no memory see ``mem_len`` zero
states: our ``zero_memory``. Ours without it is written with ``mem_len`` 0, so that the same row has
the same logits in both libraries; set it there to evaluate with memory.
"""

from typing import Any

from pretrain import schema
from pretrain.errors import UserError
from pretrain.hf.family import CONFIG, Family, read_options
from pretrain.hf.tensors import CONV1D, LINEAR, LINEAR_2, Tensor, linear, norm
from pretrain.models.transformer_xl import TransformerXLConfig

OPTIONS = {  # theirs, with the default of their class, to ours
    "vocab_size": (267735, "vocab_size"),
    "n_layer": (18, "num_layers"),
    "d_model": (1024, "hidden_size"),
    "d_embed": (1024, "embedding_size"),
    "n_head": (16, "num_heads"),
    "d_head": (64, "head_size"),
    "d_inner": (4096, "ffn_size"),
    "div_val": (4, "div_val"),
    "tie_word_embeddings": (True, "tied"),
    "mem_len": (1600, "mem_len"),
    "same_length": (True, "same_length"),
    "clamp_len": (1000, "clamp_len"),
    "layer_norm_epsilon": (1e-5, "norm_eps"),
    "init_std": (0.02, "init_std"),
    "proj_init_std": (0.01, "projection_init_std"),
    "dropout": (0.1, "dropout"),
    "dropatt": (0.0, "attention_dropout"),
}
ONLY = {"pre_lnorm": False, "attn_type": 0, "sample_softmax": (-1, 0)}
OTHERS = {"cutoffs": [20000, 40000, 200000], "untie_r": True, "proj_share_all_but_first": True}
WORD = "transformer.word_emb"
MOST_CLUSTERS = 16  # whose copies a file may hold


def tie_projs(how: str, clusters: int) -> list[bool]:
    """Their form of our ``tied_projections``."""
    return [how == "all", *[how != "none"] * (clusters - 1)]


def from_hf(config: dict[str, Any]) -> TransformerXLConfig:
    """Refuses norms before the sub-layers, and attention other than the relative one."""
    defaults = {theirs: default for theirs, (default, _) in OPTIONS.items()} | OTHERS
    given = read_options(config, defaults, ONLY)
    ours = dict(schema.MODELS["transformer_xl"])
    ours |= {name: given[theirs] for theirs, (_, name) in OPTIONS.items()}
    ours["cutoffs"] = ",".join(map(str, given["cutoffs"]))
    ours["shared_biases"] = not given["untie_r"]
    ours["zero_memory"] = given["mem_len"] > 0
    clusters = len(given["cutoffs"]) + 1
    share = "all_but_first" if given["proj_share_all_but_first"] else "none"
    known = {how: tie_projs(how, clusters) for how in (share, "all_but_first", "none", "all")}
    found = config.get("tie_projs", known[share])
    matching = [how for how, ties in known.items() if ties == found]
    if not matching:
        raise UserError(
            f"{CONFIG}: tie_projs: found {found!r}, expected "
            f"{' or '.join(str(ties) for ties in known.values())}"
        )
    return TransformerXLConfig(**ours | {"tied_projections": matching[0]})


def to_hf(cfg: TransformerXLConfig) -> dict[str, Any]:
    held = cfg.mem_len if cfg.zero_memory else 0
    return {theirs: getattr(cfg, name) for theirs, (_, name) in OPTIONS.items()} | {
        "d_embed": cfg.embedding_width,
        "d_head": cfg.head_width,
        "mem_len": held,
        "same_length": cfg.same_length and held > 0,
        "cutoffs": list(cfg.bounds[1:-1]),
        "untie_r": not cfg.shared_biases,
        "proj_share_all_but_first": cfg.tied_projections != "none",
        "tie_projs": tie_projs(cfg.tied_projections, cfg.num_clusters),
    }


def tensors(cfg: TransformerXLConfig) -> list[Tensor]:
    layer, ours = "transformer.layers.{}", "trunk/layers"
    attention = f"{ours}/attention"
    qkv = tuple(f"{attention}/{name}/kernel" for name in ("query", "key", "value"))
    found = [
        Tensor(f"{layer}.dec_attn.qkv_net.weight", qkv, LINEAR),
        Tensor(f"{layer}.dec_attn.r_net.weight", (f"{attention}/relative/kernel",), LINEAR),
        Tensor(f"{layer}.dec_attn.o_net.weight", (f"{attention}/out/kernel",), LINEAR_2),
        *norm(f"{layer}.dec_attn.layer_norm", f"{ours}/attention_norm"),
        *linear(f"{layer}.pos_ff.CoreNet.0", f"{ours}/ffn/in"),
        *linear(f"{layer}.pos_ff.CoreNet.3", f"{ours}/ffn/out"),
        *norm(f"{layer}.pos_ff.layer_norm", f"{ours}/ffn_norm"),
        Tensor("crit.cluster_weight", ("lm_head/clusters/kernel",), LINEAR),
        Tensor("crit.cluster_bias", ("lm_head/clusters/bias",)),
        Tensor("score.weight", ("classification_head/kernel",), LINEAR),
    ]
    for theirs, name in (("r_w_bias", "content_bias"), ("r_r_bias", "position_bias")):
        found.append(Tensor(f"{layer}.dec_attn.{theirs}", (f"{attention}/{name}",)))
        # What all layers share, from_pretrained takes from each of them.
        copies = [f"{layer.format(i)}.dec_attn.{theirs}" for i in range(cfg.num_layers)]
        found += [Tensor(copy, (f"trunk/{name}",)) for copy in (f"transformer.{theirs}", *copies)]
    for i in range(len(cfg.tables)):
        table, projection = f"trunk/word/table_{i}", f"trunk/word/projection_{i}"
        found.append(Tensor(f"{WORD}.emb_layers.{i}.weight", (f"{table}/embedding",)))
        found.append(Tensor(f"{WORD}.emb_projs.{i}", (f"{projection}/kernel",), LINEAR))
        weight, bias = linear(f"crit.out_layers.{i}", f"lm_head/output_{i}")
        found += [bias] if cfg.tied else [weight, bias]
    for i, tied in enumerate(tie_projs(cfg.tied_projections, cfg.num_clusters)):
        if not tied:
            found.append(Tensor(f"crit.out_projs.{i}", (f"lm_head/projection_{i}/kernel",), CONV1D))
    return found


FAMILY = Family(
    model_type="transfo-xl",
    base="transformer",
    model="transformer_xl",
    architectures={
        "": "TransfoXLModel",
        "lm_head": "TransfoXLLMHeadModel",
        "classification_head": "TransfoXLForSequenceClassification",
    },
    from_hf=from_hf,
    to_hf=to_hf,
    tensors=tensors,
    ignored=(r"pos_emb\.inv_freq$",),
    tied={  # copies in files that save_pretrained did not write
        f"crit.{copy}": f"{WORD}.{original}"
        for i in range(MOST_CLUSTERS)
        for copy, original in (
            (f"out_layers.{i}.weight", f"emb_layers.{i}.weight"),
            (f"out_projs.{i}", f"emb_projs.{i}"),
        )
    },
    pool="last",
)
