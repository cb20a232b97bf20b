"""Reading a checkpoint and writing it again changes nothing."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from pretrain import hf, trees
from pretrain.errors import UserError
from pretrain.hf import models
from pretrain.hf.files import INDEX
from tests import tiny
from tests.hf.test_parity import CASES, GOLDEN

CHANGED = {  # keys of config.json that are written in another way, with the same meaning
    "mobilebert-tag": {"key_query_shared_bottleneck"},  # without effect beside
    "mobilebert-tiny": {"key_query_shared_bottleneck"},  # use_bottleneck_attention
}


def config_of(folder: pathlib.Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_tensors_and_config_are_those_that_were_read(case, tmp_path):
    loaded = hf.read(GOLDEN / case)
    written = tmp_path / "out"
    hf.save(written, loaded.options, loaded.params, label_names=loaded.label_names)

    before = load_file(GOLDEN / case / "model.safetensors")
    after = load_file(written / "model.safetensors")
    own = {tensor.theirs for tensor in loaded.family.tensors(loaded.options)}
    tied = loaded.family.tied
    copies = {name for name in loaded.family.copied if tied[name] in before}
    expected = before.keys() - set(loaded.unused) - (set(tied) - own)
    assert sorted(after) == sorted(expected | copies)
    before |= {name: before[tied[name]] for name in copies}
    for name, array in after.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, before[name], err_msg=name)

    config, found = config_of(GOLDEN / case), config_of(written)
    same = (config.keys() & found.keys()) - CHANGED.get(case, set())
    assert len(same) > 8
    assert {key: found[key] for key in same} == {key: config[key] for key in same}


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_reads_as_what_it_was(case, tmp_path):
    options, params = hf.load(GOLDEN / case)
    hf.save(tmp_path / "out", options, params)
    again, same = hf.load(tmp_path / "out")
    assert again == options
    old, new = trees.flatten(params), trees.flatten(same)
    assert old.keys() == new.keys()
    for path, array in old.items():
        np.testing.assert_array_equal(new[path], array, err_msg=path)


def test_shards_hold_the_same_tensors(tmp_path):
    options, params = hf.load(GOLDEN / "bert-mlm")
    hf.save(tmp_path / "out", options, params, shard_bytes=6000)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors" and len(files) > 2
    assert not (tmp_path / "out" / "model.safetensors").exists()
    held = {name: file for file in files for name in load_file(tmp_path / "out" / file)}
    assert held == index["weight_map"]
    again, same = hf.load(tmp_path / "out")
    assert again == options
    np.testing.assert_array_equal(same["lm_head"]["bias"], params["lm_head"]["bias"])


def test_labels_and_special_ids_are_written(tmp_path, caplog):
    loaded = hf.read(GOLDEN / "roberta-classify")
    ids = {"pad_token_id": 7, "eos_token_id": 3}
    names = ["c", "a", "b"]
    options = {"label_names": names, "special_ids": ids, "head_dropout": 0.25, "pool": "pooler"}
    name = hf.save(tmp_path / "out", loaded.options, loaded.params, **options)
    config = config_of(tmp_path / "out")
    assert name == "RobertaForSequenceClassification" == config["architectures"][0]
    assert config["id2label"] == {"0": "c", "1": "a", "2": "b"}
    assert config["label2id"] == {"c": 0, "a": 1, "b": 2}
    assert config["classifier_dropout"] == 0.25
    assert config["eos_token_id"] == 3
    assert config["pad_token_id"] == 1  # else positions would start elsewhere
    (warning,) = caplog.messages
    assert "pad_token_id stays 1" in warning and "the tokenizer has 7" in warning
    assert hf.read(tmp_path / "out").label_names == names


def test_options_without_effect_do_not_stand_in_the_way(tmp_path):
    _, params = hf.load(GOLDEN / "bert")
    options = tiny.transformer(
        num_heads=4, max_positions=20, rotary_base=500.0, num_kv_heads=4, tied=False, dropout=0.3
    )
    assert hf.save(tmp_path / "out", options, params) == "BertModel"
    assert config_of(tmp_path / "out")["hidden_dropout_prob"] == 0.3


def test_the_family_that_the_pooler_names_comes_first(tmp_path):
    options, params = hf.load(GOLDEN / "electra-generator")
    square = dataclasses.replace(options, embedding_size=0, hidden_size=8, num_heads=2)
    shapes = models.shapes(hf.electra.FAMILY, square, "lm_head", 0, pooler=False)
    params = trees.nest({path: np.zeros(shape, np.float32) for path, shape in shapes.items()})
    assert hf.save(tmp_path / "out", square, params) == "ElectraForMaskedLM"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_position": "pre"}, "bert, the closest, differs in norm_position: found 'pre', exp"),
        ({"causal": True}, "causal: found True, expected False"),
        ({"head_bias": False}, "head_bias: found False, expected True"),
    ],
)
def test_options_of_no_family_are_refused(changes, message, tmp_path):
    options, params = hf.load(GOLDEN / "bert-mlm")
    with pytest.raises(UserError, match=message):
        hf.save(tmp_path / "out", dataclasses.replace(options, **changes), params)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("case", "about", "message"),
    [
        ("bert-classify", {"pool": "mean"}, "objective.pool: found 'mean', expected 'pooler'"),
        ("bert-classify", {"label_names": ["a"]}, "label_names: found 1, expected 3"),
        ("gpt2-lm", {"head": "discriminator_head"}, "gpt2 of transformers has no model with disc"),
        ("bert-mlm", {"head": ""}, "lm_head/bias: found shape .64,., expected none for BertModel"),
    ],
)
def test_what_the_architecture_does_not_have_is_refused(case, about, message, tmp_path):
    options, params = hf.load(GOLDEN / case)
    with pytest.raises(UserError, match=message):
        hf.save(tmp_path / "out", options, params, **about)
    assert not (tmp_path / "out").exists()


def test_parameters_must_be_those_of_the_options(tmp_path):
    options, params = hf.load(GOLDEN / "bert-tag")
    small = dataclasses.replace(options, ffn_size=24)
    with pytest.raises(UserError, match=r"ffn/in/bias: found shape \(2, 32\), expected \(2, 24\)"):
        hf.save(tmp_path / "out", small, params)
    del params["trunk"]["embedding_norm"]["bias"]
    with pytest.raises(UserError, match="embedding_norm/bias: found shape none, expected"):
        hf.save(tmp_path / "out", options, params)


def test_only_an_empty_folder_is_written_to(tmp_path):
    options, params = hf.load(GOLDEN / "bert")
    (tmp_path / "empty").mkdir()
    hf.save(tmp_path / "empty", options, params)
    with pytest.raises(UserError, match="empty exists and is not empty; expected a new folder"):
        hf.save(tmp_path / "empty", options, params)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty"]
