"""Masked language modelling with a question about two sentences."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain import trees
from pretrain.models.families import pair_model
from pretrain.models.heads import Classifier
from pretrain.models.transformer import Transformer
from tests import tiny

KEY = jax.random.key(0)
OPTIONS = tiny.transformer()
OBJECTIVE = tiny.pairs()


@functools.cache
def params():
    params = nn.unbox(jax.jit(OBJECTIVE.init)(KEY))["params"]
    return jax.tree.map(lambda x: 4 * x, params)


@functools.cache
def corrupted():
    return jax.device_get(jax.jit(OBJECTIVE.corrupt)(tiny.pair_batch(), jax.random.key(5)))


@pytest.fixture(autouse=True, scope="module")
def made_outside_of_any_trace():
    """What is cached must not be made first while something else is traced."""
    params(), corrupted()


@functools.cache
def whole():
    return jax.device_get(tiny.value_and_gradient(OBJECTIVE, params(), corrupted()))


def test_loss_is_the_sum_of_two_means():
    batch = corrupted()

    @jax.jit
    def forward(params, batch):
        inputs = {k: batch[k] for k in ("tokens", "segment_ids", "positions", "token_types")}
        hidden = OBJECTIVE.model.apply({"params": params}, **inputs)
        return hidden, OBJECTIVE.model.apply({"params": params}, hidden, method="logits")

    hidden, logits = (np.asarray(x, np.float64) for x in forward(params(), batch))
    head = jax.tree.map(np.float64, {k: params()[k] for k in ("pooler", "pair_head")})
    dense = head["pooler"]["dense"]
    pooled = np.tanh(hidden[:, 0] @ dense["kernel"] + dense["bias"])
    pair_logits = pooled @ head["pair_head"]["kernel"] + head["pair_head"]["bias"]

    def cross_entropy(logits, labels):
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -np.take_along_axis(log_probs, labels[..., None], -1)[..., 0]

    rows = np.arange(8)[:, None]
    logits, labels = logits[rows, batch["masked_positions"]], batch["masked_labels"]
    weights = batch["masked_weights"] * batch["weights"][:, None]
    pairs = batch["pair_weights"] * batch["weights"]
    mlm = (cross_entropy(logits, labels) * weights).sum() / weights.sum()
    pair = (cross_entropy(pair_logits, batch["pair_labels"]) * pairs).sum() / pairs.sum()
    (loss, (weight, metrics)), _ = whole()
    assert float(loss) / float(weight) == pytest.approx(mlm + pair, rel=1e-4)
    means = {name: float(value) / float(weight) for name, (value, weight) in metrics.items()}
    assert means == pytest.approx(
        {
            "loss": mlm,
            "masked_accuracy": ((logits.argmax(-1) == labels) * weights).sum() / weights.sum(),
            "pair_loss": pair,
            "pair_accuracy": ((pair_logits.argmax(-1) == batch["pair_labels"]) * pairs).sum()
            / pairs.sum(),
        },
        rel=1e-4,
    )


def test_parts_of_a_batch_sum_up_to_it():
    (loss, (weight, _)), gradient = whole()
    parts = [
        jax.device_get(
            tiny.value_and_gradient(
                OBJECTIVE, params(), {k: v[rows] for k, v in corrupted().items()}
            )
        )
        for rows in ([0, 2, 4, 6], [1, 3, 5, 7])
    ]
    total = jax.tree.map(lambda a, b: a + b, *parts)
    assert float(total[0][0]) == pytest.approx(float(loss), rel=1e-5)
    assert float(total[0][1][0]) == pytest.approx(float(weight))
    for path, want in trees.flatten(gradient).items():
        got = trees.flatten(total[1])[path]
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max() + 1e-5)


def test_masks_are_those_of_a_masked_language_model():
    same = dataclasses.replace(tiny.mlm(), mask_rate=OBJECTIVE.mask_rate)
    same = jax.device_get(jax.jit(same.corrupt)(tiny.pair_batch(), jax.random.key(5)))
    for name, value in same.items():
        np.testing.assert_array_equal(corrupted()[name], value, err_msg=name)
    assert corrupted().keys() == same.keys() | {"pair_scale"}


def test_held_out_scores_do_not_depend_on_the_batch():
    def sums(predict, rows):
        found = predict(params(), {k: v[rows] for k, v in tiny.pair_batch().items()})
        return {k: np.array(pair, np.float64) for k, pair in found.items()}

    predict = jax.jit(OBJECTIVE.predict)
    whole, parts = sums(predict, range(8)), [sums(predict, x) for x in ([6, 1, 3, 0], [2, 7, 5, 4])]
    for name, pair in whole.items():
        np.testing.assert_allclose(parts[0][name] + parts[1][name], pair, rtol=1e-4)
    assert whole.keys() | {"perplexity"} == set(OBJECTIVE.scores)
    assert (
        whole["pair_accuracy"][1]
        == (tiny.pair_batch()["pair_weights"] * tiny.pair_batch()["weights"]).sum()
    )


def test_a_classifier_starts_from_the_pooler():
    model = Classifier(Transformer(OPTIONS), 3, "pooler", 0.0)
    theirs = nn.unbox(jax.eval_shape(model.init, KEY, model.example()))["params"]
    ours = {k: v.shape for k, v in trees.flatten(params()).items()}
    shared = {k: v.shape for k, v in trees.flatten(theirs).items() if not k.startswith("class")}
    assert "pooler/dense/kernel" in shared
    assert {k: ours[k] for k in shared} == shared
    assert ours.keys() - shared.keys() == {
        *(k for k in ours if k.startswith("lm_head/")), "pair_head/kernel", "pair_head/bias"
    }  # fmt: skip


def test_families_without_token_types_or_pooler_learn_pairs():
    for changes in ({"type_vocab_size": 0}, {"pooler": "none"}):
        model = pair_model("transformer", tiny.transformer(**changes))
        made = dataclasses.replace(OBJECTIVE, model=model)
        found = nn.unbox(jax.eval_shape(made.init, KEY))["params"]
        batch = jax.eval_shape(made.corrupt, tiny.pair_batch(), KEY)
        loss, weight, _ = jax.eval_shape(made.loss, found, batch, KEY)
        assert loss.shape == weight.shape == () and loss.dtype == jnp.float32


def test_both_questions_are_learned():
    found = tiny.overfit(OBJECTIVE, params(), corrupted(), 100)
    assert found["pair_loss"] < 0.1 and found["pair_accuracy"] == 1.0  # .693 by chance
    assert found["loss"] < 1.0
