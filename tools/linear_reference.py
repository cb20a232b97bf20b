"""The accuracy of scikit-learn's linear models on the features of a config of ours.

    python -m tools.linear_reference --config=configs/linear.py:lr

The config is one of logistic regression or a linear SVM; `objective.loss` chooses between
`LogisticRegression` and `LinearSVC`, with its `C`. Needs scikit-learn (pip install -e '.[test]').
"""

import numpy as np
import scipy.sparse
from absl import flags
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from pretrain import cli, tasks
from pretrain import config as configs
from pretrain.errors import UserError

REFERENCES = {
    "softmax": lambda C: LogisticRegression(C=C, tol=1e-6, max_iter=1000),
    "squared_hinge": lambda C: LinearSVC(C=C, max_iter=20_000),
    "hinge": lambda C: LinearSVC(C=C, loss="hinge", max_iter=100_000),
}
Model = LogisticRegression | LinearSVC


def matrix(
    split: tasks.Split, num_features: int, label: int | None = None
) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    """Features ``[N, num_features]`` and labels ``[N]`` of a split's documents, in their order.

    ``label``: whose values the features have, where each class weighs them anew.
    """
    columns = split.dataset.columns
    real, used = columns["weights"] > 0, columns["features"] > 0
    owner = np.take_along_axis(columns["example"], columns["document"], axis=1)[..., None]
    owner = np.broadcast_to(owner, used.shape)[used]
    values = columns["values"] if label is None else columns["values"][..., label]
    entries = values[used], (owner, columns["features"][used])
    labels = np.zeros(real.sum(), int)
    labels[columns["example"][real]] = columns["labels"][real]
    return scipy.sparse.csr_matrix(entries, (len(labels), num_features)), labels


def fit(loss: str, C: float, examples: scipy.sparse.csr_matrix, labels: np.ndarray) -> Model:
    """The model whose minimum is ours with this ``C``.

    Of two classes `LogisticRegression` has one column ``w``, where our softmax has ``w / 2`` and
    ``-w / 2``, whose squares sum to half of those of ``w``.
    """
    if loss == "softmax" and len(np.unique(labels)) == 2:
        C *= 2
    return REFERENCES[loss](C).fit(examples, labels)


def accuracies(config: ConfigDict) -> dict[str, float]:
    """Of every held-out split of ``config``, by its name."""
    objective, model = config.get("objective", {}), config.get("model", {})
    name, loss, weighting = objective.get("name"), objective.get("loss"), model.get("weighting")
    if name != "classify" or loss not in REFERENCES or weighting != "tfidf":
        raise UserError(
            f"--config: found objective {name!r} with loss {loss!r} and weighting "
            f"{weighting!r}, expected a linear classifier with TF-IDF (configs/linear.py:lr, svm "
            "or hinge)"
        )
    splits, size = tasks.build(configs.Reader(config)).splits, model.num_features
    found = fit(loss, objective.C, *matrix(splits.pop("train"), size))
    return {name: float(found.score(*matrix(split, size))) for name, split in splits.items()}


def main() -> None:
    for name, accuracy in accuracies(flags.FLAGS.config).items():
        print(f"{name} accuracy {accuracy:.4f}")


if __name__ == "__main__":
    cli.define_config_flags()
    flags.mark_flag_as_required("config")
    cli.main(main, __doc__)
