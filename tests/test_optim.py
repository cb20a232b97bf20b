"""Schedules at known points, decay by name, and the updates of optax's AdamW."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pretrain import optim
from pretrain.errors import UserError
from tests import tiny


@pytest.mark.parametrize(
    "schedule, middle, end", [("linear", 0.55, 0.1), ("cosine", 0.55, 0.1), ("constant", 1, 1)]
)
def test_learning_rate_at_known_points(schedule, middle, end):
    """Warm-up to 0.2, then half of the way at 0.6: (1 + end) / 2 for both that fall."""
    adamw = tiny.adamw(lr=2.0, schedule=schedule, warmup=0.2, end=0.1)
    points = {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 0.6: middle, 1.0: end}
    for progress, scale in points.items():
        assert float(adamw.learning_rate(jnp.float32(progress))) == pytest.approx(2 * scale)


def test_cosine_falls_slower_at_first():
    rate = tiny.adamw(lr=1.0, schedule="cosine", warmup=0.0).learning_rate(jnp.float32(0.25))
    assert float(rate) == pytest.approx(0.5 * (1 + np.cos(np.pi / 4)))


def test_without_warmup_the_first_step_has_the_whole_rate():
    assert float(tiny.adamw(lr=2.0, warmup=0.0).learning_rate(jnp.float32(0.0))) == 2.0


def test_only_kernels_and_embeddings_decay():
    """Also where layers are stacked for the scan and a bias has two dimensions."""
    objective = tiny.mlm()
    params = nn.unbox(jax.eval_shape(objective.init, jax.random.key(0)))["params"]
    mask = optim.decay_mask(params)
    decayed = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, value in jax.tree_util.tree_leaves_with_path(mask)
        if value
    }
    assert params["trunk"]["layers"]["ffn"]["in"]["bias"].ndim == 2
    matrices = ["attention/query", "attention/key", "attention/value", "attention/out"]
    matrices += ["ffn/in", "ffn/out"]
    assert decayed == {
        *(f"trunk/layers/{name}/kernel" for name in matrices),
        *(f"trunk/{name}/embedding" for name in ("word", "position", "type")),
        "lm_head/transform/kernel",
    }


PARAMS = {"kernel": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3)}


def gradients(step):
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32) * 3, PARAMS)


def run(optimizer, steps=4):
    params, state = jax.tree.map(jnp.float32, PARAMS), optimizer.init(PARAMS)
    for step in range(steps):
        params, state, scalars = optimizer.update(
            gradients(step), state, params, progress=jnp.float32(0.5), value=None, value_fn=None
        )
    return params, scalars


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_updates_are_those_of_optax(clip):
    options = dict(lr=0.01, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.3)
    params, scalars = run(tiny.adamw(**options, clip=clip, schedule="constant", warmup=0.0))
    reference = optax.adamw(
        0.01, 0.9, 0.95, 1e-8, weight_decay=0.3, mask={"kernel": True, "bias": False}
    )
    if clip:
        reference = optax.chain(optax.clip_by_global_norm(clip), reference)
    want, state = jax.tree.map(jnp.float32, PARAMS), reference.init(PARAMS)
    for step in range(4):
        updates, state = reference.update(gradients(step), state, want)
        want = optax.apply_updates(want, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, want)
    assert float(scalars["lr"]) == pytest.approx(0.01)


def test_lbfgs_stops_where_the_gradient_vanishes():
    """The identity from then on, so that a resumed run stays at the same place."""
    lbfgs = optim.create("lbfgs", memory=5, tolerance=1e-3)
    target = jnp.array([1.0, -2.0, 3.0])

    def loss(params):
        return jnp.square(params["kernel"] - target).sum() * jnp.float32(2)

    params = {"kernel": jnp.zeros(3)}
    state = lbfgs.init(params)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        return lbfgs.update(grads, state, params, progress=0.0, value=value, value_fn=loss)

    for _ in range(20):
        before = params
        params, state, scalars = step(params, state)
        if scalars["converged"]:
            break
    np.testing.assert_allclose(params["kernel"], target, atol=1e-3)
    np.testing.assert_array_equal(params["kernel"], before["kernel"])
    assert float(scalars["gradient_max"]) <= 1e-3


def test_unknown_schedule_is_a_clear_error():
    with pytest.raises(UserError, match=r"optimizer\.schedule: found 'linaer', expected one of"):
        tiny.adamw(schedule="linaer")


def test_optimizers_are_equal_when_their_fields_are():
    """What the cache of compiled steps rests on."""
    assert tiny.adamw() == tiny.adamw() and hash(tiny.adamw()) == hash(tiny.adamw())
    assert dataclasses.replace(tiny.adamw(), lr=1.0) != tiny.adamw()
