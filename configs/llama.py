"""Llama (Touvron et al. 2023): a causal decoder with RMS norms, gated SiLU and rotary positions.

Argument: a size; `seq`, `published` and `probes` as in bert.py. `7b` and `13b` are those of Llama 1
and 2, `1b1` is TinyLlama, `3b` OpenLLaMA; `125m` and `350m` put the block, with grouped queries,
into the sizes of GPT-3, `tiny` is for a CPU. Learning rates are those for batches of 2 (1b1) to
4 million tokens.
"""

from configs import bert
from pretrain import config as configs

SIZES = {  # layers, width, heads, heads of keys and values, feed-forward width, learning rate
    "tiny": (2, 128, 4, 2, 384, 1e-3),
    "125m": (12, 768, 12, 4, 2048, 6e-4),
    "350m": (24, 1024, 16, 4, 2816, 3e-4),
    "1b1": (22, 2048, 32, 4, 5632, 4e-4),
    "3b": (26, 3200, 32, 32, 8640, 3e-4),
    "7b": (32, 4096, 32, 32, 11008, 3e-4),
    "13b": (40, 5120, 40, 40, 13824, 3e-4),
}
VOCAB = 32000


def set_block(model) -> None:
    """Sets a ``model`` section to Llama's layer and its matrix of logits."""
    model.norm, model.norm_position, model.norm_eps = "rms", "pre", 1e-5
    model.norm_bias, model.embedding_norm, model.bias = False, False, False
    model.position, model.type_vocab_size = "rotary", 0
    model.activation, model.gated = "silu", True
    model.tied, model.head_transform, model.head_bias = False, False, False
    model.dropout, model.attention_dropout = 0.0, 0.0


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="tiny", seq=256, published=False, probes=False)
    layers, width, heads, kv_heads, ffn, lr = configs.variant(SIZES, arg.variant)
    config = configs.base(objective="causal")
    config.label = f"Llama-{arg.variant}"
    model, optimizer = config.model, config.optimizer
    set_block(model)
    model.causal, model.num_layers, model.hidden_size = True, layers, width
    model.num_heads, model.num_kv_heads, model.ffn_size = heads, kv_heads, ffn
    model.max_positions = 4096 if arg.variant in ("7b", "13b") else 2048
    if arg.variant == "3b":
        model.norm_eps = 1e-6
    optimizer.lr, optimizer.schedule, optimizer.end = lr, "cosine", 0.1
    optimizer.b2, optimizer.eps, optimizer.weight_decay = 0.95, 1e-8, 0.1
    if width >= 768:
        optimizer.warmup = "0.8%"  # 2000 steps of 4 million tokens, of a trillion
    else:
        model.init_std = width**-0.5  # 0.02 leaves attention flat for long, see bert.py
    bert.set_run(config, arg, VOCAB)
    return config
