"""BERT: a bidirectional encoder pretrained by masked language modelling.

Argument: a size (tiny ... large: shapes of Devlin et al. 2019 and Turc et al. 2019), `modern`
for the pre-norm, rotary, gated variant of the same shape, `seq` for the length of rows, `probes`
to follow text classification and NER over pretraining on the embedded data.
"""

from pretrain import config as configs

SIZES = {  # layers, width
    "micro": (2, 64),
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}


def set_model(model, variant: str, modern: bool) -> None:
    """Sets a ``model`` section to one of the sizes."""
    layers, width = configs.variant(SIZES, variant)
    model.num_layers, model.hidden_size = layers, width
    model.num_heads, model.ffn_size = width // 64, 4 * width
    if modern:
        # The gated block has three matrices: two thirds of the width keep the count.
        model.ffn_size = 8 * width // 3 // 64 * 64
        model.norm_position, model.norm_eps, model.norm_bias = "pre", 1e-5, False
        model.position, model.type_vocab_size = "rotary", 0
        model.gated, model.bias = True, False
        # 0.02 suits a width of 768 and more: narrower encoders stay at unigram frequencies for
        # long, since attention starts out flat.
        model.init_std = width**-0.5


def set_probes(config) -> None:
    """Follows both labelled tasks of the embedded data over pretraining."""
    with config.unlocked():
        config.evals.probes.ner = configs.probe("tag", "docstrings:role")
        config.evals.probes.package = configs.probe("classify", "docstrings:package")


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="tiny", modern=False, seq=128, probes=False)
    config = configs.base(objective="mlm")
    set_model(config.model, arg.variant, arg.modern)
    config.label = f"BERT-{arg.variant}" + (", modern" if arg.modern else "")
    config.train.seq_len = arg.seq
    config.model.max_positions = max(512, arg.seq)
    config.train.budget = "10000 steps"
    config.optimizer.lr = {"base": 4e-4, "large": 2e-4}.get(arg.variant, 1e-3)
    if arg.probes:
        set_probes(config)
    return config
