"""Span corruption and infilling: the loss of what a decoder writes, in packed rows as alone."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from configs import bart, t5
from pretrain import blank, schema
from pretrain.errors import UserError
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.models.families import language_model
from pretrain.objectives.spans import Infilling, Spans
from tests import tiny
from tests.data.test_noise import infilling_of, keys_of, rows_of, spans_of

OPTIONS = EncoderDecoderConfig(
    **schema.MODELS["encoder_decoder"]
    | tiny.SHAPE
    | {"vocab_size": 950, "dropout": 0.0, "attention_dropout": 0.0, "num_layers": 1}
)
LEARNED = dataclasses.replace(OPTIONS, position="learned", decoder_start_id=2)
MODELS = {"t5": OPTIONS, "bart": LEARNED}


@functools.cache
def objective(name, chunk_size=16):
    kind = Spans if name == "t5" else Infilling
    return kind(language_model("encoder_decoder", MODELS[name]), chunk_size, 20)


@functools.cache
def batch_of(name):
    corrupt = spans_of(40) if name == "t5" else infilling_of(40)
    return corrupt(rows_of(4, corrupt.seq_len, 10, 25), keys_of(4))


@functools.cache
def params(name):
    boxed = jax.eval_shape(objective(name).init, jax.random.key(0))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), nn.unbox(boxed))


@functools.cache
def compiled(name):
    @jax.jit
    def logits(params, inputs):
        model = objective(name).model
        hidden = model.apply({"params": params}, **inputs)
        return model.apply({"params": params}, hidden, method="logits")

    return logits


def alone(batch, row, number):
    """One document of a packed row in a row of its own: the model's inputs, and the targets."""
    source = batch["tokens"][row][batch["segment_ids"][row] == number]
    targets = batch["targets"][row][batch["target_segment_ids"][row] == number]
    inputs = {key: np.zeros((1, 40), np.int32) for key in ("tokens", "segment_ids", "positions")}
    inputs["tokens"][0, : len(source)] = source
    inputs["segment_ids"][0, : len(source)] = 1
    inputs["positions"][0] = np.arange(40)
    return inputs, targets


@pytest.mark.parametrize("name", MODELS)
def test_loss_is_that_of_each_document_alone(name):
    """Each target is predicted from its own source and the targets before it, and nothing else."""
    batch, weights = batch_of(name), np.array([1, 0.5, 0, 1], np.float32)
    losses, hits, total = 0.0, 0.0, 0.0
    unseen = np.zeros(3)  # loss, hits, weight
    for row in range(4):
        for number in range(1, batch["target_segment_ids"][row].max() + 1):
            inputs, targets = alone(batch, row, number)
            if not len(targets):
                continue
            before = np.full((1, 40), 0, np.int32)
            before[0, : len(targets)] = [MODELS[name].decoder_start_id, *targets[:-1]]
            logits = compiled(name)(params(name), inputs | {"decoder_tokens": before})[0]
            log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)[: len(targets)]
            places = np.arange(len(targets))
            each = np.stack([-log_probs[places, targets], log_probs.argmax(-1) == targets])
            losses += each[0].sum() * weights[row]
            hits += each[1].sum() * weights[row]
            own = batch["hidden"][row][batch["target_segment_ids"][row] == number]
            unseen += [*(each * own).sum(1) * weights[row], own.sum() * weights[row]]
            total += len(targets) * weights[row]
    assert batch["target_segment_ids"].max() > 1
    rows = batch | {"weights": weights}
    loss, weight, metrics = jax.jit(objective(name).loss)(params(name), rows, jax.random.key(0))
    assert float(weight) == total
    assert float(loss) == pytest.approx(losses, rel=1e-4)
    assert float(metrics["accuracy"][0]) == pytest.approx(hits)
    held_out = jax.jit(objective(name).predict)(params(name), rows)
    assert float(held_out["loss"][0]) == pytest.approx(losses, rel=1e-4)
    assert set(objective(name).scores) == metrics.keys() | {"perplexity"}
    assert 0 < unseen[2] < total
    for (value, weight), want in zip(
        (metrics["masked_loss"], metrics["masked_accuracy"]), unseen, strict=False
    ):
        assert (float(value), float(weight)) == pytest.approx((want, unseen[2]), rel=1e-4)


def test_train_flops_are_of_rows_of_two_lengths():
    """40 tokens in, 20 out: projections, pairs and the vocabulary, by hand."""
    attention, ffn = 4 * 16 * 16, 3 * 16 * 32
    encoder = 40 * (attention + ffn) + 2 * 40 * 40 * 16
    decoder = 20 * (attention + ffn) + 2 * (20 * 21 // 2) * 16
    cross = 20 * 2 * 16 * 16 + 40 * 2 * 16 * 16 + 2 * 20 * 40 * 16
    expected = 3 * 2 * (encoder + decoder + cross + 20 * 16 * 950)
    assert objective("t5").train_flops(40) == expected


def test_shipped_configs_make_them():
    made = blank.objective(t5.get_config("tiny,seq=512"))
    assert isinstance(made, Spans) and made.target_length == 141
    assert made.model.trunk.config.vocab_size == 8192 + 100
    assert isinstance(blank.objective(bart.get_config("tiny")), Infilling)


def test_what_does_not_fit_is_refused():
    config = t5.get_config("tiny")
    config.model.vocab_size = 8200
    with pytest.raises(UserError, match=r"vocab_size: found 8200, expected at least 8292: .* 8192"):
        blank.objective(config)
    config = t5.get_config("tiny,seq=512")
    config.objective.noise_density = 0.5
    with pytest.raises(UserError, match=r"max_positions: found 512, expected at least"):
        blank.objective(config)
    encoder = language_model("encoder_decoder", dataclasses.replace(OPTIONS, reads="encoder"))
    with pytest.raises(UserError, match=r"model\.reads: found 'encoder' with objective\.name 'sp"):
        Spans(encoder, 8, 20)
