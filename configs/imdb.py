r"""Does pretraining pay on film reviews? A study of objectives, sizes and numbers of labels.

    python -m pretrain.study --config=configs/imdb.py:data=FOLDER --workdir=runs/imdb

`data` is a folder with the Large Movie Review Dataset (Maas et al. 2011) as `train.jsonl.gz`,
`test.jsonl.gz` (`text`, `label`) and `unsupervised.jsonl.gz` (`text`). All is learned from 50,000
reviews without labels and some with.

`mlm`, `rtd`, `causal` and `spans` (with `size`) are the pretraining runs by themselves, `encoder`,
`decoder` and `t5` what is fine-tuned on labels: ModernBERT's block in BERT's sizes, bidirectional
or causal, and the encoder of a T5 as deep and wide.
"""

from ml_collections import ConfigDict

from configs import bert
from pretrain import config as configs

NETWORKS = {"mlm": "encoder", "rtd": "encoder", "causal": "decoder", "spans": "t5"}
SEEDS = {"tiny": 5, "mini": 3}
COUNTS = {"tiny": (20, 100, 500, 2500), "mini": (100, 2500)}  # labels
EVERY = 24_500  # labels there are, seen by tiny with one seed
STEPS = {20: 60, 100: 100, 500: 200, 2500: 600, EVERY: 2000}  # of 16 windows, by labels
TASK = "Classification: IMDB sentiment"
PIECES, SENTINELS, SEQ = 4096, 100, 128
LR = {"tiny": 2e-3, "mini": 1.5e-3}  # of pretraining; half of it of fine-tuning
RELATIVE_LR = 1e-2  # of T5's Adafactor, likewise
UNLABELLED = "unsupervised.jsonl.gz[:98%]"
RAW = dict(train=UNLABELLED, validation="unsupervised.jsonl.gz[98%:]")
LABELLED = dict(
    train="train.jsonl.gz[:98%]", validation="train.jsonl.gz[99%:]", test="test.jsonl.gz[:4%]"
)
KINDS = (*NETWORKS, *dict.fromkeys(NETWORKS.values()))


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="study", size="tiny", data="data/imdb")
    if arg.variant == "study":
        return study(arg.data)
    configs.variant(dict.fromkeys(("study", *KINDS)), arg.variant)
    pretraining = arg.variant in NETWORKS
    network = NETWORKS.get(arg.variant, arg.variant)
    config = configs.base(
        model="encoder_decoder" if network == "t5" else "transformer",
        objective=arg.variant if pretraining else "classify",
        optimizer="adafactor" if network == "t5" else "adamw",
    )
    rate = RELATIVE_LR if network == "t5" else LR[arg.size]
    set_network(config.model, network, arg.size)
    config.data.update(sources(arg.data, RAW if pretraining else LABELLED))
    config.tokenizer.source = f"{arg.data}/{UNLABELLED}"
    config.tokenizer.type, config.tokenizer.vocab_size = "bpe", PIECES
    config.train.batch_size, config.train.seq_len = 16, SEQ
    if pretraining:
        config.model.dropout = config.model.attention_dropout = 0.0
        config.optimizer.lr, config.train.budget = rate, "4000 steps"
        config.evals.every, config.evals.batches = "10%", 10
        if arg.variant == "rtd":
            config.objective.generator_size = 0.5
    else:
        config.optimizer.lr, config.train.budget = rate / 2, "200 steps"
        config.objective.pool, config.evals.every = "mean", "100%"
        if network == "t5":
            config.model.reads = "encoder"
    return config


def sources(data, names, prefix=""):
    """Keys of the section ``data`` with the files of a folder."""
    return {f"{prefix}{key}": f"{data}/{name}" for key, name in names.items()}


def of_labels(labels, seed):
    """Overrides of a run on so many labels."""
    return {"seed": seed, "data.limit": 0 if labels == EVERY else labels}


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


def study(data):
    """Every run, what teaches before what is taught."""
    runs = []
    for size in SEEDS:
        for objective in NETWORKS:
            runs.append(run(f"{size}-{objective}", f"{objective},size={size}", data))
        for seed in range(SEEDS[size]):
            every = (EVERY,) if size == "tiny" and seed == 0 else ()
            for labels in (*COUNTS[size], *every):
                for objective, network in NETWORKS.items():
                    runs.append(labelled(data, network, size, labels, seed, objective))
                for network in dict.fromkeys(NETWORKS.values()):
                    runs.append(labelled(data, network, size, labels, seed))
                if size == "tiny":
                    runs += [linear(data, name, labels, seed) for name in ("lr", "nbsvm")]
                else:
                    runs.append(student(data, labels, seed))
    return ConfigDict(
        dict(
            title="Does pretraining pay on film reviews?",
            question=(
                "Small networks pretrained on 49,000 unlabelled IMDB reviews by four objectives, "
                "the same networks from scratch, linear models, and a student of the larger one."
            ),
            notes=(
                f"Every pretraining run sees 8.2 million tokens; a network is fine-tuned for "
                f"{', '.join(map(str, STEPS.values()))} updates at {len(STEPS)} label counts.",
                "Test scores are of 1,000 of the 25,000 test reviews, the same for all.",
                "Rates and lengths were fixed beforehand, not searched for; no step is chosen on "
                "validation data. T5's networks learn with Adafactor, all others with AdamW.",
                "The student is as large as the tiny encoder and starts from its masked language "
                "model; its teacher is the mini one with the same labels, which also labels 2,500 "
                "reviews that have none.",
            ),
            runs=tuple(runs),
        )
    )


def run(name, arg, data, **more):
    """One entry of the study."""
    return dict(name=name, config="configs/imdb.py", arg=f"{arg},data={data}", **more)


def labelled(data, network, size, labels, seed, objective="", **more):
    """One network on labels, from a pretraining run or from scratch."""
    start = objective or f"scratch-{network}"
    overrides = of_labels(labels, seed) | {"train.budget": f"{STEPS[labels]} steps"}
    if objective == "spans":  # the encoder alone
        overrides["surgery.keep_model"] = True
    fields = dict(
        name=f"{size}-{start}-{labels}-s{seed}",
        model=f"{size} {network}, {objective or 'from scratch'}",
        init_from=f"{size}-{objective}" if objective else "",
        task=TASK,
        labels=labels,
        seed=seed,
    )
    more["overrides"] = overrides | more.get("overrides", {})
    return run(arg=f"{network},size={size}", data=data, **(fields | more))


def student(data, labels, seed):
    """The tiny encoder, taught by the mini one."""
    more = dict(
        name=f"tiny-student-{labels}-s{seed}",
        model="tiny encoder, mlm, taught",
        teacher=f"mini-mlm-{labels}-s{seed}",
        overrides={
            "distill.logits": 1.0,
            "distill.task": 0.5,
            "distill.transfer": f"{data}/unsupervised.jsonl.gz[:5%]",
            "train.budget": f"{STEPS[2500]} steps",
        },
    )
    return labelled(data, "encoder", "tiny", labels, seed, "mlm", **more)


def linear(data, variant, labels, seed):
    """A linear model on the same sample."""
    return dict(
        name=f"{variant}-{labels}-s{seed}",
        config="configs/linear.py",
        arg=variant,
        model={"lr": "logistic regression", "nbsvm": "NBSVM"}[variant],
        overrides=sources(data, LABELLED, "data.") | of_labels(labels, seed),
        task=TASK,
        labels=labels,
        seed=seed,
    )
