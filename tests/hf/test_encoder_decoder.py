"""T5 and BART: both stacks against transformers, and what their checkpoints leave open."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from pretrain import hf
from pretrain.errors import UserError
from pretrain.hf import bart, models, t5
from tests.hf.test_parity import CASES, GOLDEN, TOLERANCE

OURS = [case for case in CASES if case.startswith(("bart", "t5"))]
ARGUMENTS = {  # of the model, by names in the golden file
    "attention_mask": "segment_ids",
    "decoder_input_ids": "decoder_tokens",
    "decoder_attention_mask": "decoder_segment_ids",
}


def run(loaded, golden):
    """Outputs of the head, or hidden states, and what the stacks tell."""
    model = models.build(loaded.family, loaded.options, loaded.head, len(loaded.label_names))
    inputs = {ARGUMENTS[x]: jnp.asarray(golden[x], jnp.int32) for x in ARGUMENTS if x in golden}
    tokens = jnp.asarray(golden["input_ids"], jnp.int32)

    def forward(params):
        variables = {"params": params}
        if loaded.label_names:
            return model.apply(variables, {"tokens": tokens, **inputs}, mutable="intermediates")
        out, told = model.apply(variables, tokens, **inputs, mutable="intermediates")
        return (model.apply(variables, out, method="logits") if loaded.head else out), told

    with jax.default_matmul_precision("highest"):
        out, told = jax.jit(forward)(loaded.params)
    return np.asarray(out), told["intermediates"]["trunk"]


@pytest.mark.parametrize("case", OURS)
def test_both_stacks_and_heads_equal_those_of_transformers(case):
    check(GOLDEN / case)


def check(folder):
    """Our model of a folder against the outputs in it."""
    golden = dict(np.load(folder / "golden.npz"))
    loaded = hf.read(folder)
    out, told = run(loaded, golden)
    real = {"encoder": golden["attention_mask"] > 0}
    real["decoder"] = golden.get("decoder_attention_mask", golden["attention_mask"]) > 0
    assert not loaded.unused and not real["encoder"].all() and not real["decoder"].all()
    golden.setdefault("encoder_hidden_states", golden.get("hidden_states"))
    norm_first = loaded.options.norm_position == "pre"
    for stack in told:
        states = [told[stack]["embedded"][0], *told[stack]["layers"]["hidden"][0]]
        if norm_first:  # theirs ends with the normalised states, which the head reads
            states.pop()
        theirs = golden[f"{stack}_hidden_states"]
        assert len(theirs) == len(states) + norm_first
        for ours, expected in zip(states, theirs, strict=False):
            got, want = np.asarray(ours)[real[stack]], expected[real[stack]]
            np.testing.assert_allclose(got, want, atol=TOLERANCE, rtol=0)
    want = golden["logits"] if loaded.head else golden[f"{loaded.options.reads}_hidden_states"][-1]
    places = real[loaded.options.reads] if want.ndim == 3 else slice(None)
    np.testing.assert_allclose(out[places], want[places], atol=TOLERANCE, rtol=0)


def test_the_architecture_tells_an_encoder_from_the_pair():
    assert {case: hf.read(GOLDEN / case).options.reads for case in OURS} == {
        case: "encoder" if case in ("t5-encoder", "t5-tag") else "decoder" for case in OURS
    }


def test_only_a_language_model_lacks_the_prefix(tmp_path):
    """T5ForConditionalGeneration holds the stacks itself, the others in ``transformer``."""
    for case in ("t5-lm", "t5-classify"):
        hf.save(tmp_path / case, *hf.load(GOLDEN / case))
        names = load_file(tmp_path / case / "model.safetensors")
        assert ("shared.weight" in names) == (case == "t5-lm")
        assert ("transformer.shared.weight" in names) == (case == "t5-classify")


def test_a_decoders_tagger_has_no_class_in_transformers(tmp_path):
    options, params = hf.load(GOLDEN / "t5-lm")
    params["tagging_head"] = {"kernel": np.zeros((16, 3)), "bias": np.zeros(3)}
    del params["lm_head"]
    with pytest.raises(UserError, match="t5 of transformers has no model with tagging_head"):
        hf.save(tmp_path / "out", options, params)


def test_an_activation_that_t5_cannot_name_is_refused(tmp_path):
    options, params = hf.load(GOLDEN / "t5-lm")
    with pytest.raises(UserError, match=r"model\.activation: found 'gelu' with gated True"):
        hf.save(tmp_path / "out", dataclasses.replace(options, activation="gelu"), params)


@pytest.mark.parametrize(
    "case, changes, message",
    [
        ("bart-lm", {"decoder_ffn_dim": 30}, "decoder_ffn_dim: found 30, .* encoder, 24"),
        ("bart-lm", {"decoder_attention_heads": 2}, "decoder_attention_heads: found 2, .* 4"),
        ("bart-lm", {"activation_function": "mish"}, "activation_function: found 'mish'"),
        ("t5-lm", {"feed_forward_proj": "gated-mish"}, "feed_forward_proj: found 'gated-mish'"),
    ],
)
def test_what_our_model_lacks_is_refused(case, changes, message):
    config = json.loads((GOLDEN / case / "config.json").read_text())
    family = {"bart": bart.FAMILY, "t5": t5.FAMILY}[case.split("-")[0]]
    with pytest.raises(UserError, match=message):
        family.from_hf(config | changes)


def test_the_start_token_of_t5_is_padding_unless_told():
    config = json.loads((GOLDEN / "t5-lm" / "config.json").read_text())
    del config["decoder_start_token_id"]
    assert t5.FAMILY.from_hf(config | {"pad_token_id": 7}).decoder_start_id == 7
