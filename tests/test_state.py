"""One update is the same however its rows are cut into micro-batches or laid over devices."""

import dataclasses
import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pretrain import optim, schema, sharding, state, trees
from pretrain.models.linear import HashedLinear
from pretrain.objectives.labelled import Classification
from tests import tiny

PLAIN = dict(bias=False, norm="rms", norm_position="pre")
NOISE = dict(dropout=0.1, attention_dropout=0.1)
GENERATED = dict(generator=tiny.lm(num_layers=1, **NOISE), mask_prob=0.85, random_prob=0.0)
CASES = {
    "mlm": (tiny.mlm(**NOISE), tiny.lm_batch()),
    # Without biases: a key's has no gradient but noise, and Lion's sign would make steps of it.
    "causal": (tiny.causal(chunk_size=7, **PLAIN), tiny.lm_batch()),
    "rtd": (dataclasses.replace(tiny.rtd(**NOISE), **GENERATED), tiny.lm_batch()),
    "pairs": (tiny.pairs(**NOISE), tiny.pair_batch()),
    "classify": (tiny.classification(remat="dots_saveable", **NOISE), tiny.task_batch()),
}
OPTIONS = {  # of every optimizer but L-BFGS
    "adamw": {},
    "lamb": {"bias_correction": False},
    "lion": {},
    "adafactor": {},
    "muon": {"layer_decay": 0.8},
    "sgd": {"nesterov": True},
}


@dataclasses.dataclass(frozen=True)
class Together:
    """All optimizers in one compiled step, on the gradients that AdamW meets."""

    freeze = ""
    ema = 0.0
    offload = False

    @property
    def each(self):
        return {k: optim.create(k, **schema.OPTIMIZERS[k] | v) for k, v in OPTIONS.items()}

    def init(self, params, names):
        return {k: (params, optimizer.init(params, names)) for k, optimizer in self.each.items()}

    def update(self, grads, opt_state, params, **now):
        new = {
            name: optimizer.update(grads, opt_state[name][1], opt_state[name][0], **now)
            for name, optimizer in self.each.items()
        }
        params, _, scalars = new["adamw"]
        return params, {name: result[:2] for name, result in new.items()}, scalars


def test_no_optimizer_is_left_out():
    assert OPTIONS.keys() == schema.OPTIMIZERS.keys() - {"lbfgs"}


ADAMW = tiny.adamw(clip=1.0)


def compiled(objective, batch, mesh, accumulate=1, seed=1, optimizer=ADAMW):
    """A function that makes one update of a state."""
    shapes = state.shapes(batch)
    step = state.compile_train_step(objective, optimizer, mesh, accumulate, shapes)
    layout = jax.tree.map(lambda x: x.sharding, state.abstract(objective, optimizer, mesh))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    key, *now = jax.device_put((jax.random.key(seed), *np.float32([0.3, 1e-3])), replicated)
    rows = sharding.to_global(batch, mesh)
    return lambda before: step.run(jax.device_put(before, layout), rows, key, *now)


def three_steps(objective, *layout, **options):
    """Parameters and last metrics after three updates from the same initial state.

    Of `Together`: the parameters that each optimizer made, by its name.
    """
    optimizer = options.get("optimizer", ADAMW)
    update, train_state = (
        compiled(objective, *layout, **options),
        initial_state(objective, optimizer),
    )
    for _ in range(3):
        train_state, metrics = update(train_state)
    metrics = {k: float(v) / float(w) for k, (v, w) in metrics.items()}
    params = train_state.params
    if optimizer == Together():
        params = {name: params for name, (params, _) in train_state.opt_state.items()}
    return jax.device_get(params), metrics


@functools.cache
def initial_state(objective, optimizer=ADAMW):
    return jax.device_get(state.sharded_init(objective, optimizer, tiny.mesh(), jax.random.key(0)))


@functools.cache
def on_one_device(name):
    if name == "causal":
        params, metrics = by_each_optimizer()
        return params["adamw"], metrics
    return three_steps(*CASES[name], tiny.mesh())


@functools.cache
def by_each_optimizer():
    return three_steps(*CASES["causal"], tiny.mesh(), optimizer=Together())


def assert_close(got, want, atol=2e-6):
    got, want = trees.flatten(got), trees.flatten(want)
    assert got.keys() == want.keys()
    for path, x in got.items():
        np.testing.assert_allclose(x, want[path], atol=atol, rtol=0, err_msg=path)


