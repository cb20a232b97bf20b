"""ModernBERT (Warner et al. 2024): pre-norm, rotary, gated, no biases, mostly local attention.

Argument: `base` or `large`; `seq`, `published` and `probes` as in bert.py, whose `modern` has this
block without local layers in BERT's sizes. Every third layer sees the whole row, the others 64
tokens on each side.

Learning rates are those for batches of about 4600 rows of 1024 tokens, held and then taken down
over the last 50 of 2000 billion tokens; with AdamW here, StableAdamW there.
"""

from configs import bert
from pretrain import config as configs

SIZES = {  # layers, width, feed-forward width, learning rate
    "base": (22, 768, 1152, 8e-4),
    "large": (28, 1024, 2624, 5e-4),
}
VOCAB = 50368


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="base", seq=128, published=False, probes=False)
    layers, width, ffn, lr = configs.variant(SIZES, arg.variant)
    config = configs.base(objective="mlm")
    config.label = f"ModernBERT-{arg.variant}"
    model, optimizer = config.model, config.optimizer
    bert.set_shape(model, layers, width)
    model.ffn_size, model.max_positions = ffn, 8192
    model.norm_position, model.norm_eps, model.norm_bias = "pre", 1e-5, False
    model.first_norm, model.pooler = False, "modernbert"
    model.position, model.rotary_base, model.type_vocab_size = "rotary", 160_000.0, 0
    model.local_window, model.global_every, model.local_rotary_base = 64, 3, 10_000.0
    model.gated, model.bias, model.scale_residual_init = True, False, True
    model.dropout, model.attention_dropout = 0.0, 0.0
    config.objective.mask_rate = 0.3
    optimizer.lr, optimizer.warmup = lr, "0.15%"
    optimizer.weight_decay = 1e-5 / lr  # theirs is not multiplied by the peak rate
    optimizer.schedule, optimizer.decay, optimizer.decay_shape = "wsd", "2.5%", "sqrt"
    bert.set_run(config, arg, VOCAB)
    return config
