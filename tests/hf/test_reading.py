"""Checkpoints as they come: old names, other float types, shards; and what is wrong with others."""

import json
import pathlib
import re
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pretrain import hf, trees
from pretrain.errors import UserError
from tests.hf.test_parity import GOLDEN

WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(tmp_path):
    """``(case, config=..., tensors=...)`` -> a copy of a golden checkpoint, changed."""

    def make(case: str, config=None, tensors=None, drop=()) -> pathlib.Path:
        folder = tmp_path / f"{case}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(GOLDEN / case, folder)
        written = json.loads((folder / "config.json").read_text()) | (config or {})
        written = {key: value for key, value in written.items() if key not in drop}
        (folder / "config.json").write_text(json.dumps(written))
        if tensors is not None:
            changed = tensors(load_file(folder / WEIGHTS))
            save_file({k: np.ascontiguousarray(v) for k, v in changed.items()}, folder / WEIGHTS)
        return folder

    return make


def equal(one: dict, other: dict) -> bool:
    a, b = trees.flatten(one), trees.flatten(other)
    return a.keys() == b.keys() and all(np.array_equal(a[path], b[path]) for path in a)


def test_a_kernel_is_transposed_and_split_into_heads():
    theirs = load_file(GOLDEN / "bert-mlm" / WEIGHTS)
    options, params = hf.load(GOLDEN / "bert-mlm")
    assert (options.num_layers, options.hidden_size, options.num_heads) == (2, 16, 4)
    attention = params["trunk"]["layers"]["attention"]
    weight = theirs["bert.encoder.layer.1.attention.self.key.weight"]
    assert attention["key"]["kernel"][1, 3, 2, 1] == weight[2 * 4 + 1, 3]
    weight = theirs["bert.encoder.layer.0.attention.output.dense.weight"]
    assert attention["out"]["kernel"][0, 2, 1, 3] == weight[3, 2 * 4 + 1]


def test_fused_projections_are_taken_apart():
    theirs = load_file(GOLDEN / "gpt2-lm" / WEIGHTS)
    layers = hf.load(GOLDEN / "gpt2-lm")[1]["trunk"]["layers"]
    fused = theirs["transformer.h.1.attn.c_attn.weight"]  # [in, 3 * out]
    assert layers["attention"]["value"]["kernel"][1, 5, 3, 2] == fused[5, 2 * 16 + 3 * 4 + 2]
    gated = load_file(GOLDEN / "modernbert-mlm" / WEIGHTS)["model.layers.2.mlp.Wi.weight"]
    ffn = hf.load(GOLDEN / "modernbert-mlm")[1]["trunk"]["layers"]["ffn"]  # without layer 0
    assert ffn["gate"]["kernel"][1, 3, 7] == gated[7, 3]
    assert ffn["in"]["kernel"][1, 3, 7] == gated[20 + 7, 3]


def test_names_without_the_base_prefix_and_old_names_of_norms(copy):
    def old(tensors):
        names = {name: name.removeprefix("bert.") for name in tensors}
        return {
            re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", names[name]).replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): array
            for name, array in tensors.items()
        }

    folder = copy("bert-mlm", tensors=old)
    assert "embeddings.LayerNorm.gamma" in load_file(folder / WEIGHTS)
    loaded = hf.read(folder)
    assert equal(loaded.params, hf.load(GOLDEN / "bert-mlm")[1])
    assert loaded.unused == []


def test_a_base_model_may_come_with_the_prefix_and_without_a_pooler(copy):
    def prefixed(tensors):
        return {f"bert.{name}": x for name, x in tensors.items() if "pooler" not in name}

    loaded = hf.read(copy("bert", tensors=prefixed))
    whole = hf.load(GOLDEN / "bert")[1]
    assert set(whole) == {"trunk", "pooler"} and set(loaded.params) == {"trunk"}
    assert equal(loaded.params["trunk"], whole["trunk"])