@pytest.mark.parametrize(
    "name, sizes, accumulate",
    [
        ("mlm", {"data": 2, "fsdp": 2, "tensor": 2}, 2),
        ("causal", {"fsdp": 2, "tensor": 2, "sequence": 2}, 4),
        ("rtd", {"data": 1}, 2),
        ("pairs", {"data": 1}, 4),
    ],
    ids=str,
)
def test_update_does_not_depend_on_layout(name, sizes, accumulate):
    """Masks, samples and dropout are those of the whole batch."""
    params, metrics = three_steps(*CASES[name], tiny.mesh(**sizes), accumulate)
    expected, expected_metrics = on_one_device(name)
    assert_close(params, expected)
    assert metrics == pytest.approx(expected_metrics, rel=1e-4)


def test_a_state_on_the_host_gives_the_same_updates():
    offload = tiny.adamw(offload=True)
    mesh = tiny.mesh(fsdp=2)
    abstract = state.abstract(CASES["causal"][0], offload, mesh).opt_state
    kinds = {(x.ndim > 0, x.sharding.memory_kind) for x in jax.tree.leaves(abstract)}
    assert kinds == {(True, "pinned_host"), (False, "device")}
    params, _ = three_steps(*CASES["causal"], mesh, optimizer=offload)
    assert_close(params, on_one_device("causal")[0])


def test_gradient_is_that_of_the_mean_over_weights():
    """Rows that weigh nothing change nothing, in micro-batches on eight devices."""
    objective, batch = CASES["classify"]
    ghosts = {k: np.concatenate([v, v[::-1]]) for k, v in batch.items()}
    ghosts["weights"][len(batch["weights"]) :] = 0
    got, _ = three_steps(objective, ghosts, tiny.mesh(data=2, fsdp=2, tensor=2), 2)
    assert_close(got, on_one_device("classify")[0])


