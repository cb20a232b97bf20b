"""T5 1.1 (Raffel et al. 2020, Shazeer 2020): an encoder-decoder that learns by span corruption.

Argument: a size (`small` ... `xxl` are the published ones); `seq`, `published` and `probes` as in
bert.py.

As for the released models there is no dropout before fine-tuning. Those were trained with
Adafactor: learning rates here are AdamW's, for 32 (tiny) to 256 rows a batch. Above the pieces of a
tokenizer trained here the vocabulary has a row for each sentinel; published ones have their own.
"""

from configs import bert
from pretrain import config as configs

SIZES = {  # layers of each stack, width, feed-forward width, heads, learning rate
    "tiny": (2, 128, 256, 2, 2e-3),
    "small": (8, 512, 1024, 6, 1e-3),
    "base": (12, 768, 2048, 12, 5e-4),
    "large": (24, 1024, 2816, 16, 3e-4),
    "xl": (24, 2048, 5120, 32, 2e-4),
    "xxl": (24, 4096, 10240, 64, 1e-4),
}
VOCAB = 32128


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="tiny", seq=128, published=False, probes=False)
    layers, width, ffn, heads, lr = configs.variant(SIZES, arg.variant)
    config = configs.base(model="encoder_decoder", objective="spans")
    config.label = f"T5-{arg.variant}"
    model = config.model  # its defaults are T5's
    model.num_layers, model.hidden_size, model.ffn_size = layers, width, ffn
    model.num_heads = heads
    model.head_size = 64 if heads * 64 != width else 0
    model.init_std, model.fan_in_init = width**-0.5, True
    model.dropout, model.attention_dropout = 0.0, 0.0
    config.optimizer.lr = lr
    model.vocab_size = config.tokenizer.vocab_size + config.objective.num_sentinels
    bert.set_run(config, arg, VOCAB)
    return config
