"""Configs that are refused; tests/test_small.py compares scores."""

import pytest

from pretrain import config as configs
from pretrain.errors import UserError
from tests.small_runs import ROOT
from tools import linear_reference


@pytest.mark.parametrize(
    "name, arg", [("linear", "nbsvm"), ("classify", None), ("quickstart", None)]
)
def test_other_configs_are_refused(name, arg):
    config = configs.load(str(ROOT / "configs" / f"{name}.py"), arg)
    with pytest.raises(UserError, match=r"--config: found objective .*, expected a linear"):
        linear_reference.accuracies(config)
