"""Denoising: the encoder reads masked rows, the decoder writes the whole text."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import bart
from pretrain import blank, schema
from pretrain.errors import UserError
from pretrain.models.encoder_decoder import EncoderDecoderConfig, shift_right
from pretrain.models.families import language_model
from pretrain.objectives.denoising import Denoising
from pretrain.objectives.mlm import MaskedLM
from tests import tiny

MASKING = dict(
    mask_id=4, special_ids=(0, 1, 2, 3, 4), num_pieces=tiny.VOCAB, mask_rate=0.3, mask_prob=0.8,
    random_prob=0.1,
)  # fmt: skip
OPTIONS = EncoderDecoderConfig(
    **schema.MODELS["encoder_decoder"] | tiny.SHAPE | {"dropout": 0.0, "attention_dropout": 0.0}
)
MODEL = language_model("encoder_decoder", OPTIONS)
KEY = jax.random.key(0)
BATCH = tiny.lm_batch(seq_len=23) | {"weights": np.array([1, 1, 0, 1, 0.5, 1, 1, 1], np.float32)}


def objective(chunk_size=128, **changes) -> Denoising:
    return Denoising(MODEL, **MASKING | changes, chunk_size=chunk_size)


@functools.cache
def params():
    return nn.unbox(jax.jit(objective().init)(KEY))["params"]


@functools.cache
def corrupted():
    return jax.device_get(jax.jit(objective().corrupt)(BATCH, jax.random.key(5)))


@functools.cache
def full_logits():
    """Of all positions, the decoder fed with the original."""
    start = OPTIONS.decoder_start_id
    shifted = shift_right(jnp.asarray(BATCH["tokens"]), jnp.asarray(BATCH["segment_ids"]), start)

    tokens = corrupted()["tokens"]

    @jax.jit
    def run(params):
        hidden = MODEL.apply(
            {"params": params},
            tokens,
            segment_ids=BATCH["segment_ids"],
            decoder_tokens=shifted,
            decoder_segment_ids=BATCH["segment_ids"],
        )
        return MODEL.apply({"params": params}, hidden, method="logits")

    return np.asarray(run(params()), np.float64)


@functools.cache
def value_and_gradient(chunk_size):
    batch = corrupted()

    def loss(params):
        total, weight, metrics = objective(chunk_size).loss(params, batch, KEY)
        return total, (weight, metrics)

    return jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(params()))


def test_the_encoder_sees_what_a_masked_language_model_sees():
    same = jax.jit(MaskedLM(tiny.lm(), **MASKING).corrupt)(BATCH, jax.random.key(5))
    assert corrupted().keys() == same.keys() | {"targets"}
    for name, value in same.items():
        np.testing.assert_array_equal(corrupted()[name], value)
    np.testing.assert_array_equal(corrupted()["targets"], BATCH["tokens"])
    assert (corrupted()["tokens"] == 4).sum() > 8 * 23 * 0.3 * 0.5


def test_loss_is_the_cross_entropy_of_every_real_token():
    logits = full_logits()
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.take_along_axis(log_probs, BATCH["tokens"][..., None], -1)[..., 0]
    weights = (BATCH["segment_ids"] > 0) * BATCH["weights"][:, None]
    hits = logits.argmax(-1) == BATCH["tokens"]
    (loss, (weight, metrics)), _ = value_and_gradient(128)
    assert float(weight) == pytest.approx(weights.sum())
    assert float(loss) == pytest.approx((losses * weights).sum(), rel=1e-4)
    assert float(metrics["accuracy"][0]) == pytest.approx((hits * weights).sum())

    drawn = np.zeros_like(weights)
    for row, (places, kept) in enumerate(
        zip(corrupted()["masked_positions"], corrupted()["masked_weights"], strict=True)
    ):
        drawn[row, places[kept > 0]] = BATCH["weights"][row]
    found, total = (float(x) for x in metrics["masked_accuracy"])
    assert (found, total) == pytest.approx(((hits * drawn).sum(), drawn.sum()))
    found, total = (float(x) for x in metrics["masked_loss"])
    assert (found, total) == pytest.approx(((losses * drawn).sum(), drawn.sum()), rel=1e-4)


def test_chunks_change_neither_value_nor_gradient():
    """Rows of 23 positions in four chunks, the last one short."""
    (loss, _), gradient = value_and_gradient(7)
    (want, _), wanted = value_and_gradient(128)
    assert float(loss) == pytest.approx(float(want), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4), gradient, wanted
    )


def test_a_token_is_predicted_before_the_decoder_is_shown_it():
    """The encoder was given a mask in its place."""
    row, place = 0, int(np.flatnonzero(corrupted()["tokens"][0] == 4)[0])
    targets = corrupted()["targets"].copy()
    targets[row, place] ^= 1

    @jax.jit
    def hidden(params, batch):
        seen = []

        class Told(Denoising):
            def cross_entropy(self, params, hidden, labels, chunk_size):
                seen.append(hidden)
                return super().cross_entropy(params, hidden, labels, chunk_size)

        Told(**vars(objective())).metrics(params, batch)
        return seen[0]

    want, got = (hidden(params(), corrupted() | x) for x in ({}, {"targets": targets}))
    change = np.abs(np.asarray(got) - np.asarray(want)).max(-1)
    same_document = BATCH["segment_ids"][row] == BATCH["segment_ids"][row, place]
    later = same_document & (np.arange(23) > place)
    assert later.any() and (change[row, later] > 0).all()
    change[row, later] = 0
    assert not change.any()


def test_held_out_masks_are_fixed_at_15_percent():
    """Neither the rate in training nor the other rows of a batch matter."""

    def sums(predict, rows):
        got = predict(params(), {name: value[rows] for name, value in BATCH.items()})
        return {name: np.array(pair, np.float64) for name, pair in got.items()}

    predict, other = (jax.jit(objective(**x).predict) for x in ({}, {"mask_rate": 0.5}))
    whole, parts = sums(predict, range(8)), [sums(predict, x) for x in ([6, 1, 3, 0], [2, 7, 5, 4])]
    for name, pair in sums(other, range(8)).items():
        np.testing.assert_allclose(pair, whole[name], rtol=1e-5)
        np.testing.assert_allclose(parts[0][name] + parts[1][name], whole[name], rtol=1e-5)
    real = (BATCH["tokens"] >= 5).sum(1)
    expected = (np.round(0.15 * real) * BATCH["weights"]).sum()
    assert whole["masked_accuracy"][1] == expected
    assert set(objective().scores) == whole.keys() | {"perplexity"}


def test_train_flops_are_of_both_stacks_and_all_logits():
    """Of a row of 100 tokens: encoder, decoder, and the vocabulary of every position."""
    attention, ffn, length = 4 * 16 * 16, 3 * 16 * 32, 100
    encoder = 2 * (length * (attention + ffn) + 2 * length**2 * 16)
    decoder = encoder + 2 * (length * attention + length * (length + 1) * 16)
    logits = length * 16 * tiny.VOCAB
    assert objective().train_flops(length) == 3 * 2 * (encoder + decoder + logits)


def test_a_shipped_config_makes_it():
    made = blank.objective(bart.get_config("tiny,tokens"))
    assert isinstance(made, Denoising) and made.chunk_size == 64 and made.mask_rate == 0.15


def test_an_encoder_alone_cannot_learn_it():
    options = dataclasses.replace(OPTIONS, reads="encoder")
    model = language_model("encoder_decoder", options)
    with pytest.raises(UserError, match=r"model\.reads: found 'encoder' with objective\.name"):
        Denoising(model, **MASKING, chunk_size=8)
