"""The main job: what do size and pretraining buy? A study in about eight minutes on two cores.

    python -m pretrain.study --config=configs/quickstart.py --workdir=runs/quickstart

Argument: nothing for the quick version, `full` for longer pretraining, more sizes and seeds (hours).
"""

from ml_collections import ConfigDict

from pretrain import config as configs

NER = "NER: Sphinx roles (silver)"
PACKAGES = "Classification: package (silver)"

PLANS = {
    "quick": dict(
        sizes=("micro", "tiny"),
        pretrain_steps=2500,
        ner_labels=(50, 200, 1000),
        package_labels=(100, 500, 2000),
        seeds=3,
    ),
    "full": dict(
        sizes=("micro", "tiny", "mini", "small"),
        pretrain_steps=40_000,
        ner_labels=(50, 200, 1000, 2700),
        package_labels=(100, 500, 2000, 7000),
        seeds=5,
    ),
}
SEQ = 64  # longest row of all encoders: nearly all labelled texts fit
FINE_TUNE_STEPS = {50: 120, 100: 120, 200: 160, 500: 200, 1000: 240, 2000: 300, 2700: 400, 7000: 800}
ENCODER = {  # the same for every encoder, pretrained or not
    "tokenizer.source": "docstrings:corpus:train",
    "tokenizer.type": "bpe",
}


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="quick")
    plan = configs.variant(PLANS, arg.variant)
    runs = []
    for size in plan["sizes"]:
        runs.append(
            dict(
                name=f"pretrain-{size}",
                config="configs/bert.py",
                arg=f"{size},modern,seq={SEQ}",
                model=f"{size} encoder",
                overrides=ENCODER
                | {
                    "train.batch_size": 16,
                    "train.budget": f"{plan['pretrain_steps']} steps",
                    "optimizer.lr": 3e-3,
                    "model.dropout": 0.0,
                    "model.attention_dropout": 0.0,
                    "evals.every": "10%",
                    "evals.batches": 30,
                },
            )
        )
    for task, config, counts in (
        (NER, "configs/ner.py", plan["ner_labels"]),
        (PACKAGES, "configs/classify.py", plan["package_labels"]),
    ):
        for labels in counts:
            for seed in range(plan["seeds"]):
                runs += encoders(plan["sizes"], task, config, labels, seed)
                runs += linear_models(task, labels, seed)
    return ConfigDict(
        dict(
            title="What do size and pretraining buy?",
            question=(
                "Small encoders pretrained on raw text by masked language modelling, the same "
                "encoders from scratch, and linear models, at several numbers of labels."
            ),
            notes=(
                "Text and labels are docstrings of the installed Python packages, read in place. "
                "Labels are silver: they come from markup and file names, not from annotators.",
                "All models of a seed see the same labelled sample, and share one validation set.",
            ),
            runs=tuple(runs),
        )
    )


def encoders(sizes, task, config, labels, seed):
    """Every size, from its pretrained parameters and from scratch."""
    for size in sizes:
        for start in ("pretrained", "from scratch"):
            yield dict(
                name=f"{config[8:-3]}-{labels}-{size}-{start.split()[-1]}-s{seed}",
                config=config,
                arg=f"{size},modern,seq={SEQ}",
                init_from=f"pretrain-{size}" if start == "pretrained" else "",
                model=f"{size} encoder, {start}",
                task=task,
                labels=labels,
                seed=seed,
                overrides=ENCODER
                | {
                    "seed": seed,
                    "data.limit": labels,
                    "data.validation_limit": 300,
                    "train.batch_size": 16,
                    "train.budget": f"{FINE_TUNE_STEPS[labels]} steps",
                    "optimizer.lr": 1e-3,
                    "evals.every": "25%",
                },
            )


def linear_models(task, labels, seed):
    """Logistic regression, and for texts a linear SVM, on the same sample."""
    names = {"ner": "logistic regression"}
    if task == PACKAGES:
        names = {"lr": "logistic regression", "svm": "linear SVM"}
    for variant, name in names.items():
        yield dict(
            name=f"{'ner' if variant == 'ner' else 'classify'}-{labels}-{variant}-s{seed}",
            config="configs/linear.py",
            arg=variant,
            model=name,
            task=task,
            labels=labels,
            seed=seed,
            overrides={
                "seed": seed,
                "data.limit": labels,
                "data.validation_limit": 300,
                "model.num_features": 2**16,
            },
        )
