"""Transformer-XL (Dai et al. 2019): a causal decoder with relative positions and segment memory.

Argument: a size. `enwik8-12`, `enwik8-24` and `wt103-base`, `wt103-large` are the published ones of
their data sets, `tiny` is for a CPU; `seq` for the length of rows, `published` and `probes` as in
bert.py. The WikiText-103 sizes always have the published vocabulary, which is what their clusters
cut up; ids must be sorted by frequency there, as those of a unigram tokenizer nearly are.

Recipes are those of the authors' scripts: PyTorch's for the two that share u and v among layers,
TensorFlow's for the large ones. Training has a row's length of the text before it in memory.
Evaluation has the published memory and clamped distances, but goes over the text in the rows of
training, which are longer than the published ones: 80 (enwik8-12), 64 (wt103-base) or 128.
"""

from configs import bert
from pretrain import config as configs

SIZES = {  # layers, width, heads, feed-forward width
    "tiny": (2, 128, 2, 512),
    "enwik8-12": (12, 512, 8, 2048),
    "enwik8-24": (24, 1024, 8, 3072),
    "wt103-base": (16, 410, 10, 2100),
    "wt103-large": (18, 1024, 16, 4096),
}
RECIPES = {  # rows a batch, their length, steps, warm-up steps, dropout, that of attention
    "tiny": (32, 128, 10_000, 1000, 0.1, 0.0),
    "enwik8-12": (22, 512, 400_000, 0, 0.1, 0.0),
    "enwik8-24": (64, 768, 400_000, 4000, 0.15, 0.15),
    "wt103-base": (60, 150, 200_000, 0, 0.1, 0.0),
    "wt103-large": (128, 384, 4_000_000, 16_000, 0.2, 0.2),
}
MEMORY = {  # of the evaluation: its length, the largest distance
    "enwik8-12": (2100, 820),
    "enwik8-24": (3800, 1000),
    "wt103-base": (640, 400),
    "wt103-large": (1600, 1000),
}
ENWIK8, WT103 = 204, 267735  # bytes that occur, words


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="tiny", seq=0, published=False, probes=False)
    layers, width, heads, ffn = configs.variant(SIZES, arg.variant)
    rows, seq, steps, warmup, dropout, attention_dropout = RECIPES[arg.variant]
    config = configs.base(model="transformer_xl", objective="recurrent")
    config.label = f"Transformer-XL-{arg.variant}"
    model, optimizer = config.model, config.optimizer
    model.num_layers, model.hidden_size, model.num_heads, model.ffn_size = layers, width, heads, ffn
    model.dropout, model.attention_dropout = dropout, attention_dropout
    model.shared_biases = arg.variant in ("enwik8-12", "wt103-base")
    model.mem_len = arg.seq or seq
    if arg.variant in MEMORY:
        config.objective.eval_mem_len, config.objective.eval_clamp_len = MEMORY[arg.variant]
        config.evals.batch_size = 8  # each row of it has a memory
    if arg.variant.startswith("wt103"):
        model.vocab_size, model.cutoffs = WT103, "20000,40000,200000"
    elif arg.published:
        model.vocab_size = ENWIK8
    if arg.variant == "wt103-large":
        model.div_val, model.init_std = 4, 0.005
    config.train.batch_size, config.train.seq_len = rows, arg.seq or seq
    config.train.budget = f"{steps} steps"
    optimizer.lr = 2.5e-4
    optimizer.schedule, optimizer.warmup = "cosine", f"{warmup / steps:.3%}" if warmup else ""
    optimizer.end = 0.004 if warmup else 0.0
    optimizer.b2, optimizer.eps, optimizer.weight_decay = 0.999, 1e-8, 0.0
    optimizer.clip = 0.25
    if arg.variant == "tiny":
        optimizer.lr = 1e-3
        model.vocab_size, model.cutoffs, model.div_val = config.tokenizer.vocab_size, "1000,4000", 2
    if arg.probes:
        bert.set_probes(config)
    return config
