"""GPT: a causal decoder (GPT-2's block) pretrained by causal language modelling.

Argument: a size (from 125m on the GPT-3 table, Brown et al. 2020), `seq` for the length of rows,
`probes` as in bert.py.
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
}


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="tiny", seq=256, probes=False)
    layers, width, heads, lr = configs.variant(SIZES, arg.variant)
    config = configs.base(objective="causal")
    config.label = f"GPT-{arg.variant}"
    model = config.model
    model.num_layers, model.hidden_size = layers, width
    model.num_heads, model.ffn_size = heads, 4 * width
    model.causal, model.type_vocab_size, model.max_positions = True, 0, max(2048, arg.seq)
    model.norm_position, model.norm_eps, model.embedding_norm = "pre", 1e-5, False
    model.activation, model.scale_residual_init = "gelu_tanh", True
    model.head_transform, model.head_bias = False, False
    config.train.seq_len = arg.seq
    config.train.budget = "10000 steps"
    config.optimizer.lr, config.optimizer.schedule, config.optimizer.end = lr, "cosine", 0.1
    config.optimizer.b2, config.optimizer.eps, config.optimizer.weight_decay = 0.95, 1e-8, 0.1
    if arg.probes:
        bert.set_probes(config)
    return config
