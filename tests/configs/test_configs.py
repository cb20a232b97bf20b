"""Every shipped config: that each of its keys is read, and what its argument takes."""

import importlib
import logging

import numpy as np
import pytest

from pretrain import config as configs
from pretrain import hf, state, study, tasks, train
from pretrain.errors import UserError
from pretrain.hf import writing
from pretrain.monitor import Counters
from tests import small_runs
from tools import params

FOLDER = small_runs.ROOT / "configs"
MODULES = {
    file.stem: importlib.import_module(f"configs.{file.stem}")
    for file in sorted(FOLDER.glob("[a-z]*.py"))
}
STUDIES = {name for name, module in MODULES.items() if "runs" in module.get_config()}


def load(name, arg=None, **changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return configs.load(str(FOLDER / f"{name}.py"), arg, changes)


SHIPPED = [  # every config that trains one model, with arguments that take each branch
    ("bert", "tiny,seq=32"),
    ("bert", "micro,modern,seq=32"),
    ("bert", "base,cased,seq=32"),
    ("bert", "tiny,seq=32,wwm,static"),
    ("bert", "tiny,seq=32,nsp,static"),
    ("bert", "tiny,seq=32,sop"),
    ("roberta", "base,seq=32"),
    ("distilbert", "base-cased,seq=32,published"),
    ("tinybert", "4l-312,seq=32"),
    ("mobilebert", "micro,seq=32"),
    ("mobilebert", "micro,seq=32,nsp"),
    ("electra", "small,seq=32"),
    ("electra", "small,seq=32,random"),
    ("electra", "small-generator,seq=32"),
    ("modernbert", "base,seq=32"),
    ("gpt", "tiny,seq=32"),
    ("gpt", "gpt2,seq=32,published"),
    ("gpt", "tiny,seq=32,prefix"),
    ("llama", "tiny,seq=32"),
    ("llama", "3b,seq=32"),
    ("transformer_xl", "tiny,seq=32"),
    ("t5", "tiny,seq=32"),
    ("bart", "tiny,seq=32"),
    ("bart", "tiny,seq=32,tokens"),
    ("ladder", "1m,seq=32"),
    ("ladder", "1m,seq=32,objective=mlm"),
    ("classify", "tiny"),
    ("classify", "tiny,modern"),
    ("ner", "tiny"),
    ("ner", "tiny,crf"),
    ("linear", "lr"),
    ("linear", "svm"),
    ("linear", "hinge"),
    ("linear", "nbsvm"),
    ("linear", "fasttext"),
    ("linear", "ner"),
    ("linear", "crf"),
    ("bilstm", "ner"),
    ("bilstm", "ner,characters=lstm"),
    ("bilstm", "classify"),
    *(("smoke", name) for name in MODULES["smoke"].OBJECTIVES if name != "distill"),
    *(("imdb", name) for name in MODULES["imdb"].KINDS),
]


def test_all_configs_are_tested():
    """But for distillation, which needs a teacher: see tests/test_teacher.py."""
    assert {name for name, _ in SHIPPED} == MODULES.keys() - STUDIES - {"distill"}
    smoke = [configs.flatten(load("smoke", name)) for name in MODULES["smoke"].OBJECTIVES]
    objectives = {config["objective.name"] for config in smoke}
    assert objectives == {*configs.LANGUAGE_MODELS, "classify", "tag"}, "each has a smoke run"
    assert any(config["distill.teacher"] for config in smoke)
    assert {arg for name, arg in SHIPPED if name == "linear"} == MODULES["linear"].VARIANTS.keys()


def small(name, arg, data):
    """A shipped config on local data, its model as it stands: nothing of that is made here."""
    own = configs.flatten(load(name, arg))
    kind = "bert" if own["objective.name"] in configs.LANGUAGE_MODELS else name
    if name == "smoke" and own["objective.name"] == "tag":
        kind = "ner"
    changes = {"tokenizer.source": str(data / "corpus.txt")}
    changes |= small_runs.overrides(kind, arg, data)
    kept = {k: v for k, v in changes.items() if k in own and not k.startswith("model.")}
    return configs.load(str(FOLDER / f"{name}.py"), arg, kept)


class Reached(Exception):
    """The loop would start now."""


@pytest.fixture
def unread(monkeypatch, caplog, tmp_path):
    """A function that starts a run up to its first step, and gives the keys nothing has read."""

    def stop(*_):
        raise Reached

    empty = state.TrainState(np.int32(0), {}, {})
    monkeypatch.setattr(train, "start", lambda *_: (empty, Counters()))
    monkeypatch.setattr(train.state, "compile_train_step", lambda *_: None)
    monkeypatch.setattr(train, "Monitor", stop)

    def warnings(config):
        with caplog.at_level(logging.WARNING, "pretrain.train"), pytest.raises(Reached):
            train.train(config, tmp_path / "run")
        return [r.getMessage() for r in caplog.records if r.name == "pretrain.train"]

    return warnings


USELESS = {  # what makes keys so, where it is not set
    "sentence_pairs": {"short_rate"},
    "generator_size": {"generator_layers", "mask_prob", "discriminator_weight"},
    "eval_mem_len": {"eval_clamp_len"},
}


@pytest.mark.parametrize("name, arg", SHIPPED)
def test_every_key_is_read(name, arg, small_data, unread, monkeypatch):
    """Also those at their default."""
    monkeypatch.setattr(configs, "defaults", lambda _: {})
    config = small(name, arg, small_data)
    useless = {
        f"objective.{key}"
        for name, keys in USELESS.items()
        if not config.objective.get(name, True)
        for key in keys
    }
    if "weighting" in config.model:
        model, weightings = config.model, {"sublinear_tf": "tfidf", "smoothing": "naive_bayes"}
        useless |= {f"model.min_{key}" for key in ("ngrams", "char_ngrams") if not model[key]}
        useless |= {f"model.{key}" for key, of in weightings.items() if model.weighting != of}
    assert set(unread(config)) == {f"config.{key} is set but nothing reads it" for key in useless}


def test_keys_that_others_make_useless_are_told(small_data, unread):
    config = small_runs.config("bert", small_data, "tiny,seq=32")
    trained = tasks.build(configs.Reader(config)).encoder.tokenizer
    trained.save(small_data / "trained.model")
    config.tokenizer.path = str(small_data / "trained.model")
    assert unread(config) == ["config.tokenizer.vocab_size is set but nothing reads it"]


def test_a_key_that_nothing_reads_is_told(small_data, unread):
    config = small_runs.config("linear", small_data, "lr")
    config.unlock()
    config.train.bogus = 1
    assert unread(config) == ["config.train.bogus is set but nothing reads it"]


TRANSFORMERS = {  # the model_type that a file's models are exported as, where it is not its name
    "tinybert": "bert",
    "gpt": "gpt2",
    "ladder": "llama",
    "transformer_xl": "transfo-xl",
}


def exported_as(config) -> str:
    options = tasks.backbone_options(configs.Reader(config))
    head = "discriminator_head" if config.objective.name == "rtd" else "lm_head"
    return writing.find_family(hf.FAMILIES, options, {"trunk": {}, head: {}}).model_type


def test_every_variant_can_be_exported():
    for name, config in params.shipped():
        family = name.split(":")[0]
        if family not in configs.SMALL_MODELS and not name.endswith("teacher"):
            assert exported_as(config) == TRANSFORMERS.get(family, family), name
    assert exported_as(load("bert", "base,modern,published")) == "modernbert"


@pytest.mark.parametrize(
    "name, arg, said",
    [
        ("mobilebert", "teacher,published", "mobilebert, the closest, differs in config.json"),
        ("ladder", "1m,objective=mlm", "no family of transformers has these options"),
    ],
)
def test_what_transformers_has_no_model_for_is_told(name, arg, said):
    with pytest.raises(UserError, match=said):
        exported_as(load(name, arg))


@pytest.mark.parametrize("name", [name for name in MODULES if name not in STUDIES])
def test_unknown_arguments_are_clear_errors(name):
    with pytest.raises(UserError, match=r"config variant: found 'huge', expected one of"):
        load(name, "huge")
    with pytest.raises(UserError, match="config argument 'tiny,depth=3'"):
        load(name, "tiny,depth=3")


def test_the_ladder_takes_two_objectives():
    with pytest.raises(UserError, match="argument 'objective': found 'rtd', expected causal or"):
        load("ladder", "1m,objective=rtd")


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_studies_list_runs_that_load(name, tmp_path, monkeypatch):
    monkeypatch.chdir(small_runs.ROOT)
    for arg in getattr(MODULES[name], "PLANS", [None]):
        runs = study.parse_runs(MODULES[name].get_config(arg).runs)
        assert len(study.plan(runs, tmp_path)) == len(runs) > 1


@pytest.mark.parametrize("size", ["base", "large"])
def test_modernbert_decays_by_one_part_in_100_000(size):
    optimizer = load("modernbert", size).optimizer
    assert optimizer.lr * optimizer.weight_decay == pytest.approx(1e-5)