def test_the_pooler_goes_with_a_vocabulary_head():
    loaded = hf.read(GOLDEN / "bert-pretraining")
    assert set(loaded.params) == {"trunk", "lm_head", "pooler", "pair_head"}
    assert (loaded.architecture, loaded.unused) == ("BertForPreTraining", [])
    weights = load_file(GOLDEN / "bert-pretraining" / WEIGHTS)
    np.testing.assert_array_equal(
        loaded.params["pair_head"]["kernel"], weights["cls.seq_relationship.weight"].T
    )


def test_what_is_not_used_is_told(copy):
    extra = {"fit_dense.weight": np.zeros((3, 2), np.float32)}
    extra["bert.embeddings.position_ids"] = np.arange(20)[None]
    loaded = hf.read(copy("bert-mlm", tensors=lambda tensors: tensors | extra))
    assert loaded.unused == ["bert.embeddings.position_ids", "fit_dense.weight"]
    assert len(loaded.used) == len(load_file(GOLDEN / "bert-mlm" / WEIGHTS))


def test_copies_of_tied_tensors_must_be_equal(copy):
    name = "cls.predictions.decoder.weight"

    def with_copy(tensors, by=0.0):
        return tensors | {name: tensors["bert.embeddings.word_embeddings.weight"] + np.float32(by)}

    loaded = hf.read(copy("bert-mlm", tensors=with_copy))
    assert name in loaded.used and loaded.unused == []
    with pytest.raises(UserError, match=f"'{name}' differs from 'bert.embeddings.word_embeddings"):
        hf.read(copy("bert-mlm", tensors=lambda tensors: with_copy(tensors, 0.5)))


@pytest.mark.parametrize(
    ("case", "name", "width"),
    [
        ("bert-mlm", "cls.predictions.decoder.weight", 16),
        ("roberta-mlm", "lm_head.decoder.weight", 16),
        ("distilbert-mlm", "vocab_projector.weight", 16),
        ("electra-generator", "generator_lm_head.weight", 8),
        ("gpt2-lm", "lm_head.weight", 16),
    ],
)
def test_an_untied_table_is_a_matrix_of_the_head(case, name, width, copy, tmp_path):
    table = np.random.default_rng(0).normal(size=(64, width)).astype(np.float32)
    folder = copy(case, {"tie_word_embeddings": False}, lambda tensors: tensors | {name: table})
    options, params = hf.load(folder)
    assert not options.tied
    np.testing.assert_array_equal(params["lm_head"]["kernel"], table.T)
    hf.save(tmp_path / "out", options, params)
    np.testing.assert_array_equal(load_file(tmp_path / "out" / WEIGHTS)[name], table)


def test_robertas_vocabulary_bias_is_written_twice(copy, tmp_path):
    """transformers 4 ties the bias to that of ``decoder``, which `save_pretrained` leaves out."""
    folder, out = GOLDEN / "roberta-mlm", tmp_path / "out"
    assert "lm_head.decoder.bias" not in load_file(folder / WEIGHTS)
    hf.save(out, *hf.load(folder))
    written = load_file(out / WEIGHTS)
    np.testing.assert_array_equal(written["lm_head.decoder.bias"], written["lm_head.bias"])
    assert written["lm_head.bias"].any() and hf.read(out).unused == []

    def changed(tensors):
        return tensors | {"lm_head.decoder.bias": tensors["lm_head.bias"] + np.float32(1)}

    with pytest.raises(UserError, match=r"'lm_head\.decoder\.bias' differs from 'lm_head\.bias'"):
        hf.read(copy("roberta-mlm", tensors=changed))


def test_epsilons_and_rotary_bases_are_those_of_the_file():
    found = {case: hf.load(GOLDEN / case)[0] for case in ("llama-lm", "modernbert-mlm")}
    assert {o.norm_eps for o in found.values()} == {1e-2}
    assert (found["llama-lm"].rotary_base, found["modernbert-mlm"].rotary_base) == (50.0, 900.0)
    assert found["modernbert-mlm"].local_rotary_base == 50.0
    assert hf.load(GOLDEN / "distilbert-mlm")[0].norm_eps == 1e-12  # which its class has fixed


