"""Probes: task quality of live parameters, which they leave alone."""

import jax
import numpy as np
import pytest

from pretrain import config as configs
from pretrain import train
from pretrain.checkpoint import load_params
from pretrain.errors import UserError
from pretrain.files import read_json, read_jsonl
from tests import small_runs, tiny

SEQ = "tiny,seq=32"


def with_probes(data, **changes):
    """A small masked language model's config with a probe of each labelled task."""
    config = small_runs.config("bert", data, SEQ)
    with config.unlocked():
        for name, objective, suffix in (("ner", "tag", "conll"), ("topic", "classify", "tsv")):
            section = configs.probe(objective, "none")
            section.data.train = str(data / f"train.{suffix}")
            section.data.validation = str(data / f"test.{suffix}")
            section.data.limit, section.train.budget = 40, "30 steps"
            section.optimizer.lr = 1e-2
            config.evals.probes[name] = section
        config.evals.probes.topic.data.update({"text": "0", "label": "1"})
    for key, value in changes.items():
        configs.set_key(config, key.replace("__", "."), value)
    return config


def fine_tuned(data, source, workdir):
    """Validation scores of `configs/classify.py` from ``source``, set as the probe is."""
    changes = dict(init_from=str(source), data__limit=40, optimizer__lr=1e-2)
    changes |= dict(train__batch_size=16, train__seq_len=64, train__budget="30 steps")
    config = small_runs.config("classify", data, "tiny", data__validation_limit=300, **changes)
    config.checkpoint.best = ""
    return train.train(config, workdir)["scores"]["validation"]


@pytest.fixture(scope="module")
def probed(small_data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("probed") / "run"
    return workdir, train.train(with_probes(small_data), workdir)


def test_probes_are_the_fine_tuning_of_a_checkpoint(probed, small_data, tmp_path):
    workdir, result = probed
    want = fine_tuned(small_data, workdir, tmp_path / "classify")
    assert result["probes"]["topic"] == pytest.approx(want, abs=1e-6)
    assert want["mcc"] > 0 and set(result["probes"]) == {"ner", "topic"}


def test_probes_are_a_curve_in_the_log(probed):
    workdir, result = probed
    records = [r for r in read_jsonl(workdir / "metrics.jsonl") if "probe/topic/accuracy" in r]
    assert [r["step"] for r in records] == [3, 6, 9, 12]
    assert records[-1]["probe/topic/accuracy"] == result["probes"]["topic"]["accuracy"]
    assert len({r["probe/topic/mcc"] for r in records}) > 1


def test_probes_change_nothing_of_the_run(probed, small_run):
    workdir, result = probed
    plain = small_run("bert", SEQ)
    ours, theirs = (load_params(w, tiny.mesh())[0] for w in (workdir, plain))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert result["scores"] == read_json(plain / "result.json")["scores"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.train", "no/such.tsv", "config.evals.probes.topic: data.train=no/such.tsv: no such"),
        ("train.budget", "3 seconds", "config.evals.probes.topic: config.train.budget: found '3 s"),
        ("train.batch_size", 12, "probes.topic: config.train.batch_size: 12 rows do not divide"),
    ],
)
def test_mistakes_name_the_probe(key, value, message, small_data, tmp_path):
    config = with_probes(small_data, **{f"evals.probes.topic.{key}".replace(".", "__"): value})
    with pytest.raises(UserError) as error:
        train.train(config, tmp_path / "run")
    assert message in str(error.value) and not (tmp_path / "run").exists()
