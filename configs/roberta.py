"""RoBERTa (Liu et al. 2019): BERT's encoder with positions from 2 and a single token type.

Argument: `base`, `large` or `distilroberta`; `seq`, `published` and `probes` as in bert.py.

The learning rate is that of the authors' table for batches of 256 rows of 512 tokens; the table
goes on with 5e-4 for 2048 rows and 7e-4 for 8192.
"""

from configs import bert
from pretrain import config as configs

SIZES = {  # layers, width
    "base": (12, 768),
    "large": (24, 1024),
    "distilroberta": (6, 768),
}
LABELS = {"distilroberta": "DistilRoBERTa"}
VOCAB = 50265


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="base", seq=128, published=False, probes=False)
    config = configs.base(objective="mlm")
    bert.set_shape(config.model, *configs.variant(SIZES, arg.variant))
    config.label = LABELS.get(arg.variant, f"RoBERTa-{arg.variant}")
    model, optimizer = config.model, config.optimizer
    model.norm_eps, model.type_vocab_size = 1e-5, 1
    model.position_offset, model.pooler = 2, "roberta"
    optimizer.lr, optimizer.b2, optimizer.eps = 1e-4, 0.98, 1e-6
    optimizer.warmup, optimizer.weight_decay, optimizer.clip = "8%", 0.01, 0.0
    bert.set_run(config, arg, VOCAB)
    return config