def test_no_local_rotary_base_is_that_of_the_global_layers(copy):
    options, _ = hf.load(copy("modernbert-mlm", {"local_rope_theta": None}))
    assert (options.rotary_base, options.local_rotary_base) == (900.0, 900.0)
    options, _ = hf.load(copy("modernbert-mlm", drop=["local_rope_theta", "global_rope_theta"]))
    assert (options.rotary_base, options.local_rotary_base) == (160_000.0, 10_000.0)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_any_float_type_becomes_float32(copy, dtype):
    folder = copy("bert", tensors=lambda tensors: {k: v.astype(dtype) for k, v in tensors.items()})
    params = trees.flatten(hf.load(folder)[1])
    for path, array in trees.flatten(hf.load(GOLDEN / "bert")[1]).items():
        assert params[path].dtype == np.float32
        np.testing.assert_array_equal(params[path], array.astype(dtype).astype(np.float32))


def test_label_names_are_in_the_order_of_their_ids(copy):
    names = {"2": "ten", "0": "zero", "1": "one"}
    assert hf.read(copy("bert-tag", {"id2label": names})).label_names == ["zero", "one", "ten"]


def test_without_architectures_the_tensors_tell_the_head(copy):
    assert hf.read(copy("electra-discriminator", drop=["architectures"])).head == (
        "discriminator_head"
    )
    loaded = hf.read(copy("bert", drop=["architectures"]))
    assert (loaded.head, loaded.architecture) == ("", "BertModel")


def without(name):
    return lambda tensors: {k: v for k, v in tensors.items() if k != name}


def cut(name):
    return lambda tensors: tensors | {name: tensors[name][:-1]}


def integers(name):
    return lambda tensors: tensors | {name: tensors[name].astype(np.int32)}


LAYER = "bert.encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize(
    ("case", "config", "tensors", "message"),
    [
        ("bert", {"model_type": "big_bird"}, None, "model_type: found 'big_bird', expected one of"),
        (
            "bert", {"architectures": ["BertForQuestionAnswering"]}, None,
            "architectures: found 'BertForQuestionAnswering', expected one of BertModel, BertForM",
        ),
        ("bert-mlm", {}, without(LAYER), f"lacks tensor '{LAYER}', expected shape (16, 32)"),
        ("bert-mlm", {}, cut(LAYER), f"'{LAYER}' has shape (15, 32), expected (16, 32)"),
        ("bert-mlm", {}, integers(LAYER), f"'{LAYER}' is I32, expected one of F64, F32"),
        (
            "bert-mlm", {"vocab_size": 65}, None,
            "'bert.embeddings.word_embeddings.weight' has shape (64, 16), expected (65, 16)",
        ),
        ("bert-tag", {"id2label": {"0": "a", "1": "b"}}, None, "shape (3, 16), expected (2, 16)"),
        ("bert-tag", {"id2label": {"0": "a", "2": "b"}}, None, "found the classes 0, 2, expected"),
        ("bert-tag", {"id2label": {"0": "a", "1": "a"}}, None, "id2label: 'a' names two classes"),
        ("bert-tag", {"id2label": ["a", "b", "c"]}, None, "id2label: found ['a', 'b', 'c'], expec"),
        ("bert", {"architectures": "BertModel"}, None, "architectures: found 'BertModel', expecte"),
        ("modernbert-mlm", {"local_rope_theta": "x"}, None, "local_rope_theta: found 'x', expecte"),
        ("gpt2-lm", {"n_inner": "64"}, None, "n_inner: found '64', expected int"),
        ("bert", {"hidden_size": "16"}, None, "hidden_size: found '16', expected int"),
        ("bert", {"num_attention_heads": 5}, None, "num_heads: 5 does not divide hidden_size 16"),
        (
            "bert", {"position_embedding_type": "relative_key"}, None,
            "position_embedding_type of model_type 'bert': found 'relative_key', expected",
        ),
        ("roberta-mlm", {"pad_token_id": 25}, None, "max_position_embeddings: found 20, expected"),
        ("bert", {"hidden_act": "mish"}, None, "hidden_act: found 'mish', expected one of gelu, "),
        ("modernbert-mlm", {"local_attention": -1}, None, "local_attention: found -1, expected at"),
    ],
)  # fmt: skip
def test_errors_name_what_is_wrong(case, config, tensors, message, copy):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        hf.read(copy(case, config, tensors))
    assert "\n" not in str(error.value)