def test_packed_and_padded_documents_give_the_same_update():
    """By every optimizer: of two documents a row, whole batches on one device, or of each in a row
    of its own with padding behind, in micro-batches on eight devices.
    """
    objective, packed = CASES["causal"]
    padded = {name: np.zeros((16, 24), np.int32) for name in packed}
    for row in range(16):
        document = packed["segment_ids"][row // 2] == row % 2 + 1
        for name in ("tokens", "positions"):
            padded[name][row, : document.sum()] = packed[name][row // 2, document]
        padded["segment_ids"][row, : document.sum()] = 1
    got, got_metrics = three_steps(objective, padded, tiny.mesh(data=8), 2, optimizer=Together())
    want, metrics = by_each_optimizer()
    assert_close(got, want)
    assert got_metrics == pytest.approx(metrics, rel=1e-4)


def test_chunks_of_logits_stay_with_their_rows():
    """Replicas gather nothing as large as a device's hidden states: chunks do not cut the batch."""
    batch = tiny.lm_batch(32, 64)
    step = state.compile_train_step(
        tiny.causal(chunk_size=8), tiny.adamw(), tiny.mesh(data=8), 1, state.shapes(batch)
    )
    arrays = re.findall(r"\w+\[([\d,]+)\]\S* all-gather", step.program.as_text())
    gathered = [math.prod(map(int, shape.split(","))) for shape in arrays]
    assert max(gathered, default=0) < 32 // 8 * 64 * 16


def test_parameters_are_sharded_as_declared_and_start_the_same():
    objective, optimizer = CASES["mlm"][0], tiny.adamw(clip=1.0)
    mesh = tiny.mesh(fsdp=4, tensor=2)
    train_state = state.sharded_init(objective, optimizer, mesh, jax.random.key(0))
    kernel = train_state.params["trunk"]["layers"]["ffn"]["in"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    assert kernel.addressable_shards[0].data.shape == (2, 4, 16)
    moment = optax.tree.get(train_state.opt_state, "mu")["trunk"]["layers"]["ffn"]["in"]["kernel"]
    assert moment.sharding == kernel.sharding
    jax.tree.map(np.testing.assert_array_equal, train_state, initial_state(objective))


def test_dropout_and_masks_repeat_with_the_seed():
    again, _ = three_steps(*CASES["mlm"], tiny.mesh())
    jax.tree.map(np.testing.assert_array_equal, again, on_one_device("mlm")[0])
    other, _ = three_steps(*CASES["mlm"], tiny.mesh(), seed=2)
    word = [tree["trunk"]["layers"]["ffn"]["in"]["kernel"] for tree in (again, other)]
    assert not np.allclose(*word, atol=1e-4)


def test_masks_and_dropout_change_with_the_step():
    """The same parameters, three steps numbered 0, 1 and 0."""
    update, start = compiled(*CASES["mlm"], tiny.mesh()), initial_state(CASES["mlm"][0])
    losses = [float(update(start.replace(step=np.int32(step)))[1]["loss"][0]) for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def gradient(objective):
    batch = jax.tree.map(jnp.asarray, CASES["mlm"][1])
    batch = objective.corrupt(batch, jax.random.key(0))
    loss = jax.grad(lambda params: objective.loss(params, batch, jax.random.key(1))[0])
    return jax.jit(loss)(initial_state(CASES["mlm"][0]).params)


def test_remat_and_unrolled_layers_change_no_gradient():
    options = {"remat": "dots_saveable", "unroll": 2}
    got = gradient(tiny.replace_model(CASES["mlm"][0], **options))
    want = gradient(CASES["mlm"][0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), got, want)


def test_counts_are_those_of_the_published_shape():
    """BERT's, of 2 layers of width 16, feed-forward 32 and 64 pieces, by hand."""
    boxed = jax.eval_shape(tiny.mlm().init, jax.random.key(0))
    counts = state.count_params(nn.unbox(boxed)["params"])
    embedding = (64 + 512 + 2) * 16  # pieces, positions, types
    norm, attention = 2 * 16, 4 * (16 * 16 + 16)
    feed_forward = (16 * 32 + 32) + (32 * 16 + 16)
    head = (16 * 16 + 16) + norm + 64  # transform, norm, bias of the pieces
    other = norm + 2 * (attention + feed_forward + 2 * norm) + head
    assert counts == {"total": embedding + other, "embedding": embedding, "other": other}


def linear_case():
    """An objective without layers, and 40 rows for it."""
    rng = np.random.default_rng(0)
    features = np.tile(np.arange(6, dtype=np.int32), (40, 1))
    batch = {"features": features, "values": rng.normal(size=(40, 6)).astype(np.float32)}
    batch["labels"] = rng.integers(0, 3, 40).astype(np.int32)
    batch["weights"] = np.ones(40, np.float32)
    return Classification(HashedLinear(6, 3), "softmax", 2.0, 1.0), batch


def test_the_moving_average_is_that_of_the_parameters_after_each_update():
    (objective, batch), averaged = linear_case(), tiny.adamw(ema=0.9)
    update = compiled(objective, batch, tiny.mesh(), optimizer=averaged)
    now = initial_state(objective, averaged)
    want = now.params
    for n in range(1, 4):
        now, _ = update(now)
        decay = (1 + n) / (10 + n)  # still below 0.9
        want = jax.tree.map(lambda m, p, d=decay: d * m + (1 - d) * p, want, now.params)
        now = jax.device_get(now)  # a step donates it
    assert_close(now.mean, want, atol=1e-7)
    moved = np.abs(now.params["kernel"] - now.mean["kernel"])
    assert moved.max() > 1e-4, "the average lags behind"


def test_lbfgs_reaches_the_minimum_of_a_penalised_loss():
    """At the minimum the gradient of scikit-learn's objective vanishes."""
    objective, batch = linear_case()
    values, labels = batch["values"], batch["labels"]
    optimizer = optim.create("lbfgs", memory=10, tolerance=1e-6)
    params = batch_minimum(objective, optimizer, batch)

    def sklearn_objective(kernel, bias):
        logits = values @ kernel + bias[None, :]
        loss = -jax.nn.log_softmax(logits)[jnp.arange(40), labels].sum()
        return 2.0 * loss + 0.5 * jnp.square(kernel).sum()

    gradient = jax.grad(sklearn_objective, (0, 1))(params["kernel"], params["bias"])
    assert max(float(jnp.abs(g).max()) for g in gradient) < 2e-3


def batch_minimum(objective, optimizer, batch):
    mesh = tiny.mesh()
    shapes = state.shapes(batch)
    step = state.compile_train_step(objective, optimizer, mesh, 1, shapes)
    train_state = state.sharded_init(objective, optimizer, mesh, jax.random.key(0))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    now = jax.device_put((jax.random.key(1), *np.float32([0, 0])), replicated)
    for _ in range(100):
        train_state, metrics = step.run(train_state, sharding.to_global(batch, mesh), *now)
        if metrics["converged"][0]:
            break
    return jax.device_get(train_state.params)


def test_objectives_are_equal_when_their_fields_are():
    """What the cache of compiled steps rests on."""
    assert hash(tiny.mlm()) == hash(tiny.mlm()) and tiny.mlm() == tiny.mlm()
    assert dataclasses.replace(tiny.mlm(), mask_rate=0.3) != tiny.mlm()
