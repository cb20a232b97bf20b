"""TinyBERT (Jiao et al. 2020): BERT's encoder in the two shapes that were distilled from BERT-base.

Argument: `4l-312` (12 heads of 26) or `6l-768`; `seq`, `published` and `probes` as in bert.py.
Trained as written it learns from text by masked language modelling with BERT's recipe, without a
teacher; the projection to the teacher's width is no part of the released model, nor of this one.
"""

from configs import bert
from pretrain import config as configs

SIZES = {  # layers, width, feed-forward width
    "4l-312": (4, 312, 1200),
    "6l-768": (6, 768, 3072),
}


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="4l-312", seq=128, published=False, probes=False)
    config = configs.base(objective="mlm")
    config.label = f"TinyBERT-{arg.variant}"
    model = config.model
    model.num_layers, model.hidden_size, model.ffn_size = configs.variant(SIZES, arg.variant)
    model.num_heads = 12
    bert.set_recipe(config.optimizer)
    bert.set_run(config, arg, bert.UNCASED)
    return config
