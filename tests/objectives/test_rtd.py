"""Replaced-token detection: what is replaced, what the loss counts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.models.heads import Discriminator
from pretrain.models.transformer import Transformer
from tests import tiny

ROWS = tiny.lm_batch(16, 24)
BATCH = jax.tree.map(jnp.asarray, ROWS)
OBJECTIVE = tiny.rtd()


@pytest.fixture(scope="module")
def params():
    return jax.jit(OBJECTIVE.init)(jax.random.key(0))["params"]


def corrupted(seed: int = 0) -> dict[str, np.ndarray]:
    return jax.device_get(OBJECTIVE.corrupt(BATCH, jax.random.key(seed)))


def test_only_ordinary_pieces_are_replaced_by_ordinary_pieces():
    batch = corrupted()
    np.testing.assert_array_equal(batch["originals"], ROWS["tokens"])
    changed = batch["tokens"] != ROWS["tokens"]
    assert (batch["tokens"][changed] >= 5).all() and (ROWS["tokens"][changed] >= 5).all()
    real = (ROWS["tokens"] >= 5).sum(1)
    drawn = np.round(0.15 * real)
    assert (changed.sum(1) <= drawn).all()
    # One draw in 59 is the original piece again.
    assert changed.sum() == pytest.approx(drawn.sum(), rel=0.15)
    assert not np.array_equal(batch["tokens"], corrupted(1)["tokens"])


def test_loss_is_the_binary_cross_entropy_of_every_real_position(params):
    batch = corrupted()
    metrics = OBJECTIVE.metrics(params, batch)
    logits = np.asarray(
        OBJECTIVE.model.apply(
            {"params": params},
            batch["tokens"],
            segment_ids=batch["segment_ids"],
            positions=batch["positions"],
        ),
        np.float64,
    )
    real = ROWS["segment_ids"] > 0
    changed = batch["tokens"] != ROWS["tokens"]
    probability = 1 / (1 + np.exp(-logits))
    losses = -np.log(np.where(changed, probability, 1 - probability))
    loss, weight = map(float, metrics["loss"])
    assert weight == real.sum()
    assert loss == pytest.approx(losses[real].sum(), rel=1e-5)
    hits = float(metrics["accuracy"][0])
    assert hits == ((logits > 0) == changed)[real].sum()
    detected, replaced = map(float, metrics["detected"])
    assert replaced == changed.sum() and detected == (logits > 0)[changed].sum()


def test_held_out_replacements_are_fixed(params):
    predict = jax.jit(OBJECTIVE.predict)
    first, second = predict(params, BATCH), predict(params, BATCH)
    assert first["loss"] == second["loss"]
    rows = [
        predict(params, {name: column[i : i + 1] for name, column in BATCH.items()})
        for i in range(16)
    ]
    total = sum(float(row["loss"][0]) for row in rows)
    assert total == pytest.approx(float(first["loss"][0]), rel=1e-5), "whatever the batch"


def test_held_out_rows_have_replacements_and_no_masks():
    class Seen(type(OBJECTIVE)):
        def metrics(self, _, batch):
            return batch

    made = Seen(**vars(OBJECTIVE)).predict({}, BATCH)
    assert (made["tokens"] != made["originals"]).any()
    assert not (made["tokens"] == OBJECTIVE.mask_id).any()


def test_discriminator_counts_its_head():
    config = tiny.transformer()
    head = 24 * 2 * (16 * 16 + 16)
    assert (
        Discriminator(Transformer(config)).forward_flops(24)
        == Transformer(config).forward_flops(24) + head
    )


def test_replaced_pieces_are_found(params):
    found = tiny.overfit(OBJECTIVE, nn.unbox(params), corrupted(), 150)
    assert found["detected"] > 0.95 and found["loss"] < 0.1
