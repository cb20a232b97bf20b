"""The main job: what do size and pretraining buy? A study in eight minutes on two cores.

    python -m pretrain.study --config=configs/quickstart.py --workdir=runs/quickstart

Argument: nothing for the quick version with one size of encoder; `full` for longer pretraining,
four sizes and more seeds: hours.
"""

from ml_collections import ConfigDict

from pretrain import config as configs

NER = "NER: Sphinx roles (silver)"
PACKAGES = "Classification: package (silver)"

PLANS = {
    "quick": dict(
        pretrain={"micro": 4500},  # steps
        scratch=("micro",),
        ner=((50, 80), (200, 120), (1000, 200)),  # labels, fine-tuning steps
        packages=((100, 80), (300, 100), (1000, 150)),
        seeds=3,
    ),
    "full": dict(
        pretrain=dict.fromkeys(("micro", "tiny", "mini", "small"), 40_000),
        scratch=("micro", "tiny", "mini", "small"),
        pretrain_steps=40_000,
        ner=((50, 150), (200, 300), (1000, 600), (2700, 1000)),
        packages=((100, 200), (500, 400), (2000, 800), (7000, 1600)),
        seeds=5,
    ),
}
PRETRAIN_SEQ = 64
SEQ = {NER: 32, PACKAGES: 64}  # longer texts go on in further windows
ENCODER = {  # the same for every encoder, pretrained or not
    "tokenizer.source": "docstrings:corpus:train",
    "tokenizer.type": "bpe",
    "tokenizer.vocab_size": 4096,
}


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="quick")
    plan = configs.variant(PLANS, arg.variant)
    runs = []
    for size, steps in plan["pretrain"].items():
        runs.append(
            dict(
                name=f"pretrain-{size}",
                config="configs/bert.py",
                arg=f"{size},modern,seq={PRETRAIN_SEQ}",
                model=f"{size} encoder",
                overrides=ENCODER
                | {
                    "train.batch_size": 16,
                    "train.budget": f"{steps} steps",
                    "optimizer.lr": 3e-3,
                    "model.dropout": 0.0,
                    "model.attention_dropout": 0.0,
                    "evals.every": "20%",
                    "evals.batches": 10,
                },
            )
        )
    for task, config, counts in (
        (NER, "configs/ner.py", plan["ner"]),
        (PACKAGES, "configs/classify.py", plan["packages"]),
    ):
        for labels, steps in counts:
            for seed in range(plan["seeds"]):
                runs += encoders(plan, task, config, labels, steps, seed)
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


def test_slice(task):
    """The test set is larger than the time allows for so many runs."""
    return {"data.test": "docstrings:package:test[:40%]"} if task == PACKAGES else {}


def encoders(plan, task, config, labels, steps, seed):
    """Every size, from its pretrained parameters and from scratch."""
    for size in plan["pretrain"]:
        for start in ("pretrained", "from scratch"):
            if start == "from scratch" and size not in plan["scratch"]:
                continue
            yield dict(
                name=f"{config[8:-3]}-{labels}-{size}-{start.split()[-1]}-s{seed}",
                config=config,
                arg=f"{size},modern,seq={SEQ[task]}",
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
                    **test_slice(task),
                    "train.batch_size": 16,
                    "train.budget": f"{steps} steps",
                    "optimizer.lr": 1e-3,
                    "evals.every": "33%",
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
                **test_slice(task),
                "model.num_features": 2**16,
            },
        )
