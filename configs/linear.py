"""Linear models on hashed features, trained to convergence by L-BFGS on the whole training set.

Argument: `lr` (logistic regression) or `svm` (linear SVM) on TF-IDF word n-grams for text
classification; `ner`: logistic regression on local features of words.
"""

from pretrain import config as configs

VARIANTS = {  # name, objective, loss, inverse penalty
    "lr": ("logistic regression", "classify", "softmax", 10.0),
    "svm": ("linear SVM", "classify", "squared_hinge", 1.0),
    "ner": ("token logistic regression", "tag", "softmax", 1.0),
}


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="lr")
    label, objective, loss, C = configs.variant(VARIANTS, arg.variant)
    config = configs.base(model="linear", objective=objective, optimizer="lbfgs")
    config.label = label
    config.objective.loss, config.objective.C = loss, C
    subset = "package" if objective == "classify" else "role"
    config.data.train = f"docstrings:{subset}:train"
    config.data.validation = f"docstrings:{subset}:validation"
    config.data.test = f"docstrings:{subset}:test"
    config.train.batch_size = 0
    config.train.budget = "100 steps"
    config.evals.every = "100%"
    return config
