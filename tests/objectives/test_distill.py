"""The terms of distillation against formulas in numpy, and what they do to a student."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from pretrain import config as configs
from pretrain import optim, schema, state
from pretrain.models.attention import SCORES
from pretrain.models.transformer import layer_outputs
from pretrain.objectives import distill
from pretrain.objectives.distill import EXTRA, Distilled, Terms
from pretrain.objectives.mlm import MaskedLM
from pretrain.trees import flatten
from tests import tiny
from tests.objectives import test_denoising

OFF = {
    name: value
    for name, value in configs.distillation().items()
    if name not in ("teacher", "transfer", "transfer_text", "top_k", "layers", "relation_layer")
} | {"relation_pairs": (("query", "query"), ("key", "value"))}
NAMES = ("logits", "cosine", "embeddings", "hidden", "mean", "variance", "attention")
NAMES += ("attention_scores", "relations")
KEY = jax.random.key(0)


def terms(**weights):
    return Terms(**(OFF | weights))


def distilled(student, teacher, layers=(0, 1), **weights):
    return Distilled(student, teacher, terms(**weights), layers, 1, chunk_size=7)


def init(objective, seed=0):
    """Parameters without the symmetries of a beginning: norms have biases, heads differ."""
    params = nn.unbox(jax.jit(objective.init)(jax.random.key(seed)))["params"]
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 10), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return structure.unflatten(moved)


@pytest.fixture(scope="module")
def corrupted():
    batch = {name: jnp.asarray(x) for name, x in tiny.lm_batch(rows=4).items()}
    return jax.jit(tiny.mlm().corrupt)(batch, KEY)


@pytest.fixture(scope="module")
def teacher():
    return tiny.mlm(), init(tiny.mlm(), 1)


@functools.partial(jax.jit, static_argnums=0)
def loss(objective, taught, params, batch, progress=0.0):
    bound = objective.bind(taught, jnp.float32(progress))
    return bound.loss(params, batch, KEY)


def test_divergence_is_that_of_scipy():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 3, 5, 11)).astype(np.float32)
    for temperature in (1.0, 2.0):
        p, q = (special.softmax(x / temperature, -1) for x in (theirs, ours))
        want = temperature**2 * stats.entropy(p, q, axis=-1)
        found = distill.divergence(jnp.asarray(theirs), jnp.asarray(ours), temperature)
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)


def test_likeliest_pieces_and_the_rest_are_a_coarser_distribution():
    """All pieces give the whole divergence; two and a rest that of three classes."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 4, 9)).astype(np.float32)
    whole = distill.divergence(jnp.asarray(theirs), jnp.asarray(ours), 2.0)
    for k in (9, 2):
        log_probs, ids = jax.lax.top_k(nn.log_softmax(jnp.asarray(theirs) / 2.0), k)
        found = distill.top_divergence(log_probs, ids, jnp.asarray(ours), 2.0)
        p, q = (special.softmax(x / 2.0, -1) for x in (theirs, ours))
        p, q = (np.take_along_axis(x, np.asarray(ids), -1) for x in (p, q))
        if k < 9:
            p, q = (np.concatenate([x, 1 - x.sum(-1, keepdims=True)], -1) for x in (p, q))
        np.testing.assert_allclose(found, 4.0 * stats.entropy(p, q, axis=-1), atol=1e-5)
        np.testing.assert_array_less(found, whole + 1e-5)


