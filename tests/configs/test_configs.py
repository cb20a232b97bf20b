"""Every shipped config: parameter counts, and that each of its keys is read."""

import importlib
import logging

import jax
import numpy as np
import pytest

from pretrain import config as configs
from pretrain import state, study, tasks, train
from pretrain.data.encoders import TokenEncoder
from pretrain.errors import UserError
from pretrain.monitor import Counters
from tests import small_runs

FOLDER = small_runs.ROOT / "configs"
MODULES = {
    file.stem: importlib.import_module(f"configs.{file.stem}")
    for file in sorted(FOLDER.glob("[a-z]*.py"))
}
STUDIES = {name for name, module in MODULES.items() if "runs" in module.get_config()}


class Pieces:
    """The part of a tokenizer that models need."""

    vocab_size, mask_id, num_special = 300, 4, 5


def num_params(config, label_names=()) -> int:
    """By shapes alone: no memory is touched, whatever the size."""
    encoder = TokenEncoder(Pieces(), config.objective.name, label_names, config.train.seq_len)
    objective = tasks.make_objective(configs.Reader(config), encoder, 0)
    boxed = jax.eval_shape(objective.init, jax.random.key(0))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(boxed))


def load(name, arg=None, **changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return configs.load(str(FOLDER / f"{name}.py"), arg, changes)


PUBLISHED_BERT = {  # encoder with tied masked-language-model head, uncased vocabulary
    "tiny": 4_416_698,
    "mini": 11_201_594,
    "small": 28_795_194,
    "medium": 41_404_730,
    "base": 109_514_298,
    "large": 335_174_458,
}
PUBLISHED_ENCODER = {"tiny": 4_369_408, "base": 108_891_648, "large": 334_092_288}  # no pooler


@pytest.mark.parametrize("variant", PUBLISHED_BERT)
def test_bert_has_the_published_number_of_parameters(variant):
    assert num_params(load("bert", variant, model__vocab_size=30522)) == PUBLISHED_BERT[variant]


@pytest.mark.parametrize("name", ["classify", "ner"])
@pytest.mark.parametrize("variant", PUBLISHED_ENCODER)
def test_task_models_are_the_encoder_and_a_head(name, variant):
    config = load(name, variant, model__vocab_size=30522)
    head = 3 * (config.model.hidden_size + 1)
    assert num_params(config, ("O", "B-X", "I-X")) == PUBLISHED_ENCODER[variant] + head


@pytest.mark.parametrize("variant", ["micro", "small", "large"])
def test_modern_variant_in_closed_form(variant):
    """Four square matrices, three of the gated block, two norms a layer; no biases."""
    layers, width = MODULES["bert"].SIZES[variant]
    inner = 8 * width // 3 // 64 * 64
    trunk = 30522 * width + width + layers * (4 * width**2 + 3 * width * inner + 2 * width) + width
    head = width**2 + width + width + 30522
    config = load("bert", f"{variant},modern", model__vocab_size=30522)
    assert num_params(config) == trunk + head
    plain = num_params(load("bert", variant, model__vocab_size=30522))
    assert num_params(config) == pytest.approx(plain, rel=0.05), "comparable at equal names"


PUBLISHED_GPT = {
    "125m": 125_226_240,
    "350m": 355_871_744,
    "760m": 760_300_032,
    "1b3": 1_315_723_264,
    "2b7": 2_651_553_280,
    "6b7": 6_658_404_352,
    "13b": 12_853_386_240,
    "175b": 174_604_259_328,
}


@pytest.mark.parametrize("variant", MODULES["gpt"].SIZES)
def test_gpt_has_the_number_of_parameters_of_its_closed_form(variant):
    layers, width, *_ = MODULES["gpt"].SIZES[variant]
    closed = layers * (12 * width**2 + 13 * width) + 2 * width + (50257 + 2048) * width
    assert closed == PUBLISHED_GPT.get(variant, closed)
    assert num_params(load("gpt", variant, model__vocab_size=50257)) == closed


SHIPPED = [  # every config that trains one model, with arguments that take each branch
    ("bert", "tiny,seq=32"),
    ("bert", "micro,modern,seq=32"),
    ("gpt", "tiny,seq=32"),
    ("classify", "tiny"),
    ("classify", "tiny,modern"),
    ("ner", "tiny"),
    ("linear", "lr"),
    ("linear", "svm"),
    ("linear", "ner"),
]


def test_all_configs_are_tested():
    assert {name for name, _ in SHIPPED} == MODULES.keys() - STUDIES
    assert {arg for name, arg in SHIPPED if name == "linear"} == MODULES["linear"].VARIANTS.keys()


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


@pytest.mark.parametrize("name, arg", SHIPPED)
def test_every_key_is_read(name, arg, small_data, unread, monkeypatch):
    """Also those at their default."""
    monkeypatch.setattr(configs, "defaults", lambda _: {})
    assert unread(small_runs.config(name, small_data, arg)) == []


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


@pytest.mark.parametrize("name", [name for name in MODULES if name not in STUDIES])
def test_unknown_arguments_are_clear_errors(name):
    with pytest.raises(UserError, match=r"config variant: found 'huge', expected one of"):
        load(name, "huge")
    with pytest.raises(UserError, match="config argument 'tiny,depth=3'"):
        load(name, "tiny,depth=3")


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_studies_list_runs_that_load(name, tmp_path, monkeypatch):
    monkeypatch.chdir(small_runs.ROOT)
    for arg in getattr(MODULES[name], "PLANS", [None]):
        runs = study.parse_runs(MODULES[name].get_config(arg).runs)
        assert len(study.plan(runs, tmp_path)) == len(runs) > 1
