"""BERT: a bidirectional encoder pretrained by masked language modelling.

Argument: a size. `tiny` ... `large` are those of Devlin et al. 2019 and Turc et al. 2019, whose 24
miniatures are also named by layers and width (`l4-h256`); `micro` is smaller than any of them.
Further: `modern` for ModernBERT's block in the same size (pre-norm, rotary, gated, no biases),
`seq` for the length of rows, `probes` to follow text classification and NER over pretraining on the
embedded data. The vocabulary is the tokenizer's, trained on the data; `published` makes room for
that of the released models, `cased` for that of the cased ones.

`wwm` masks whole words. `nsp` also learns from pairs whether B follows A (next-sentence
prediction), `sop` whether A and B are in order (Lan et al. 2020); a row is one pair then. `static`
has ten masks a row, which take turns. BERT as published was trained with `nsp,static`.
"""

from pretrain import config as configs
from pretrain.errors import UserError

SIZES = {  # layers, width
    "micro": (2, 64),
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}
SIZES |= {f"l{n}-h{width}": (n, width) for n in range(2, 13, 2) for width in (128, 256, 512, 768)}
UNCASED, CASED = 30522, 28996  # pieces of the published vocabularies


def set_shape(model, layers: int, width: int) -> None:
    """Sets a ``model`` section to heads of 64 and a feed-forward block four times as wide."""
    model.num_layers, model.hidden_size = layers, width
    model.num_heads, model.ffn_size = width // 64, 4 * width


def set_model(model, variant: str, modern: bool) -> None:
    """Sets a ``model`` section to one of the sizes."""
    layers, width = configs.variant(SIZES, variant)
    set_shape(model, layers, width)
    if modern:
        # The gated block has three matrices: two thirds of the width keep the count.
        model.ffn_size = 8 * width // 3 // 64 * 64
        model.norm_position, model.norm_eps, model.norm_bias = "pre", 1e-5, False
        model.first_norm, model.pooler = False, "modernbert"
        model.position, model.type_vocab_size = "rotary", 0
        model.gated, model.bias = True, False
        # 0.02 suits a width of 768 and more: narrower encoders stay at unigram frequencies for
        # long, since attention starts out flat.
        model.init_std = width**-0.5


def set_masking(config, arg) -> None:
    """Sets how `wwm`, `nsp`, `sop` and `static` of an argument mask rows and make them."""
    if arg.nsp and arg.sop:
        raise UserError("config argument: found 'nsp' with 'sop', expected one of them")
    config.objective.whole_words = arg.wwm
    set_pairs(config, "nsp" if arg.nsp else "sop" if arg.sop else "")
    config.objective.static_masks = 10 if arg.static else 0


def set_pairs(config, question: str) -> None:
    """Sets `nsp` or `sop`, whose rows are one pair each, or neither."""
    config.objective.sentence_pairs = question
    config.data.packing = not question


def set_recipe(optimizer) -> None:
    """BERT's: its rate is that for batches of 256 rows."""
    optimizer.lr, optimizer.b2, optimizer.warmup = 1e-4, 0.999, "1%"
    optimizer.bias_correction = False


def set_probes(config) -> None:
    """Follows both labelled tasks of the embedded data over pretraining."""
    with config.unlocked():
        config.evals.probes.ner = configs.probe("tag", "docstrings:role")
        config.evals.probes.package = configs.probe("classify", "docstrings:package")


def set_run(config, arg, vocab_size: int) -> None:
    """What every family's argument has: `seq`, `published` (this many pieces) and `probes`."""
    config.train.seq_len = arg.seq
    config.train.budget = "10000 steps"
    config.model.max_positions = max(config.model.max_positions, arg.seq)
    if arg.published:
        config.model.vocab_size = vocab_size
    if arg.probes:
        set_probes(config)


def get_config(arg=None):
    defaults = dict(modern=False, seq=128, published=False, cased=False, probes=False)
    defaults |= dict(wwm=False, nsp=False, sop=False, static=False)
    arg = configs.parse_arg(arg, variant="tiny", **defaults)
    config = configs.base(objective="mlm")
    set_model(config.model, arg.variant, arg.modern)
    set_masking(config, arg)
    told = ("modern", "wwm", "nsp", "sop", "static")
    config.label = ", ".join([f"BERT-{arg.variant}", *(name for name in told if arg[name])])
    if config.model.hidden_size < 768:
        config.optimizer.lr = 1e-3  # with 32 rows a batch
    elif arg.modern:
        config.optimizer.lr = 2e-4 if config.model.hidden_size > 768 else 4e-4
    else:
        set_recipe(config.optimizer)
    arg.published |= arg.cased
    set_run(config, arg, CASED if arg.cased else UNCASED)
    return config
