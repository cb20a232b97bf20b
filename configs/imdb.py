"""Small networks on film reviews: the runs of configs/imdb_study.py, each by itself.

Argument: `mlm`, `rtd`, `causal` or `spans`, which learn from reviews without labels, or `encoder`,
`decoder` or `t5`, which learn from labels; `size` (tiny, mini), and `data`, a folder with the Large
Movie Review Dataset (Maas et al. 2011) as `train.jsonl.gz`, `test.jsonl.gz` (`text`, `label`) and
`unsupervised.jsonl.gz` (`text`). Encoder and decoder have ModernBERT's block in BERT's sizes,
bidirectional or causal; of a T5 as deep and wide the encoder learns from labels:

    python -m pretrain.train --config=configs/imdb.py:mlm,data=FOLDER --workdir=runs/mlm
    python -m pretrain.train --config=configs/imdb.py:encoder,data=FOLDER --workdir=runs/tuned \
        --config.init_from=runs/mlm --config.data.limit=500
"""

from configs import bert
from pretrain import config as configs

NETWORKS = {"mlm": "encoder", "rtd": "encoder", "causal": "decoder", "spans": "t5"}
KINDS = (*NETWORKS, *dict.fromkeys(NETWORKS.values()))
PIECES, SENTINELS, SEQ = 4096, 100, 128
LR = {"tiny": 4e-3, "mini": 2e-3}  # of masked and causal language modelling
RELATIVE_LR = 2e-2  # of T5's Adafactor, likewise
UNLABELLED = "unsupervised.jsonl.gz[:98%]"
RAW = dict(train=UNLABELLED, validation="unsupervised.jsonl.gz[98%:]")
LABELLED = dict(
    train="train.jsonl.gz[:98%]", validation="train.jsonl.gz[99%:]", test="test.jsonl.gz[:4%]"
)


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="encoder", size="tiny", data="data/imdb")
    configs.variant(dict.fromkeys(KINDS), arg.variant)
    pretraining = arg.variant in NETWORKS
    network = NETWORKS.get(arg.variant, arg.variant)
    config = configs.base(
        model="encoder_decoder" if network == "t5" else "transformer",
        objective=arg.variant if pretraining else "classify",
        optimizer="adafactor" if network == "t5" else "adamw",
    )
    rate = RELATIVE_LR if network == "t5" else configs.variant(LR, arg.size)
    set_network(config.model, network, arg.size)
    config.data.update(sources(arg.data, RAW if pretraining else LABELLED))
    config.tokenizer.source = f"{arg.data}/{UNLABELLED}"
    config.tokenizer.type, config.tokenizer.vocab_size = "bpe", PIECES
    config.train.batch_size, config.train.seq_len = 8 if pretraining else 16, SEQ
    if pretraining:
        config.model.dropout = config.model.attention_dropout = 0.0
        config.optimizer.lr, config.train.budget = rate, "2500 steps"
        config.evals.every, config.evals.batches = "10%", 20
        # Rates above BERT's and T5's 15 %: there is more to learn from in each of few batches.
        if arg.variant == "mlm":
            config.objective.mask_rate = 0.4
        elif arg.variant == "rtd":
            config.objective.replace_rate, config.objective.generator_size = 0.25, 0.5
            config.optimizer.lr /= 4  # at the whole rate worse than from scratch
        elif arg.variant == "spans":
            config.objective.noise_density = 0.3
    else:
        config.optimizer.lr, config.train.budget = rate / 4, "320 steps"
        config.objective.pool, config.evals.every = "mean", "100%"
        if network == "t5":
            config.model.reads = "encoder"
    return config


def sources(data, names, prefix=""):
    """Keys of the section ``data`` with the files of a folder."""
    return {f"{prefix}{key}": f"{data}/{name}" for key, name in names.items()}


def set_network(model, network, size):
    """Sets a ``model`` section."""
    if network != "t5":
        bert.set_model(model, size, modern=True)
        model.causal = network == "decoder"
        return
    layers, width = configs.variant(bert.SIZES, size)
    bert.set_shape(model, layers, width)
    model.ffn_size = 8 * width // 3 // 64 * 64
    model.init_std, model.fan_in_init = width**-0.5, True
    model.vocab_size = PIECES + SENTINELS
