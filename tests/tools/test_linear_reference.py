"""Two classes, and configs that are refused; tests/test_small.py compares scores."""

import numpy as np
import pytest

from pretrain import config as configs
from pretrain import tasks, train
from pretrain.checkpoint import load_params
from pretrain.errors import UserError
from tests import small_runs, tiny
from tools import linear_reference


@pytest.mark.parametrize(
    "name, arg", [("linear", "nbsvm"), ("classify", None), ("quickstart", None)]
)
def test_other_configs_are_refused(name, arg):
    config = configs.load(str(small_runs.ROOT / "configs" / f"{name}.py"), arg)
    with pytest.raises(UserError, match=r"--config: found objective .*, expected a linear"):
        linear_reference.accuracies(config)


def test_of_two_classes_one_column_is_the_difference_of_ours(small_data, tmp_path):
    """`LogisticRegression` penalises it half as much as our two columns: its C is twice ours."""
    lines = (small_data / "train.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "two.tsv").write_text("".join(x for x in lines if "numbers" not in x))
    changes = {"data__train": str(tmp_path / "two.tsv"), "data__validation": "", "data__test": ""}
    changes |= {"objective__C": 1.0, "optimizer__tolerance": 1e-6, "checkpoint__best": ""}
    config = small_runs.config("linear", small_data, "lr", **changes)
    train.train(config, tmp_path / "run")
    params, _ = load_params(tmp_path / "run", tiny.mesh())
    split = tasks.build(configs.Reader(config)).splits["train"]
    examples, labels = linear_reference.matrix(split, 2**12)
    assert set(labels) == {0, 1} and len(labels) == 40
    found = linear_reference.fit("softmax", 1.0, examples, labels)
    difference = np.diff(params["kernel"], axis=1)[:, 0]
    assert np.abs(difference).max() > 0.1
    np.testing.assert_allclose(found.coef_[0], difference, atol=1e-3)
    np.testing.assert_allclose(found.intercept_, np.diff(params["bias"]), atol=1e-3)
