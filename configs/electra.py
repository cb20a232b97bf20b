"""ELECTRA (Clark et al. 2020): an encoder that learns which tokens of its input were replaced.

Argument: `small`, `base` or `large` for a discriminator that is trained together with its
generator, a quarter (small, large) or a third (base) as wide; `random` for one whose replacements
are drawn at random; `seq`, `published` and `probes` as in bert.py. `small-generator`, ... are
masked language models of the released generators' shapes; that of the released small model has full
size. Learning rates are those for 128 (small), 256 (base) and 2048 (large) rows a batch.
"""

from configs import bert
from pretrain import config as configs

SIZES = {  # layers, width of the embeddings, width
    "small": (12, 128, 256),
    "base": (12, 768, 768),
    "large": (24, 1024, 1024),
    "small-generator": (12, 128, 256),
    "base-generator": (12, 768, 256),
    "large-generator": (24, 1024, 256),
}
RECIPES = {  # learning rate, steps (10,000 of them warm-up), share of tokens masked, generator
    "small": (5e-4, 1_000_000, 0.15, 1 / 4),
    "base": (2e-4, 766_000, 0.15, 1 / 3),
    "large": (2e-4, 1_750_000, 0.25, 1 / 4),
}


def get_config(arg=None):
    defaults = dict(random=False, seq=128, published=False, probes=False)
    arg = configs.parse_arg(arg, variant="small", **defaults)
    layers, embedding, width = configs.variant(SIZES, arg.variant)
    size, _, generator = arg.variant.partition("-")
    lr, steps, share, generator_size = RECIPES[size]
    config = configs.base(objective="mlm" if generator else "rtd")
    config.label = f"ELECTRA-{arg.variant}"
    bert.set_shape(config.model, layers, width)
    config.model.embedding_size = embedding if embedding != width else 0
    config.model.pooler = "electra"
    if generator:
        config.objective.mask_rate = share
        config.objective.mask_prob, config.objective.random_prob = 0.85, 0.0
    else:
        config.objective.replace_rate = share
        config.objective.generator_size = 0.0 if arg.random else generator_size
    optimizer = config.optimizer
    optimizer.lr, optimizer.b2, optimizer.warmup = lr, 0.999, f"{10_000 / steps:.3%}"
    optimizer.bias_correction = False
    bert.set_run(config, arg, bert.UNCASED)
    return config
