"""BART (Lewis et al. 2020): BERT's encoder with a decoder like GPT's, which learns by denoising.

Argument: a size (`base` and `large` are the published ones); `seq`, `published` and `probes` as in
bert.py; `tokens` to mask single tokens ("token masking" in the paper). The released models learned
from spans and shuffled sentences, as this does without it.
"""

from configs import bert
from pretrain import config as configs

SIZES = {  # layers of each stack, width, learning rate
    "tiny": (2, 128, 1e-3),
    "base": (6, 768, 4e-4),
    "large": (12, 1024, 2e-4),
}
VOCAB = 50265


def get_config(arg=None):
    defaults = dict(seq=128, published=False, probes=False, tokens=False)
    arg = configs.parse_arg(arg, variant="tiny", **defaults)
    layers, width, lr = configs.variant(SIZES, arg.variant)
    objective = "denoising" if arg.tokens else "infilling"
    config = configs.base(model="encoder_decoder", objective=objective)
    config.label = f"BART-{arg.variant}"
    model = config.model
    bert.set_shape(model, layers, width)
    model.max_positions, model.position, model.position_offset = 1024, "learned", 2
    model.norm, model.norm_position, model.norm_eps = "layer", "post", 1e-5
    model.embedding_norm, model.scale_scores, model.bias = True, True, True
    model.activation, model.gated = "gelu", False
    model.tied, model.head_bias = True, True
    model.decoder_start_id = 2  # </s>; with tokenizers trained here [CLS]
    config.optimizer.lr = lr
    bert.set_run(config, arg, VOCAB)
    return config
