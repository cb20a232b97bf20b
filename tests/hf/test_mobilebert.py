"""MobileBERT's config.json: what it means, and what cannot be."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import mobilebert as shipped
from pretrain import config as configs
from pretrain import hf, tasks
from pretrain.errors import UserError
from pretrain.hf import mobilebert
from tests.hf.test_parity import GOLDEN

PUBLISHED = dict(  # of google-research, which both its students share
    vocab_size=30522, hidden_size=512, embedding_size=128, intra_bottleneck_size=128,
    num_hidden_layers=24, num_attention_heads=4, intermediate_size=512, hidden_act="relu",
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.1, initializer_range=0.02,
    max_position_embeddings=512, type_vocab_size=2, use_bottleneck=True, trigram_input=True,
    normalization_type="no_norm", classifier_activation=False,
)  # fmt: skip
OPTIONS = {
    "released": PUBLISHED | dict(key_query_shared_bottleneck=True, num_feedforward_networks=4),
    "tiny": PUBLISHED | dict(use_bottleneck_attention=True, num_feedforward_networks=2),
}


def options(variant):
    config = shipped.get_config(f"{variant},published")
    return tasks.backbone_options(configs.Reader(config))


@pytest.mark.parametrize("variant", OPTIONS)
def test_published_options_are_our_variants(variant):
    assert mobilebert.from_hf(OPTIONS[variant]) == options(variant)
    written = mobilebert.to_hf(options(variant))
    assert {key: written[key] for key in OPTIONS[variant]} == OPTIONS[variant]


def test_absent_options_are_those_of_the_class():
    """``MobileBertConfig()``: the released model with a pooler."""
    assert mobilebert.from_hf({}) == dataclasses.replace(options("released"), pooler="bert")


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(use_bottleneck=False), "use_bottleneck .*: found False, expected True"),
        (dict(trigram_input=False), "trigram_input .*: found False, expected True"),
        (
            dict(key_query_shared_bottleneck=False),
            "key_query_shared_bottleneck: found False .*512 .*128; expected equal sizes",
        ),
        (dict(normalization_type="rms"), "normalization_type: found 'rms', expected one of no_n"),
        (dict(hidden_act="relu6"), "hidden_act: found 'relu6', expected one of gelu"),
    ],
)
def test_options_that_our_model_lacks_are_refused(changes, said):
    with pytest.raises(UserError, match=f"config.json: {said}"):
        mobilebert.from_hf(changes)


def test_the_teacher_is_not_written_for_a_class_that_cannot_run_it(tmp_path):
    params = hf.load(GOLDEN / "mobilebert-full")[1]
    with pytest.raises(UserError, match="expected equal sizes"):
        hf.save(tmp_path / "out", options("teacher"), params)


def test_layer_norms_have_the_epsilon_of_the_class():
    """1e-5 on the embeddings and after the last feed-forward, whatever layer_norm_eps says."""
    config = json.loads((GOLDEN / "mobilebert-teacher" / "config.json").read_text())
    assert config["layer_norm_eps"] == 1e-12
    found = mobilebert.from_hf(config)
    assert (found.norm_eps, found.outer_norm_eps) == (1e-12, 1e-5)


def test_bottlenecks_that_the_class_never_uses_are_named():
    """With ``use_bottleneck_attention`` it allocates those of the shared queries and keys too."""
    unused = hf.read(GOLDEN / "mobilebert-tiny").unused
    assert len(unused) == 2 * 4 and all(".bottleneck.attention." in name for name in unused)


def test_the_last_feed_forward_block_is_the_one_outside_the_stack():
    theirs = load_file(GOLDEN / "mobilebert-mlm" / "model.safetensors")
    layers = hf.load(GOLDEN / "mobilebert-mlm")[1]["trunk"]["layers"]
    layer = "mobilebert.encoder.layer.1"
    for name, block in (("ffn.0.", "ffn_0"), ("ffn.1.", "ffn_1"), ("", "ffn_2")):
        weight = theirs[f"{layer}.{name}intermediate.dense.weight"]
        np.testing.assert_array_equal(layers[block]["in"]["kernel"][1], weight.T)
    assert "ffn_3" not in layers
