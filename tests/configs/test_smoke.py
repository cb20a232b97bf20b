"""`configs/smoke.py` on a still smaller model: the loss of two of its objectives falls."""

import pytest

from pretrain import config as configs
from pretrain import train
from tests import small_runs


@pytest.mark.parametrize("name", ["prefix", "spans"])
def test_the_loss_falls(name, small_data, tmp_path):
    path = str(small_runs.ROOT / "configs/smoke.py")
    own = configs.flatten(configs.load(path, name))
    changes = small_runs.overrides("bert", "", small_data) | {"evals.every": "100%"}
    train.train(configs.load(path, name, {k: v for k, v in changes.items() if k in own}), tmp_path)
    small_runs.check_that_loss_falls(tmp_path)
