"""One update is the same however its rows are cut into micro-batches or laid over devices."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain import optim, sharding, state
from pretrain.models.linear import HashedLinear
from pretrain.objectives.labelled import Classification
from tests import tiny

CASES = {
    "mlm": (tiny.mlm(), tiny.lm_batch()),
    "causal": (tiny.causal(chunk_size=40), tiny.lm_batch()),
    "classify": (tiny.classification(), tiny.task_batch()),
    "tag": (tiny.tagging(), tiny.tag_batch()),
}


def three_steps(objective, batch, mesh, accumulate=1, optimizer=None):
    """Parameters and last metrics after three updates."""
    optimizer = optimizer or tiny.adamw(clip=1.0)
    shapes = tuple(sorted((k, v.shape, v.dtype) for k, v in batch.items()))
    step = state.compile_train_step(objective, optimizer, mesh, accumulate, shapes)
    train_state = state.sharded_init(objective, optimizer, mesh, jax.random.key(0))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    key, progress = jax.device_put((jax.random.key(1), np.float32(0.3)), replicated)
    for _ in range(3):
        train_state, metrics = step.run(train_state, sharding.to_global(batch, mesh), key, progress)
    metrics = {k: float(v) / float(w) for k, (v, w) in metrics.items()}
    return jax.device_get(train_state.params), metrics


@pytest.fixture(scope="module")
def reference():
    return {name: three_steps(*case, tiny.mesh()) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "sizes, accumulate",
    [
        ({}, 2),
        ({}, 4),
        ({"data": 8}, 1),
        ({"fsdp": 4, "tensor": 2}, 1),
        ({"data": 2, "fsdp": 2}, 2),
    ],
    ids=str,
)
def test_update_does_not_depend_on_layout(reference, name, sizes, accumulate):
    params, metrics = three_steps(*CASES[name], tiny.mesh(**sizes), accumulate)
    expected, expected_metrics = reference[name]
    for got, want in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6, rtol=0)
    assert metrics == pytest.approx(expected_metrics, rel=1e-4)


def test_gradient_is_that_of_the_mean_over_weights():
    """Rows that weigh nothing change nothing: packed or padded, the same update."""
    objective, batch = CASES["classify"]
    ghosts = {k: np.concatenate([v, v[::-1]]) for k, v in batch.items()}
    ghosts["weights"][len(batch["weights"]) :] = 0
    got, _ = three_steps(objective, ghosts, tiny.mesh(), 4)
    want, _ = three_steps(objective, batch, tiny.mesh())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), got, want)


def test_parameters_are_sharded_as_declared():
    mesh = tiny.mesh(fsdp=4, tensor=2)
    train_state = state.sharded_init(tiny.mlm(), tiny.adamw(), mesh, jax.random.key(0))
    kernel = train_state.params["trunk"]["layers"]["ffn"]["in"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    assert kernel.addressable_shards[0].data.shape == (2, 4, 16)
    moment = train_state.opt_state[1].mu["trunk"]["layers"]["ffn"]["in"]["kernel"]
    assert moment.sharding == kernel.sharding


def test_dropout_and_masks_change_with_the_step_and_repeat_with_the_seed():
    objective = tiny.replace_model(tiny.mlm(), dropout=0.5, attention_dropout=0.5)
    a, _ = three_steps(objective, CASES["mlm"][1], tiny.mesh())
    b, _ = three_steps(objective, CASES["mlm"][1], tiny.mesh())
    jax.tree.map(np.testing.assert_array_equal, a, b)
    without, _ = three_steps(*CASES["mlm"], tiny.mesh())
    assert any(
        not np.allclose(x, y, atol=1e-4)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(without), strict=True)
    )


def test_remat_and_unrolled_layers_change_nothing():
    objective, batch = CASES["mlm"]
    want, _ = three_steps(objective, batch, tiny.mesh())
    for options in ({"remat": "full"}, {"unroll": 2}, {"remat": "dots_saveable"}):
        got, _ = three_steps(tiny.replace_model(objective, **options), batch, tiny.mesh())
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), got, want)


def test_counts_equal_the_arrays():
    boxed = state.init(tiny.mlm(), tiny.adamw(), jax.random.key(0))
    params = nn.unbox(boxed).params
    counts = state.count_params(params)
    assert counts["total"] == sum(x.size for x in jax.tree.leaves(params))
    assert counts["embedding"] == (tiny.VOCAB + 512 + 2) * 16
    assert counts["other"] == counts["total"] - counts["embedding"]


def test_lbfgs_reaches_the_minimum_of_a_penalised_loss():
    """At the minimum the gradient of scikit-learn's objective vanishes."""
    rng = np.random.default_rng(0)
    features = np.tile(np.arange(6, dtype=np.int32), (40, 1))
    values = rng.normal(size=(40, 6)).astype(np.float32)
    labels = rng.integers(0, 3, 40).astype(np.int32)
    batch = {"features": features, "values": values, "labels": labels}
    batch["weights"] = np.ones(40, np.float32)
    objective = Classification(HashedLinear(6, 3), "softmax", 2.0, 40)
    optimizer = optim.create("lbfgs", memory=10, tolerance=1e-6)
    params = batch_minimum(objective, optimizer, batch)

    def sklearn_objective(kernel, bias):
        logits = values @ kernel + bias
        loss = -jax.nn.log_softmax(logits)[jnp.arange(40), labels].sum()
        return 2.0 * loss + 0.5 * jnp.square(kernel).sum()

    gradient = jax.grad(sklearn_objective, (0, 1))(params["kernel"], params["bias"])
    assert max(float(jnp.abs(g).max()) for g in gradient) < 2e-3


def batch_minimum(objective, optimizer, batch):
    mesh = tiny.mesh()
    shapes = tuple(sorted((k, v.shape, v.dtype) for k, v in batch.items()))
    step = state.compile_train_step(objective, optimizer, mesh, 1, shapes)
    train_state = state.sharded_init(objective, optimizer, mesh, jax.random.key(0))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    key, progress = jax.device_put((jax.random.key(1), np.float32(0.0)), replicated)
    for _ in range(100):
        train_state, metrics = step.run(train_state, sharding.to_global(batch, mesh), key, progress)
        if metrics["converged"][0]:
            break
    return jax.device_get(train_state.params)


def test_objectives_are_equal_when_their_fields_are():
    """What the cache of compiled steps rests on."""
    assert hash(tiny.mlm()) == hash(tiny.mlm()) and tiny.mlm() == tiny.mlm()
    assert dataclasses.replace(tiny.mlm(), mask_rate=0.3) != tiny.mlm()