BERTS = {
    "position_embedding_type": "relative_key",
    "is_decoder": True,
    "add_cross_attention": True,
    "pruned_heads": {"0": [1]},
}
REFUSED = {  # options with an effect that our models lack, by module
    "bert": BERTS,
    "roberta": BERTS | {"hidden_act": "relu"},  # its vocabulary head has the GELU all the same
    "distilbert": {"pruned_heads": {"0": [1]}},
    "electra": BERTS | {"hidden_act": "gelu_new"},
    "modernbert": {
        "attention_bias": True, "mlp_bias": True, "classifier_bias": True,
        "classifier_activation": "relu", "hidden_activation": "gelu_new",
        "rope_scaling": {"rope_type": "linear"},
    },
    "gpt2": {
        "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True,
        "add_cross_attention": True, "pruned_heads": {"0": [1]},
    },
    "llama": {"rope_scaling": {"rope_type": "yarn"}, "attention_bias": True, "mlp_bias": True},
    "mobilebert": {"use_bottleneck": False, "trigram_input": False, "is_decoder": True},
    "transformer_xl": {"pre_lnorm": True, "attn_type": 2, "sample_softmax": 5},
    "bart": {"tie_word_embeddings": False, "is_encoder_decoder": False},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_our_model_lacks_are_refused_by_name(name):
    module = getattr(hf, name)
    assert REFUSED[name].keys() == module.ONLY.keys()
    family = module.FAMILY
    folder = next(f for f in sorted(GOLDEN.glob(f"{family.model_type}*")))
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == family.model_type
    family.from_hf(config)
    for key, value in REFUSED[name].items():
        message = f"{key} of model_type '{family.model_type}': found {value!r}, expected"
        with pytest.raises(UserError, match=re.escape(message)):
            family.from_hf(config | {key: value})


def test_every_family_with_such_options_is_in_the_table():
    modules = {name for name in dir(hf) if hasattr(getattr(hf, name), "ONLY")}
    assert modules == REFUSED.keys()


def test_every_shard_that_the_index_names_must_be_there(tmp_path):
    options, params = hf.load(GOLDEN / "bert-mlm")
    folder = tmp_path / "shards"
    hf.save(folder, options, params, shard_bytes=8000)
    first = sorted(folder.glob("*-of-*"))[0]
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    moved = {name: shard for name, shard in index["weight_map"].items() if shard != first.name}
    stray = next(name for name in index["weight_map"] if name not in moved)
    file.write_text(json.dumps({"weight_map": moved | {stray: next(iter(moved.values()))}}))
    with pytest.raises(UserError, match=f"lacks tensor '{stray}', which .* says is in it"):
        hf.load(folder)
    file.write_text(json.dumps(index))
    first.unlink()
    with pytest.raises(UserError, match=f"is in '{first.name}', which is not a file"):
        hf.load(folder)
    file.write_text(json.dumps({"weight_map": {"a": "../bert/model.safetensors"}}))
    with pytest.raises(UserError, match="which is not a file of that folder"):
        hf.load(folder)
    file.write_text("[]")
    with pytest.raises(UserError, match="found a JSON list, expected an object"):
        hf.load(folder)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "bert_model.ckpt.index", "tf_model.h5"]
)
def test_other_files_are_refused_with_the_way_to_convert(name, copy):
    folder = copy("bert")
    (folder / WEIGHTS).rename(folder / name)
    with pytest.raises(UserError, match=f"found {name}, expected {WEIGHTS}") as error:
        hf.load(folder)
    for part in ("config.architectures[0]", "safe_serialization=True", "AutoTokenizer"):
        assert part in str(error.value)


def test_folders_without_weights_and_broken_files(copy, tmp_path):
    with pytest.raises(UserError, match="not a folder; expected one that save_pretrained wrote"):
        hf.load(tmp_path / "nowhere")
    folder = copy("bert")
    (folder / WEIGHTS).write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match="not a safetensors file"):
        hf.load(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors and no model.safetensors.index"):
        hf.load(folder)
    shutil.copy(GOLDEN / "bert" / WEIGHTS, folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not a JSON file"):
        hf.load(folder)
