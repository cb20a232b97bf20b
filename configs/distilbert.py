"""DistilBERT (Sanh et al. 2019): every second layer of BERT-base, no sentence types, no pooler.

Argument: `base-uncased` or `base-cased`, which differ in the published vocabulary alone; `seq`,
`published` and `probes` as in bert.py. Trained as written it learns from text by masked language
modelling, without a teacher. The learning rate is that for batches of about 4000 rows.
"""

from configs import bert
from pretrain import config as configs

SIZES = {  # pieces of the published vocabulary
    "base-uncased": bert.UNCASED,
    "base-cased": bert.CASED,
}


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="base-uncased", seq=128, published=False, probes=False)
    vocab = configs.variant(SIZES, arg.variant)
    config = configs.base(objective="mlm")
    config.label = f"DistilBERT-{arg.variant}"
    bert.set_shape(config.model, 6, 768)
    config.model.type_vocab_size, config.model.pooler = 0, "distilbert"
    optimizer = config.optimizer
    optimizer.lr, optimizer.b2, optimizer.eps = 5e-4, 0.98, 1e-6
    optimizer.warmup, optimizer.weight_decay, optimizer.clip = "5%", 0.0, 5.0
    bert.set_run(config, arg, vocab)
    return config
