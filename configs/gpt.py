"""GPT: a causal decoder (GPT-2's block) pretrained by causal language modelling.

Argument: a size (`tiny` ... `medium` for a CPU, `125m` ... `175b` of the GPT-3 table in Brown et
al. 2020, `gpt2` ... `gpt2-xl` and `distilgpt2` as released); `seq`, `published` and `probes` as in
bert.py; `prefix` to read the beginning of each document in both directions (prefix LM).

GPT-3's 1.3B row gives 24 heads of 128 for a width of 2048, its 13B row a width of 5140: 16 heads
and 5120 here. Every layer attends to the whole row: GPT-3's banded ones were not published exactly.
Rates are for batches of 0.5 (125m) to 3.2 million tokens; GPT-2's were not published and are those
of GPT-3 at its width.
"""

from configs import bert
from pretrain import config as configs

SIZES = {  # layers, width, heads, learning rate
    "tiny": (2, 128, 2, 1e-3),
    "mini": (4, 256, 4, 1e-3),
    "small": (4, 512, 8, 1e-3),
    "medium": (8, 512, 8, 1e-3),
    "125m": (12, 768, 12, 6e-4),
    "350m": (24, 1024, 16, 3e-4),
    "760m": (24, 1536, 16, 2.5e-4),
    "1b3": (24, 2048, 16, 2e-4),
    "2b7": (32, 2560, 32, 1.6e-4),
    "6b7": (32, 4096, 32, 1.2e-4),
    "13b": (40, 5120, 40, 1e-4),
    "175b": (96, 12288, 96, 0.6e-4),
    "gpt2": (12, 768, 12, 6e-4),
    "gpt2-medium": (24, 1024, 16, 3e-4),
    "gpt2-large": (36, 1280, 20, 2.5e-4),
    "gpt2-xl": (48, 1600, 25, 2.5e-4),
    "distilgpt2": (6, 768, 12, 6e-4),
}
VOCAB = 50257


def get_config(arg=None):
    defaults = dict(seq=256, published=False, probes=False, prefix=False)
    arg = configs.parse_arg(arg, variant="tiny", **defaults)
    layers, width, heads, lr = configs.variant(SIZES, arg.variant)
    config = configs.base(objective="prefix" if arg.prefix else "causal")
    config.label = arg.variant if "gpt2" in arg.variant else f"GPT-{arg.variant}"
    config.label += ", prefix LM" if arg.prefix else ""
    model, optimizer = config.model, config.optimizer
    model.num_layers, model.hidden_size = layers, width
    model.num_heads, model.ffn_size = heads, 4 * width
    model.max_positions = 1024 if "gpt2" in arg.variant else 2048
    model.causal, model.type_vocab_size = True, 0
    model.norm_position, model.norm_eps, model.embedding_norm = "pre", 1e-5, False
    model.activation, model.scale_residual_init = "gelu_tanh", True
    model.head_transform, model.head_bias = False, False
    optimizer.lr, optimizer.schedule, optimizer.end = lr, "cosine", 0.1
    optimizer.b2, optimizer.eps, optimizer.weight_decay = 0.95, 1e-8, 0.1
    if width >= 768:
        optimizer.warmup = "0.125%"  # 375 million tokens of 300 billion
    bert.set_run(config, arg, VOCAB)
    return config
