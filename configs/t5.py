"""T5 1.1 (Raffel et al. 2020, Shazeer 2020): an encoder-decoder that learns by span corruption.

Argument: a size (`small` ... `xxl` are the published ones); `seq`, `published` and `probes` as in
bert.py.

As for the released models there is no dropout before fine-tuning, and the optimizer is Adafactor,
whose updates are relative to the size of a parameter: embeddings begin near 1, queries near 0.01,
and one rate of AdamW is too low for the first or too high for the second. Published sizes also have
T5's schedule: after 1 % of the steps the rate falls as an inverse square root. Above the pieces of
a tokenizer trained here the vocabulary has a row for each sentinel; published ones have their own.
"""

from configs import bert
from pretrain import config as configs

SIZES = {  # layers of each stack, width, feed-forward width, heads
    "tiny": (2, 128, 256, 2),
    "small": (8, 512, 1024, 6),
    "base": (12, 768, 2048, 12),
    "large": (24, 1024, 2816, 16),
    "xl": (24, 2048, 5120, 32),
    "xxl": (24, 4096, 10240, 64),
}
VOCAB = 32128


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="tiny", seq=128, published=False, probes=False)
    layers, width, ffn, heads = configs.variant(SIZES, arg.variant)
    config = configs.base(model="encoder_decoder", objective="spans", optimizer="adafactor")
    config.label = f"T5-{arg.variant}"
    model = config.model  # its defaults are T5's
    model.num_layers, model.hidden_size, model.ffn_size = layers, width, ffn
    model.num_heads = heads
    model.head_size = 64 if heads * 64 != width else 0
    model.init_std, model.fan_in_init = width**-0.5, True
    model.dropout, model.attention_dropout = 0.0, 0.0
    if arg.variant != "tiny":
        config.optimizer.schedule, config.optimizer.warmup = "inverse_sqrt", "1%"
        config.optimizer.clip = 0.0
    model.vocab_size = config.tokenizer.vocab_size + config.objective.num_sentinels
    bert.set_run(config, arg, VOCAB)
    return config
