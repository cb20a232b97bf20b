"""The main job: what do size and pretraining buy? A study in nine minutes on two cores.

    python -m pretrain.study --config=configs/quickstart.py --workdir=runs/quickstart

Argument: nothing for the quick version with one size of encoder, `full` for four sizes, four times
the pretraining and more labels: by estimate half a day on two cores, most of it the largest size.

Every size sees the same text as often, so larger ones cost more. Learning rates are found for the
smallest size and fall with the square root of the width: a rule, not a search. Expect a gain from
pretraining at every size, most with few labels; whether size pays with so little text (20 M tokens,
six times the corpus) is the open question, and untuned rates weigh on the answer.
"""

from ml_collections import ConfigDict

from configs import bert
from pretrain import config as configs

NER = "NER: Sphinx roles (silver)"
PACKAGES = "Classification: package (silver)"

PLANS = {  # pretraining steps; (labels, fine-tuning steps)
    "quick": dict(
        sizes=("micro",),
        pretrain=4000,
        ner=((50, 80), (200, 200), (1000, 500)),
        packages=((100, 80), (300, 120), (1000, 250)),
    ),
    "full": dict(
        sizes=("micro", "tiny", "mini", "small"),
        pretrain=20_000,
        ner=((50, 120), (200, 300), (1000, 600)),
        packages=((100, 150), (1000, 450), (5000, 1500)),
    ),
}
SEEDS = 3
PRETRAIN_SEQ = 64
SEQ = {NER: 32, PACKAGES: 64}  # longer texts go on in further windows
ENCODER = {  # the same for every encoder, pretrained or not
    "tokenizer.source": "docstrings:corpus:train",
    "tokenizer.type": "bpe",
    "tokenizer.vocab_size": 4096,
    "train.batch_size": 16,
}
LINEAR = {
    NER: {"ner": "logistic regression"},
    PACKAGES: {"lr": "logistic regression", "svm": "linear SVM"},
}


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="quick")
    plan = configs.variant(PLANS, arg.variant)
    runs = [pretraining(size, plan["pretrain"]) for size in plan["sizes"]]
    for task, name, counts in ((NER, "ner", plan["ner"]), (PACKAGES, "classify", plan["packages"])):
        for labels, steps in counts:
            for seed in range(SEEDS):
                common = dict(task=task, labels=labels, seed=seed)
                for size in plan["sizes"]:
                    for start in ("pretrained", "scratch"):
                        runs.append(encoder(name, size, start, steps, **common))
                for variant, model in LINEAR[task].items():
                    runs.append(linear(name, variant, model, **common))
    return ConfigDict(
        dict(
            title="What do size and pretraining buy?",
            question=(
                "Small encoders pretrained on raw text by masked language modelling, the same "
                "encoders from scratch, and linear models, at several numbers of silver labels "
                "(from markup and file names, not from annotators)."
            ),
            notes=(
                "Text and labels are docstrings of the installed Python packages, read in place.",
                "All models of a seed see the same labelled sample, and share one validation set.",
                "Encoders of every size are pretrained on equally many tokens. Their learning "
                "rates follow a rule (the smallest size's, falling with the square root of the "
                "width) and were not searched for.",
            ),
            runs=tuple(runs),
        )
    )


def scaled(lr, size):
    """A learning rate of the smallest size, for another."""
    widths = {name: width for name, (_, width) in bert.SIZES.items()}
    return lr * (widths["micro"] / widths[size]) ** 0.5


def pretraining(size, steps):
    """Masked language modelling; small batches leave the unigram plateau soonest."""
    return dict(
        name=f"pretrain-{size}",
        config="configs/bert.py",
        arg=f"{size},modern,seq={PRETRAIN_SEQ}",
        model=f"{size} encoder",
        overrides=ENCODER
        | {
            "train.budget": f"{steps} steps",
            "optimizer.lr": scaled(3e-3, size),
            "model.dropout": 0.0,
            "model.attention_dropout": 0.0,
            "evals.every": "20%",
            "evals.batches": 10,
        },
    )


def labelled(task, labels, seed):
    """What encoders and linear models share."""
    shared = {"seed": seed, "data.limit": labels, "data.validation_limit": 300}
    if task == PACKAGES:  # the test set is larger than the time allows for so many runs
        shared["data.test"] = "docstrings:package:test[:40%]"
    return shared


def encoder(name, size, start, steps, **common):
    """One encoder from its pretrained parameters or from scratch."""
    pretrained = start == "pretrained"
    return common | dict(
        name=f"{name}-{common['labels']}-{size}-{start}-s{common['seed']}",
        config=f"configs/{name}.py",
        arg=f"{size},modern,seq={SEQ[common['task']]}",
        init_from=f"pretrain-{size}" if pretrained else "",
        model=f"{size} encoder, {'pretrained' if pretrained else 'from scratch'}",
        overrides=ENCODER
        | labelled(**common)
        | {
            "train.budget": f"{steps} steps",
            "optimizer.lr": scaled(2e-3, size),
            "evals.every": "33%",
        },
    )


def linear(name, variant, model, **common):
    """One linear model on the same sample."""
    return common | dict(
        name=f"{name}-{common['labels']}-{variant}-s{common['seed']}",
        config="configs/linear.py",
        arg=variant,
        model=model,
        overrides=labelled(**common) | {"model.num_features": 2**16},
    )
