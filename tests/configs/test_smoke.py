"""`configs/smoke.py` on still smaller models: the loss falls, and a tagger starts from the end."""

import jax
import numpy as np
import pytest

from pretrain import config as configs
from pretrain import train, trees
from pretrain.checkpoint import load_params
from tests import small_runs, tiny


def trunk_of(workdir):
    params, _ = load_params(workdir, tiny.mesh())
    return trees.flatten(jax.device_get(params["trunk"]))


def run(name, small_data, workdir, **changes):
    path = str(small_runs.ROOT / "configs/smoke.py")
    own = configs.flatten(configs.load(path, name))
    changes = small_runs.overrides("bert", "", small_data) | changes | {"evals.every": "100%"}
    train.train(configs.load(path, name, {k: v for k, v in changes.items() if k in own}), workdir)
    small_runs.check_that_loss_falls(workdir)


@pytest.mark.parametrize("name", ["whole-words", "static", "sop", "random-rtd"])
def test_the_loss_falls(name, small_data, tmp_path):
    run(name, small_data, tmp_path, **{"data.validation": ""})


def test_a_student_learns_from_the_first_run(small_data, tmp_path):
    run("mlm", small_data, tmp_path / "teacher")
    run(f"distill,teacher={tmp_path / 'teacher'}", small_data, tmp_path / "student")


@pytest.mark.parametrize("name", ["rtd", "prefix", "recurrent", "spans", "denoising"])
def test_the_loss_falls_and_a_tagger_starts_from_the_trunk(name, small_data, tmp_path):
    source, tagger = tmp_path / "pretrained", tmp_path / "tagger"
    run(name, small_data, source)
    changes = {"init_from": str(source), "train__budget": "1 steps", "optimizer__lr": 0.0}
    found = train.train(small_runs.config("ner", small_data, **changes), tagger)
    assert 0 <= found["scores"]["test"]["f1"] <= 1
    learned, kept = trunk_of(source), trunk_of(tagger)
    assert kept.keys() == learned.keys()
    for key, value in kept.items():
        np.testing.assert_array_equal(value, learned[key], err_msg=key)
