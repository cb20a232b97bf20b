"""Linear models on hashed features, in the trainer, with the heads and scores of all others.

Argument: text classification with `lr` (logistic regression), `svm` (linear SVM, squared hinge) or
`hinge` (plain hinge) on TF-IDF word n-grams, `nbsvm` (Wang & Manning 2012) or `fasttext` (Joulin et
al. 2016); entities with `ner` (each word by itself) or `crf` (linear-chain CRF) on local features.
`chars` adds character n-grams. Smooth convex losses converge by L-BFGS on the whole training set.
"""

from pretrain import config as configs

VARIANTS = {  # name, objective, loss, inverse penalty, optimizer
    "lr": ("logistic regression", "classify", "softmax", 10.0, "lbfgs"),
    "svm": ("linear SVM", "classify", "squared_hinge", 1.0, "lbfgs"),
    "hinge": ("linear SVM, hinge", "classify", "hinge", 1.0, "adamw"),
    "nbsvm": ("NBSVM", "classify", "squared_hinge", 1.0, "lbfgs"),
    "fasttext": ("fastText", "classify", "softmax", 0.0, "adamw"),
    "ner": ("token logistic regression", "tag", "softmax", 1.0, "lbfgs"),
    "crf": ("linear-chain CRF", "tag", "softmax", 1.0, "lbfgs"),
}


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="lr", chars=False)
    label, objective, loss, C, optimizer = configs.variant(VARIANTS, arg.variant)
    config = configs.base(model="linear", objective=objective, optimizer=optimizer)
    config.label = label
    config.objective.loss, config.objective.C = loss, C
    subset = "package" if objective == "classify" else "role"
    config.data.train = f"docstrings:{subset}:train"
    config.data.validation = f"docstrings:{subset}:validation"
    config.data.test = f"docstrings:{subset}:test"
    config.train.batch_size = 0
    config.train.budget = "100 steps"
    config.evals.every = "100%"
    if optimizer == "adamw":
        config.optimizer.weight_decay, config.optimizer.b2 = 0.0, 0.999
        config.optimizer.clip, config.optimizer.warmup = 0.0, ""
        config.optimizer.lr = 0.02
    if arg.variant == "hinge":  # kinks: many steps, ever smaller
        config.train.budget = "500 steps"
    elif arg.variant == "nbsvm":
        config.model.weighting, config.model.beta = "naive_bayes", 0.25
        config.model.num_features = 2**20
    elif arg.variant == "fasttext":
        config.model.weighting, config.model.embedding_size = "mean", 16
        config.train.batch_size, config.train.budget = 8, "10 epochs"
    elif arg.variant == "crf":
        config.objective.crf = True
    if arg.chars:
        if objective == "tag":
            raise configs.UserError(
                f"config argument 'chars': found with {arg.variant!r}, which reads affixes of words"
            )
        config.model.char_ngrams = 4
    return config