def test_the_rest_of_a_confident_student_is_not_rounded():
    theirs, ours = np.array([6.0, 0.0, 0.0, -1.0]), np.array([16.0, 0.5, 1.0, 0.0])
    log_probs, ids = jax.lax.top_k(nn.log_softmax(jnp.asarray(theirs, jnp.float32)), 1)
    two = lambda x: [special.softmax(x)[0], special.softmax(x)[1:].sum()]  # noqa: E731

    def found(x):
        return distill.top_divergence(log_probs, ids, x, 1.0)

    student = jnp.asarray(ours, jnp.float32)
    np.testing.assert_allclose(found(student), stats.entropy(two(theirs), two(ours)), rtol=1e-4)
    slope = jax.grad(lambda x: found(student.at[0].set(x)))(16.0)  # p(student) - p(teacher)
    np.testing.assert_allclose(slope, two(ours)[0] - two(theirs)[0], rtol=1e-4)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(teacher, corrupted):
    objective, params = teacher
    weights = dict.fromkeys(NAMES, 1.0)
    student = distilled(objective, objective, task=0.0, all_positions=True, **weights)
    total, weight, metrics = loss(student, params, params, corrupted)
    assert abs(total / weight) < 1e-5
    for name in NAMES:
        assert abs(metrics[f"distill/{name}"][0] / weight) < 1e-5, name
    assert "accuracy" not in metrics and "task_loss" not in metrics  # of a head that never learns
    plain = jax.jit(objective.loss)(params, corrupted, KEY)
    with_task = distilled(objective, objective, task=2.0, logits=1.0)
    total, _, metrics = loss(with_task, params, params, corrupted)
    np.testing.assert_allclose(metrics["task_loss"], plain[2]["loss"], rtol=1e-5)
    np.testing.assert_allclose(total, 2.0 * plain[0], rtol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def states_of(objective, params, batch):
    _, told = objective.forward(params, batch, mutable=["intermediates", SCORES])
    return {name: collection["trunk"] for name, collection in told.items()}


def test_terms_follow_their_formulas(teacher, corrupted):
    """Means over real positions, rows weighted by their masked ones; in numpy, row by row."""
    objective, taught = teacher
    params = init(objective)
    weights = dict.fromkeys(NAMES[1:], 1.0)
    student = distilled(objective, objective, layers=(1, 0), **weights)
    _, total, metrics = loss(student, taught, params, corrupted)
    ours, theirs = (states_of(objective, p, corrupted) for p in (params, taught))
    batch = jax.device_get(corrupted)
    rows = batch["masked_weights"].sum(-1)
    assert total == rows.sum()
    want = dict.fromkeys(weights, 0.0)

    def get(states, name):
        collection = SCORES if name == "attention_scores" else "intermediates"
        return np.asarray(layer_outputs(states[collection], name), np.float64)

    hidden, other = get(ours, "hidden"), get(theirs, "hidden")[[1, 0]]
    scores, their_scores = get(ours, "attention_scores"), get(theirs, "attention_scores")
    for row, weight in enumerate(rows):
        real = np.flatnonzero(batch["segment_ids"][row])
        a, b = hidden[:, row, real], other[:, row, real]
        embedded = [
            np.asarray(x["intermediates"]["embedded"][0])[row, real] for x in (ours, theirs)
        ]
        want["embeddings"] += weight * np.square(embedded[0] - embedded[1]).mean()
        last, target = a[-1], get(theirs, "hidden")[-1, row, real]
        norms = np.linalg.norm(last, axis=-1) * np.linalg.norm(target, axis=-1)
        # The last layer's teacher here is by position in the stack, not by the map.
        want["cosine"] += weight * (1 - (last * target).sum(-1) / norms).mean()
        want["hidden"] += weight * np.square(a - b).mean((1, 2)).sum()
        want["mean"] += weight * np.square(a.mean(-1) - b.mean(-1)).mean(1).sum()
        want["variance"] += weight * np.abs(a.var(-1) - b.var(-1)).mean(1).sum()
        segments = batch["segment_ids"][row, real]
        sees = segments[:, None] == segments[None]
        for layer, teacher_layer in enumerate((1, 0)):
            s = scores[layer, row][:, real][..., real]
            t = their_scores[teacher_layer, row][:, real][..., real]
            squares = (np.where(sees, s - t, 0) ** 2).sum(-1) / sees.sum(-1)
            want["attention_scores"] += weight * squares.mean()
            p, q = (special.softmax(np.where(sees, x, -1e30), -1) for x in (t, s))
            want["attention"] += weight * special.rel_entr(p, q).sum(-1).mean()
        for one, two in OFF["relation_pairs"]:
            found = []
            for states in (ours, theirs):
                x, y = (get(states, f"{n}_vectors")[-1, row, real] for n in (one, two))
                product = np.einsum("qhd,khd->hqk", x, y) / np.sqrt(x.shape[-1])
                found.append(special.softmax(np.where(sees, product, -1e30), -1))
            want["relations"] += weight * special.rel_entr(found[1], found[0]).sum(-1).mean()
    for name, value in want.items():
        np.testing.assert_allclose(metrics[f"distill/{name}"][0], value, rtol=2e-3, err_msg=name)
    weighted = metrics["task_loss"][0] + sum(metrics[f"distill/{name}"][0] for name in weights)
    np.testing.assert_allclose(metrics["loss"][0], weighted, rtol=1e-5)


def test_relations_of_any_number_of_heads_and_any_layer_of_the_teacher(teacher, corrupted):
    """Of vectors of 2 heads, 16 wide, cut anew into 4; the teacher's other layer sees less."""
    objective, taught = teacher
    params, local = init(objective), tiny.replace_model(objective, local_window=2, global_every=2)
    student = distilled(objective, local, relations=1.0, relation_heads=4, task=0.0)
    student = dataclasses.replace(student, relation_layer=0)
    ours, theirs = states_of(objective, params, corrupted), states_of(local, taught, corrupted)
    batch = jax.device_get(corrupted)
    want = 0.0
    for row, weight in enumerate(batch["masked_weights"].sum(-1)):
        real = np.flatnonzero(batch["segment_ids"][row])
        segments = batch["segment_ids"][row, real]
        for pair in OFF["relation_pairs"]:
            found = []
            for states, layer in ((ours, -1), (theirs, 0)):
                vectors = [
                    layer_outputs(states["intermediates"], f"{name}_vectors")[layer, row, real]
                    for name in pair
                ]
                a, b = (np.asarray(x, np.float64).reshape(len(real), 4, 4) for x in vectors)
                scores = np.einsum("qhd,khd->hqk", a, b) / 2.0
                sees = segments[:, None] == segments[None]
                found.append(special.softmax(np.where(sees, scores, -1e30), -1))
            want += weight * special.rel_entr(found[1], found[0]).sum(-1).mean()
    np.testing.assert_allclose(loss(student, taught, params, corrupted)[0], want, rtol=1e-4)


def test_outputs_are_compared_where_pieces_are_masked_or_everywhere(teacher, corrupted):
    objective, taught = teacher
    params = init(objective)
    everywhere = [
        objective.model.apply({"params": p}, objective.forward(p, corrupted), method="logits")
        for p in (params, taught)
    ]
    ours, theirs = (special.softmax(np.asarray(x) / 2.0, -1) for x in everywhere)
    values = 4.0 * special.rel_entr(theirs, ours).sum(-1)
    batch = jax.device_get(corrupted)
    masked = np.take_along_axis(values, batch["masked_positions"], 1)
    want = (masked * batch["masked_weights"]).sum()
    options = dict(task=0.0, logits=1.0, temperature=2.0)
    found = loss(distilled(objective, objective, **options), taught, params, corrupted)
    np.testing.assert_allclose(found[0], want, rtol=1e-4)
    real = batch["segment_ids"] > 0
    by_row = (values * real).sum(-1) / real.sum(-1) * batch["masked_weights"].sum(-1)
    student = distilled(objective, objective, all_positions=True, **options)
    np.testing.assert_allclose(loss(student, taught, params, corrupted)[0], by_row.sum(), rtol=1e-4)


def test_no_gradient_reaches_the_teacher_and_sums_do_not_depend_on_the_cut(teacher, corrupted):
    objective, taught = teacher
    student_objective = tiny.mlm(hidden_size=8)
    student = distilled(
        student_objective, objective, hidden=1.0, embeddings=1.0, logits=1.0, projection="layer"
    )
    params = init(student)
    assert params[EXTRA]["projection"]["kernel"].shape == (3, 8, 16)

    def total(params, taught, batch):
        return loss(student, taught, params, batch)[0]

    whole, grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(params, taught, corrupted)
    assert all((g == 0).all() for g in jax.tree.leaves(grads[1]))
    assert (jnp.abs(grads[0][EXTRA]["projection"]["kernel"]).max(axis=(1, 2)) > 0).all()
    halves = [
        total(params, taught, {name: x[part] for name, x in corrupted.items()})
        for part in (slice(0, 2), slice(2, 4))
    ]
    np.testing.assert_allclose(sum(halves), whole, rtol=1e-5)


def test_each_layer_has_its_projection_before_states_are_standardised(teacher, corrupted):
    objective, taught = teacher
    weights = dict(hidden=1.0, embeddings=1.0, cosine=1.0)
    student = distilled(
        tiny.mlm(hidden_size=8), objective, projection="layer", standardise=True, **weights
    )
    params = init(student)
    metrics = loss(student, taught, params, corrupted)[2]
    own = {name: x for name, x in params.items() if name != EXTRA}
    told = (states_of(student.student, own, corrupted), states_of(objective, taught, corrupted))
    hidden, other = (np.asarray(layer_outputs(x["intermediates"]), np.float64) for x in told)
    first, their_first = (np.asarray(x["intermediates"]["embedded"][0]) for x in told)
    matrices = jax.device_get(params[EXTRA]["projection"])

    def project(x, layer):
        return x @ matrices["kernel"][layer] + matrices["bias"][layer]

    def normal(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    batch = jax.device_get(corrupted)
    real = batch["segment_ids"] > 0
    average = batch["masked_weights"].sum(-1)[:, None] * real / real.sum(-1, keepdims=True)
    last = project(hidden[1], 2)
    norms = np.linalg.norm(last, axis=-1) * np.linalg.norm(other[1], axis=-1)
    want = {
        "hidden": sum(
            np.square(normal(project(hidden[n], n + 1)) - normal(other[n])).mean(-1)
            for n in range(2)
        ),
        "embeddings": np.square(project(first, 0) - their_first).mean(-1),
        "cosine": 1 - (last * other[1]).sum(-1) / norms,
    }
    for name, values in want.items():
        found = metrics[f"distill/{name}"][0]
        np.testing.assert_allclose(found, (values * average).sum(), rtol=1e-3, err_msg=name)


def test_the_teacher_has_no_dropout(teacher, corrupted):
    objective, taught = teacher
    params, noisy = init(objective), tiny.mlm(dropout=0.5, attention_dropout=0.5)
    totals = [
        loss(distilled(objective, other, hidden=1.0, logits=1.0), taught, params, corrupted)[0]
        for other in (objective, noisy)
    ]
    np.testing.assert_allclose(*totals, rtol=1e-6)


def test_only_terms_that_compare_heads_ask_for_scores(teacher, corrupted):
    """Kernels of accelerators compute the same without scores in memory."""
    objective = teacher[0]
    params = init(objective)
    for name in NAMES[1:]:
        student = distilled(objective, objective, **{name: 1.0})
        _, told = jax.eval_shape(student.forward, params, corrupted)
        assert (SCORES in told) == (name in ("attention", "attention_scores", "relations")), name


@pytest.mark.parametrize("options", [{"causal": True}, {"local_window": 2, "global_every": 2}])
def test_a_student_that_sees_less_has_finite_terms(options, teacher, corrupted):
    objective, taught = teacher
    student = tiny.replace_model(objective, **options)
    weights = dict.fromkeys(("attention", "attention_scores", "relations"), 1.0)
    total, _, _ = loss(distilled(student, objective, **weights), taught, init(student), corrupted)
    assert jnp.isfinite(total)


@pytest.mark.parametrize("name", ["mlm", "rtd", "causal", "denoising", "classification", "tagging"])
def test_rows_weigh_what_the_loss_does(name):
    objective = test_denoising.objective() if name == "denoising" else getattr(tiny, name)()
    make = {"classification": tiny.task_batch, "tagging": tiny.tag_batch}.get(name, tiny.lm_batch)
    batch = objective.corrupt({k: jnp.asarray(x) for k, x in make(rows=4).items()}, KEY)

    def both(params):
        output = objective.forward(params, batch)
        weight = objective.score(params, output, batch)["loss"][1]
        return weight, objective.row_weights(output, batch)

    total, rows = jax.jit(both)(init(objective))
    np.testing.assert_allclose(rows.sum(), total, rtol=1e-6)
    assert rows.shape == (4,)


def test_a_shared_projection_is_one_matrix_and_no_part_of_the_model(teacher):
    student = distilled(tiny.mlm(hidden_size=8), teacher[0], hidden=1.0, projection="shared")
    params = init(student)
    assert params[EXTRA]["projection"]["kernel"].shape == (1, 8, 16)
    own = distill.model_params(params)
    assert jax.tree.structure(own) == jax.tree.structure(init(tiny.mlm(hidden_size=8)))


@pytest.mark.parametrize("progress, moving", [(0.1, {0}), (0.3, {1}), (0.7, {0, 1})])
def test_progressive_transfer_learns_one_layer_after_the_other(
    progress, moving, teacher, corrupted
):
    """In the first half layer 0, then layer 1 alone; afterwards all, from outputs."""
    objective, taught = teacher
    options = dict(hidden=1.0, logits=0.5, task=0.5, progressive=0.5)
    student = distilled(objective, objective, **options)
    params = init(objective)

    def total(params):
        return loss(student, taught, params, corrupted, progress)[0]

    grads = jax.jit(jax.grad(total))(params)
    largest = np.asarray(jnp.abs(grads["trunk"]["layers"]["ffn"]["in"]["kernel"]).max((1, 2)))
    assert {layer for layer in range(2) if largest[layer] > 0} == moving
    touched = float(jnp.abs(grads["trunk"]["word"]["embedding"]).max()) > 0
    assert touched == (progress != 0.3)
    _, weight, metrics = loss(student, taught, params, corrupted, progress)
    outputs = 0.5 * (metrics["task_loss"][0] + metrics["distill/logits"][0])
    want = outputs if progress > 0.5 else metrics["distill/hidden"][0]
    np.testing.assert_allclose(metrics["loss"][0], want, rtol=1e-5)
    assert weight > 0


@pytest.mark.parametrize("progress, layers", [(0.1, {0}), (0.3, {1}), (0.7, {0, 1})])
def test_progressive_transfer_changes_one_layer_alone(progress, layers, teacher, corrupted):
    """LAMB's trust ratio makes full steps of weight decay and of what momentum is left."""
    objective, taught = teacher
    options = dict(hidden=1.0, logits=0.5, task=0.5, progressive=0.5, projection="layer")
    student = distilled(objective, objective, **options)
    lamb = optim.create("lamb", **schema.OPTIMIZERS["lamb"])
    before = state.init(student, lamb, KEY)
    # As if all had been moved by earlier steps.
    before = nn.unbox(before).replace(params=init(student))
    before = before.replace(opt_state=jax.tree.map(jnp.ones_like, before.opt_state))
    step = jax.jit(functools.partial(state.train_step, student, lamb, 1))
    with jax.numpy_dtype_promotion("standard"):  # optax's
        after, _ = step(before, corrupted, KEY, jnp.float32(progress), jnp.float32(1e-3), taught)
    changed = jax.tree.map(lambda x, y: x != y, before.params, after.params)
    late = len(layers) == 2
    for path, found in flatten(changed).items():
        if path.startswith("trunk/layers"):
            assert {n for n in range(2) if found[n].any()} == layers, path
        elif path.startswith(EXTRA):
            assert {n - 1 for n in range(3) if found[n].any()} == layers | ({-1} if late else set())
        elif path.startswith("trunk/final_norm") or not path.startswith("trunk"):
            assert found.any() == late, path
        else:
            assert found.any() == (0 in layers), path


def test_class_probabilities_and_rows_without_a_label():
    objective = tiny.classification()
    batch = {name: jnp.asarray(x) for name, x in tiny.task_batch().items()}
    params = init(objective)
    rng = np.random.default_rng(0)
    log_probs = special.log_softmax(rng.normal(size=(8, 3)), -1).astype(np.float32)
    gold = np.arange(8) % 2
    extra = {"teacher_log_probs": jnp.asarray(log_probs), "gold": jnp.asarray(gold, jnp.float32)}
    student = Distilled(objective, None, terms(logits=3.0, temperature=2.0), (), 0, 64)
    total, weight, metrics = loss(student, {}, params, batch | extra)
    logits = np.asarray(objective.forward(params, batch))
    p, q = (special.softmax(x / 2.0, -1) for x in (log_probs, logits))
    weights = np.asarray(batch["weights"])
    soft = (weights * 4.0 * special.rel_entr(p, q).sum(-1)).sum()
    labels = np.asarray(batch["labels"])
    hard = -(weights * gold * special.log_softmax(logits, -1)[np.arange(8), labels]).sum()
    np.testing.assert_allclose(total, hard + 3.0 * soft, rtol=1e-4)
    assert weight == pytest.approx(weights.sum())
    np.testing.assert_allclose(metrics["distill/logits"][0], soft, rtol=1e-4)


def test_flops_count_the_teachers_forward_pass():
    alone, beside = tiny.mlm(), tiny.mlm(num_layers=4)
    student = distilled(alone, beside, layers=(1, 3), hidden=1.0)
    trunk = beside.model.trunk.forward_flops(32)
    assert student.train_flops(32) == alone.train_flops(32) + trunk
    with_logits = distilled(alone, beside, logits=1.0)
    assert with_logits.train_flops(32) == alone.train_flops(32) + beside.train_flops(32) / 3
    cached = dataclasses.replace(with_logits, teacher=None)
    assert cached.train_flops(32) == alone.train_flops(32)


@pytest.mark.parametrize(
    "weights",
    [dict(hidden=1.0), dict(logits=1.0), dict(logits=1.0, all_positions=True)],
    ids=["no logits", "logits", "all"],
)
def test_flops_equal_the_compilers_count(weights):
    """Of the gradient of unrolled models whose matrices outweigh everything else."""
    shape = dict(num_layers=1, hidden_size=128, ffn_size=512, vocab_size=2048, num_heads=1)
    objective = MaskedLM(tiny.lm(**shape), 4, tiny.SPECIAL, 2048, 0.15, 0.8, 0.1)
    student = dataclasses.replace(
        distilled(objective, objective, layers=(0,), task=0.0, **weights), chunk_size=128
    )
    batch = jax.eval_shape(objective.corrupt, tiny.lm_batch(2, 128), KEY)
    params = nn.unbox(jax.eval_shape(objective.init, KEY))["params"]
    gradient = jax.jit(jax.grad(lambda p, t, b: student.bind(t, 0.0).loss(p, b, KEY)[0]))
    counted = gradient.lower(params, params, batch).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(2 * student.train_flops(128), rel=0.08)
