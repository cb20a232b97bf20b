"""Each optimizer against an independent formula, what all share, and layers that are stacked."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pretrain import directions, optim, schema, state, trees
from pretrain.directions import Leaves
from pretrain.errors import UserError
from pretrain.models.families import FAMILIES, language_model
from tests import tiny

LR = 0.01
PARAMS = {
    "kernel": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "bias": np.ones(3, np.float32),
}


def create(name, **options):
    return optim.create(name, **schema.OPTIMIZERS[name] | options)


def gradients(step, params=PARAMS):
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32) * 3, params)


def run(optimizer, params=PARAMS, names=None, steps=4, gradients=gradients):
    """Parameters after some updates, compiled."""
    names = names or {}
    opt_state = optimizer.init(params, names)

    @jax.jit
    def step(grads, opt_state, params):
        now = dict(names=names, lr=jnp.float32(LR), value=None, value_fn=None)
        return optimizer.update(grads, opt_state, params, **now)[:2]

    params = jax.tree.map(jnp.asarray, params)
    for i in range(steps):
        params, opt_state = step(gradients(i, params), opt_state, params)
    return jax.device_get(params)


def assert_close(got, want, **tolerance):
    got, want = trees.flatten(got), trees.flatten(want)
    assert got.keys() == want.keys()
    for path, x in got.items():
        np.testing.assert_allclose(x, want[path], err_msg=path, **tolerance or {"rtol": 1e-5})


# The formulas of the papers, in float64: f(gradient, parameter, memory, t from 1) -> direction.


def adam(g, _, memory, t, correct=True, b1=0.9, b2=0.98, eps=1e-6):
    memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
    memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g * g
    m, v = memory["m"], memory["v"]
    if correct:
        m, v = m / (1 - b1**t), v / (1 - b2**t)
    return m / (np.sqrt(v) + eps)


def lion(g, _, memory, __):
    before = memory.get("m", 0)
    memory["m"] = 0.99 * before + 0.01 * g
    return np.sign(0.9 * before + 0.1 * g)


def momentum(g, _, memory, __, nesterov=False):
    memory["m"] = 0.9 * memory.get("m", 0) + g
    return g + 0.9 * memory["m"] if nesterov else memory["m"]


def adafactor(g, p, memory, t, factored=128):
    b2 = 1 - t**-0.8
    if g.ndim > 1 and min(g.shape) >= factored:
        rows, columns = (g * g).mean(1), (g * g).mean(0)
        memory["r"] = b2 * memory.get("r", 0) + (1 - b2) * rows
        memory["c"] = b2 * memory.get("c", 0) + (1 - b2) * columns
        second = np.outer(memory["r"], memory["c"]) / memory["r"].mean()
    else:
        second = memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g * g
    update = g / np.sqrt(second)
    update /= max(1, np.sqrt((update**2).mean()))
    return update * max(1e-3, np.sqrt((p**2).mean()))


def muon(g, _, memory, t):
    memory["m"] = 0.95 * memory.get("m", 0) + 0.05 * g
    x = 0.95 * memory["m"] / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
    x = x / np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x * 0.2 * np.sqrt(max(x.shape))


def by_formula(direction, params, decayed, decay=0.1, trust=False, steps=4):
    """Updates of a flat dictionary of arrays, each by itself."""
    params, memories = {k: np.float64(p) for k, p in params.items()}, {k: {} for k in params}
    for t in range(1, steps + 1):
        grads = {k: np.float64(g) for k, g in gradients(t - 1, params).items()}
        for k, p in params.items():
            update = direction(grads[k], p, memories[k], t)
            if decayed(k):
                update = update + decay * p
                if trust:
                    update = update * np.linalg.norm(p) / np.linalg.norm(update)
            params[k] = p - LR * update
    return params


def is_kernel(path):
    return path.endswith("kernel")


@pytest.mark.parametrize(
    "name, options, direction",
    [
        ("adamw", {}, adam),
        ("adamw", {"bias_correction": False}, lambda *x: adam(*x, correct=False)),
        ("lamb", {"b2": 0.98}, adam),
        ("lion", {}, lion),
        ("sgd", {}, momentum),
        ("sgd", {"nesterov": True}, lambda *x: momentum(*x, nesterov=True)),
        ("sgd", {"momentum": 0.0}, lambda g, *_: g),
        ("adafactor", {}, adafactor),
    ],
    ids=lambda value: None if callable(value) else str(value),
)
def test_updates_are_those_of_the_paper(name, options, direction):
    rng = np.random.default_rng(0)
    params = PARAMS | {"large/kernel": rng.normal(size=(130, 140)).astype(np.float32)}
    got = run(create(name, clip=0.0, weight_decay=0.1, **options), trees.nest(params))
    want = by_formula(direction, params, is_kernel, trust=name == "lamb")
    assert_close(got, trees.nest(want), rtol=2e-5, atol=2e-6)


# A trunk of two layers as a scan stacks them, and each layer as a tree of its own.

STACKED = {
    "trunk/layers/attention/query/kernel": (("layers", "embed", "heads", "kv"), (2, 6, 2, 4)),
    "trunk/layers/attention/out/kernel": (("layers", "heads", "kv", "embed"), (2, 2, 4, 6)),
    "trunk/layers/attention/query/bias": (("layers", "heads", "kv"), (2, 2, 4)),
    "trunk/layers/ffn/in/kernel": (("layers", "embed", "mlp"), (2, 6, 10)),
    "trunk/word/embedding": (("vocab", "embed"), (9, 6)),
    "lm_head/transform/kernel": (("embed", "embed_out"), (6, 6)),
}
FLAT = {"query/kernel": (6, 8), "out/kernel": (8, 6), "query/bias": (8,), "in/kernel": (6, 10)}


def stacked_case(seed=0):
    rng = np.random.default_rng(seed)
    names = {path: names for path, (names, _) in STACKED.items()}
    shapes = {path: shape for path, (_, shape) in STACKED.items()}
    return names, {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def layers_apart(arrays):
    """The same numbers with a matrix for each layer: ``1/query/kernel [6, 8]``."""
    apart = {}
    for path, x in arrays.items():
        name = "/".join(path.split("/")[-2:])
        for i in range(2) if "/layers/" in path else ():
            apart[f"{i}/{name}"] = x[i].reshape(FLAT[name])
        if "/layers/" not in path:
            apart[path] = x
    return apart


@pytest.mark.parametrize("name", ["lamb", "adafactor", "muon"])
def test_stacked_layers_are_updated_as_each_by_itself(name, monkeypatch):
    """By the formulas, on matrices of two dimensions; Muon leaves the rest to Adam."""
    monkeypatch.setattr(directions, "FACTORED", 4)  # so small are these matrices
    names, params = stacked_case()

    def apart(step, params):
        arrays = gradients(step, dict(sorted(trees.flatten(params).items())))
        return arrays

    factored = functools.partial(adafactor, factored=directions.FACTORED)
    direction = {"lamb": adam, "adafactor": factored, "muon": muon}[name]
    options = {"clip": 0.0, "weight_decay": 0.1} | ({"b2": 0.98} if name == "lamb" else {})
    nested = trees.nest(params)
    got = run(create(name, **options), nested, names, 3, lambda i, p: trees.nest(apart(i, p)))
    want, memories = {k: np.float64(x) for k, x in layers_apart(params).items()}, {}
    for t in range(1, 4):
        grads = layers_apart(apart(t - 1, params))
        for path, p in want.items():
            g = np.float64(grads[path])
            inside = path[0] in "01" and path.endswith("kernel")
            rule = direction if name != "muon" or inside else adam
            update = rule(g, p, memories.setdefault(path, {}), t)
            if path.endswith(("kernel", "embedding")):
                update = update + 0.1 * p
                if name == "lamb":
                    update = update * np.linalg.norm(p) / np.linalg.norm(update)
            want[path] = p - LR * update
    assert_close(layers_apart(trees.flatten(got)), want, rtol=1e-3, atol=3e-5)


def test_muons_matrices_are_nearly_orthogonal():
    names, params = stacked_case()
    zeros = trees.nest(jax.tree.map(np.zeros_like, params))
    got = layers_apart(trees.flatten(run(create("muon", rms=1.0), zeros, names, 1)))
    for path in (f"{i}/{name}" for i in range(2) for name in FLAT if name != "query/bias"):
        values = np.linalg.svd(got[path] / LR, compute_uv=False) / np.sqrt(max(got[path].shape))
        assert values.min() > 0.3 and values.max() < 1.3


@pytest.mark.parametrize(
    "family, changes",
    [
        *((name, {}) for name, kind in FAMILIES.items() if kind.objectives),
        ("transformer", {"first_norm": False, "norm_position": "pre"}),  # layer 0 by itself
    ],
    ids=str,
)
def test_muon_takes_every_matrix_of_a_layer_and_nothing_else(family, changes):
    """The leaves that it orthogonalises have as many entries as matrices of the layers."""
    section = schema.MODELS[family] | {"vocab_size": 64} | changes
    kind = FAMILIES[family].options
    options = kind(**{f.name: section[f.name] for f in dataclasses.fields(kind)})
    model = language_model(family, options)
    inputs = {"decoder_tokens": jnp.zeros((1, 4), jnp.int32)} if family == "encoder_decoder" else {}
    initialise = lambda key: model.init(key, jnp.zeros((1, 4), jnp.int32), **inputs)  # noqa: E731
    names = trees.dimension_names(jax.eval_shape(initialise, jax.random.key(0))["params"])
    leaves = Leaves(names)
    matrices = {path for path in names if leaves.is_layer_matrix(path)}
    inside = {p for p in names if "/layers/" in p or "/first_layer/" in p}
    assert any("/first_layer/" in p for p in inside) == bool(changes)
    assert matrices == {p for p in inside if p.endswith("/kernel")}
    for path in matrices:
        rows, columns = leaves.groups(path)
        width, own = ("heads", "kv"), names[path][leaves.is_stacked(path) :]
        assert [len(rows), len(columns)] == [1 + (own[:2] == width), 1 + (own[-2:] == width)]


# What all optimizers share.


@pytest.mark.parametrize(
    "name, options",
    [
        ("adamw", {}),
        ("adamw", {"bias_correction": False}),
        *((name, {}) for name in ("lamb", "lion", "muon", "sgd")),
    ],
    ids=str,
)
def test_first_moments_in_bfloat16_take_half_and_change_little(name, options):
    names, params = stacked_case()
    params = trees.nest(params)
    wide, narrow = (create(name, mu_dtype=dtype, **options) for dtype in optim.MOMENTS)
    kept = jax.tree_util.tree_leaves_with_path(narrow.init(params, names))
    moments = [{str(part)[1:] for part in path} & {"mu", "trace"} for path, _ in kept]
    kinds = {(bool(first), x.dtype.name) for first, (_, x) in zip(moments, kept, strict=True)}
    assert (True, "bfloat16") in kinds and (True, "float32") not in kinds
    assert (False, "bfloat16") not in kinds
    want, got = (trees.flatten(run(x, params, names)) for x in (wide, narrow))
    start = trees.flatten(params)
    for path, x in want.items():
        moved = np.abs(x - start[path]).max()
        np.testing.assert_allclose(got[path], x, atol=0.02 * moved, rtol=0, err_msg=path)
    if name != "lion":  # of which signs alone remain
        assert any((got[path] != x).any() for path, x in want.items())


def test_clipping_is_of_the_norm_of_all_gradients():
    got = run(create("sgd", clip=0.5, momentum=0.0), steps=1)
    grads = gradients(0)
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    assert_close(got, {k: PARAMS[k] - LR * g * 0.5 / norm for k, g in grads.items()})


def no_gradient(_, params):
    return jax.tree.map(jnp.zeros_like, params)


def decayed(**options):
    """The paths of a BERT that an update without gradients makes smaller, by how much."""
    boxed = jax.eval_shape(tiny.mlm().init, jax.random.key(0))["params"]
    names = trees.dimension_names(boxed)
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), nn.unbox(boxed))
    optimizer = create("sgd", weight_decay=1.0, **options)
    got = trees.flatten(run(optimizer, params, names, 1, no_gradient))
    return {k: (1 - x.reshape(len(x), -1)[:, 0]) / LR for k, x in got.items() if (x != 1).any()}


def test_only_kernels_and_embeddings_decay():
    """Also where layers are stacked for the scan and a bias has two dimensions."""
    matrices = ["attention/query", "attention/key", "attention/value", "attention/out"]
    matrices += ["ffn/in", "ffn/out"]
    assert decayed().keys() == {
        *(f"trunk/layers/{name}/kernel" for name in matrices),
        *(f"trunk/{name}/embedding" for name in ("word", "position", "type")),
        "lm_head/transform/kernel",
    }
    assert decayed(decayed=".*/scale").keys() == {
        *(f"trunk/{name}/scale" for name in ("embedding_norm", "layers/ffn_norm")),
        *("trunk/layers/attention_norm/scale", "lm_head/norm/scale"),
    }


def test_learning_rates_fall_by_layer():
    found = decayed(layer_decay=0.8)
    for path, rates in found.items():
        want = 0.8**3 if path.endswith("embedding") else 1.0
        want = np.array([0.8**2, 0.8]) if "/layers/" in path else want
        np.testing.assert_allclose(rates, np.broadcast_to(want, rates.shape), rtol=1e-4)
    assert {path.split("/")[0] for path in found} == {"trunk", "lm_head"}


def test_layers_of_other_trunks():
    """A first layer by itself, a norm behind the layers, an encoder below its decoder."""
    stacked = {
        "trunk/layers/x": (2, 3),
        "trunk/first_layer/x": (3,),
        "trunk/final_norm/scale": (3,),
    }
    stacked |= {"trunk/word/embedding": (5, 3), "head/kernel": (3, 2)}
    names = {"trunk/layers/x": ("layers", "embed")}
    got = optim.layer_scales(stacked, names, 0.5)
    assert got["trunk/layers/x"].tolist() == [[0.25], [0.5]]
    assert [got["trunk/first_layer/x"], got["trunk/final_norm/scale"]] == [0.125, 0.5]
    assert [got["trunk/word/embedding"], got["head/kernel"]] == [0.0625, 1.0]
    both = {f"trunk/{kind}/layers/x": (2, 3) for kind in ("encoder", "decoder")}
    names = dict.fromkeys(both, ("layers", "embed"))
    both |= {f"trunk/{kind}/relative/embedding": (4, 2) for kind in ("encoder", "decoder")}
    both |= {"trunk/word/embedding": (5, 3), "trunk/encoder/final_norm/scale": (3,)}
    got = optim.layer_scales(both, names, 0.5)
    assert got["trunk/decoder/layers/x"].tolist() == [[0.25], [0.5]]
    assert got["trunk/encoder/layers/x"].tolist() == [[0.0625], [0.125]]
    assert got["trunk/encoder/final_norm/scale"] == got["trunk/decoder/relative/embedding"] == 0.125
    assert got["trunk/word/embedding"] == got["trunk/encoder/relative/embedding"] == 0.03125
    with pytest.raises(UserError, match=r"layer_decay: found 0\.5 with a model without layers"):
        optim.layer_scales({"kernel": (2,)}, {}, 0.5)


def test_a_moving_average_has_its_closed_form():
    params = [np.float32([i, 2 * i]) for i in range(6)]
    mean = want = jnp.asarray(params[0])
    for n in range(1, 6):
        mean = optim.average(mean, params[n], 0.3, jnp.int32(n))
        decay = min(0.3, (1 + n) / (10 + n))
        want = decay * want + (1 - decay) * params[n]
    np.testing.assert_allclose(mean, want, rtol=1e-6)
    third = jnp.float32(1) / 3
    assert optim.average(third, third, 0.7, jnp.int32(9)) == third, "what stays, stays exactly"


def test_frozen_parameters_have_no_state_and_do_not_change():
    objective, optimizer = tiny.classification(), tiny.adamw(freeze="trunk/.*", ema=0.9)
    batch = jax.tree.map(jnp.asarray, tiny.task_batch())
    before = nn.unbox(state.init(objective, optimizer, jax.random.key(0)))
    moments = trees.flatten(optax.tree.get(before.opt_state, "mu"))
    assert moments.keys() == {"classification_head/bias", "classification_head/kernel"}
    step = jax.jit(lambda now: state.train_step(
        objective, optimizer, 1, now, batch, jax.random.key(1), jnp.float32(0), jnp.float32(0.1), {}
    ))  # fmt: skip
    after, metrics = step(before)
    for part in ("params", "mean"):
        old, new = getattr(before, part), getattr(after, part)
        jax.tree.map(np.testing.assert_array_equal, old["trunk"], new["trunk"])
        kernels = (tree["classification_head"]["kernel"] for tree in (old, new))
        assert not np.allclose(*kernels, atol=1e-3)
    whole = trees.flatten(jax.grad(
        lambda p: objective.loss(p, batch, jax.random.key(0))[0]
    )(before.params))  # fmt: skip
    head = sum((x**2).sum() for path, x in whole.items() if path.startswith("class"))
    assert float(metrics["grad_norm"][0]) == pytest.approx(
        float(jnp.sqrt(head) / batch["weights"].sum()), rel=1e-5
    )


@pytest.mark.parametrize(
    "key, pattern, said",
    [
        ("freeze", "trunk/wrod/.*", "matches no parameter; expected a regular expression for whol"),
        ("freeze", ".*", "matches every parameter; expected to leave some to train"),
        ("freeze", "trunk/(", r"missing \), unterminated subpattern"),
        ("decayed", "kernle", "matches no parameter"),
    ],
)
def test_a_pattern_must_make_sense(key, pattern, said):
    optimizer = tiny.adamw(**{key: pattern})
    with pytest.raises(UserError, match=rf"^config\.optimizer\.{key}: .*{said}") as caught:
        jax.eval_shape(lambda k: state.init(tiny.classification(), optimizer, k), jax.random.key(0))
    assert "\n" not in str(caught.value)


def test_training_biases_alone_needs_no_other_decay_pattern():
    optimizer = tiny.adamw(freeze=".*/(kernel|embedding|scale)")
    jax.eval_shape(lambda k: state.init(tiny.classification(), optimizer, k), jax.random.key(0))


def test_muon_needs_layers():
    with pytest.raises(UserError, match=r"optimizer\.name: found 'muon' with a model that has no"):
        create("muon").init(PARAMS, {})


def test_lbfgs_stops_where_the_gradient_vanishes():
    """The identity from then on, so that a resumed run stays at the same place."""
    lbfgs = optim.create("lbfgs", memory=5, tolerance=1e-3)
    target = jnp.array([1.0, -2.0, 3.0])

    def loss(params):
        return jnp.square(params["kernel"] - target).sum() * jnp.float32(2)

    params = {"kernel": jnp.zeros(3)}
    opt_state = lbfgs.init(params, {})

    @jax.jit
    def step(params, opt_state):
        value, grads = jax.value_and_grad(loss)(params)
        now = dict(names={}, lr=0.0, value=value, value_fn=loss)
        return lbfgs.update(grads, opt_state, params, **now)

    for _ in range(20):
        before = params
        params, opt_state, scalars = step(params, opt_state)
        if scalars["converged"]:
            break
    np.testing.assert_allclose(params["kernel"], target, atol=1e-3)
    np.testing.assert_array_equal(params["kernel"], before["kernel"])
    assert float(scalars["gradient_max"]) <= 1e-3


def test_optimizers_are_equal_when_their_fields_are():
    """What the cache of compiled steps rests on: a learning rate is none of them."""
    assert tiny.adamw() == tiny.adamw(lr=3.0) and hash(tiny.adamw()) == hash(tiny.adamw(lr=3.0))
    assert dataclasses.replace(tiny.adamw(), clip=0.0) != tiny.adamw()
    assert tiny.adamw(b1=0.5) != tiny.adamw()
