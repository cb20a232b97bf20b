"""A generator and a discriminator, trained together."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import bert, electra
from pretrain import config as configs
from pretrain import schema, tasks, trees
from pretrain.masked import generator_options
from pretrain.models.families import language_model
from pretrain.models.transformer import TransformerConfig
from pretrain.objectives.rtd import EMBEDDINGS
from tests import tiny

KEY = jax.random.key(0)
EXTRA = 7  # rows of the vocabulary beyond the tokenizer's pieces
DISCRIMINATOR = dict(vocab_size=tiny.VOCAB + EXTRA, embedding_size=12)
OPTIONS = generator_options(tiny.transformer(**DISCRIMINATOR), 0.5, layers=1)
OBJECTIVE = dataclasses.replace(
    tiny.rtd(**DISCRIMINATOR),
    generator=language_model("transformer", OPTIONS),
    mask_rate=0.3,
    mask_prob=0.85,
    random_prob=0.0,
)
BATCH = tiny.lm_batch(8, 24) | {"weights": np.array([1, 1, 0, 1, 0.5, 1, 1, 1], np.float32)}


@functools.cache
def params():
    """Large ones: every piece is another to the generator."""
    params = nn.unbox(jax.jit(OBJECTIVE.init)(KEY))["params"]
    return jax.tree.map(lambda x: 8 * x, params)


@functools.cache
def corrupted():
    return jax.device_get(jax.jit(OBJECTIVE.corrupt)(BATCH, jax.random.key(3)))


@functools.cache
def generated():
    return jax.device_get(jax.jit(OBJECTIVE.generate)(params(), corrupted())[0])


@pytest.fixture(autouse=True, scope="module")
def made_outside_of_any_trace():
    """What is cached must not be made first while something else is traced."""
    params(), corrupted(), generated()


@functools.cache
def whole():
    return jax.device_get(tiny.value_and_gradient(OBJECTIVE, params(), corrupted()))


def drawn() -> np.ndarray:
    """Bool ``[B, S]``."""
    places = np.zeros(BATCH["tokens"].shape, bool)
    for row, (where, weights) in enumerate(
        zip(corrupted()["masked_positions"], corrupted()["masked_weights"], strict=True)
    ):
        places[row, where[weights > 0]] = True
    return places


def test_the_generator_has_everything_but_embeddings():
    found = params()
    assert set(found) == {"trunk", "discriminator_head", "generator"}
    assert set(found["generator"]) == {"trunk", "lm_head"}
    assert set(found["generator"]["trunk"]) == {"layers", "embedding_projection"}
    assert set(found["trunk"]) == {*EMBEDDINGS, "layers", "embedding_projection"}
    assert found["generator"]["trunk"]["layers"]["ffn"]["in"]["kernel"].shape == (1, 8, 16)
    assert found["generator"]["lm_head"]["transform"]["kernel"].shape == (8, 12)
    boxed = jax.eval_shape(OBJECTIVE.init, KEY)["params"]["generator"]
    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert all(isinstance(x, nn.LogicallyPartitioned) for x in leaves)


def test_the_generator_sees_masks_and_its_samples_take_their_place():
    tokens, places = BATCH["tokens"], drawn()
    assert places.sum() == np.round(0.3 * (tokens >= 5).sum(1)).sum()
    seen = corrupted()["tokens"]
    np.testing.assert_array_equal(seen[~places], tokens[~places])
    masked = (seen == OBJECTIVE.mask_id).sum()
    assert abs(masked - 0.85 * places.sum()) < 5 * math.sqrt(0.85 * 0.15 * places.sum())
    kept = seen != OBJECTIVE.mask_id
    np.testing.assert_array_equal(seen[kept], tokens[kept])
    new = generated()["tokens"]
    np.testing.assert_array_equal(new[~places], tokens[~places])
    assert (new[places] >= 5).all() and (new[places] < tiny.VOCAB).all()
    assert (new[places] != tokens[places]).any()


def test_samples_follow_the_softmax_over_ordinary_pieces():
    """Each row from a seed of its own: what it samples does not depend on the others."""
    rng = np.random.default_rng(0)
    row = rng.normal(size=tiny.VOCAB + EXTRA).astype(np.float32) * 2
    row[[0, 4, tiny.VOCAB]] = 9.0
    logits = jnp.broadcast_to(row, (4000, 3, len(row)))
    seeds = jnp.arange(4000, dtype=jnp.uint32)
    found = np.asarray(jax.jit(OBJECTIVE.sample)(logits, seeds))
    assert found.dtype == np.int32 and found.shape == (4000, 3)
    shares = np.exp(row.astype(np.float64))
    shares[:5] = shares[tiny.VOCAB :] = 0
    shares /= shares.sum()
    counts, n = np.bincount(found.ravel(), minlength=len(row)), found.size
    assert (counts[shares == 0] == 0).all()
    assert (np.abs(counts - n * shares) <= 5 * np.sqrt(n * shares * (1 - shares)) + 1).all()
    part = np.asarray(jax.jit(OBJECTIVE.sample)(logits[:2], seeds[5:7]))
    np.testing.assert_array_equal(part, found[5:7])


@functools.cache
def logits():
    """Of the generator at all positions, of the discriminator on what it made."""
    own = params()["generator"]
    shared = {k: v for k, v in params()["trunk"].items() if k in EMBEDDINGS}
    own = {"lm_head": own["lm_head"], "trunk": own["trunk"] | shared}

    @jax.jit
    def run():
        rest = {k: BATCH[k] for k in ("segment_ids", "positions")}
        model = OBJECTIVE.generator
        hidden = model.apply({"params": own}, corrupted()["tokens"], **rest)
        said = model.apply({"params": own}, hidden, method="logits")
        return said, OBJECTIVE.model.apply({"params": params()}, generated()["tokens"], **rest)

    return [np.asarray(x, np.float64) for x in run()]


def test_the_loss_is_mlm_plus_fifty_times_rtd_each_a_mean_of_its_own():
    said, told = logits()
    tokens, rows = BATCH["tokens"], BATCH["weights"][:, None]
    log_probs = said - np.log(np.exp(said).sum(-1, keepdims=True))
    losses = -np.take_along_axis(log_probs, tokens[..., None], -1)[..., 0]
    masked = drawn() * rows
    mlm = (losses * masked).sum() / masked.sum()
    replaced, real = generated()["tokens"] != tokens, (BATCH["segment_ids"] > 0) * rows
    probability = 1 / (1 + np.exp(-told))
    losses = -np.log(np.where(replaced, probability, 1 - probability))
    rtd = (losses * real).sum() / real.sum()

    (loss, (weight, metrics)), _ = whole()
    assert float(loss) / float(weight) == pytest.approx(mlm + 50 * rtd, rel=1e-4)
    means = {name: float(value) / float(weight) for name, (value, weight) in metrics.items()}
    hits = (said.argmax(-1) == tokens) * masked
    right = ((told > 0) == replaced) * real
    changed = real * replaced
    assert means == pytest.approx(
        {
            "loss": rtd,
            "generator_loss": mlm,
            "masked_accuracy": hits.sum() / masked.sum(),
            "accuracy": right.sum() / real.sum(),
            "detected": ((told > 0) * changed).sum() / changed.sum(),
        },
        rel=1e-4,
    )
    assert float(metrics["detected"][1]) == pytest.approx(changed.sum())


def test_each_loss_reaches_its_own_parameters_and_the_embeddings():

    @jax.jit
    def gradients(params, batch):
        def losses(params):
            metrics = OBJECTIVE.metrics(params, batch)
            return metrics["loss"][0], metrics["generator_loss"][0]

        _, pull = jax.vjp(losses, params)
        return [pull((jnp.float32(x), jnp.float32(1 - x)))[0] for x in (1, 0)]

    shared = tuple(f"trunk/{name}/" for name in EMBEDDINGS)
    first, second = map(trees.flatten, gradients(params(), corrupted()))
    for path in first:
        of_generator = path.startswith("generator/")
        expected = [not of_generator, of_generator or path.startswith(shared)]
        if "key/bias" not in path:  # which no softmax sees
            assert [first[path].any(), second[path].any()] == expected, path


def test_parts_of_a_batch_sum_up_to_it():
    """Whatever the number of micro-batches, although the two losses count different positions."""
    (loss, (weight, _)), gradient = whole()
    parts = [
        jax.device_get(
            tiny.value_and_gradient(
                OBJECTIVE, params(), {k: v[rows] for k, v in corrupted().items()}
            )
        )
        for rows in ([0, 2, 4, 6], [1, 3, 5, 7])
    ]
    shares = [float(x["generator_loss"][1] / w) for (_, (w, x)), _ in parts]
    assert abs(shares[0] - shares[1]) > 1e-3, "parts differ in what they mask of their tokens"
    total = jax.tree.map(lambda a, b: a + b, *parts)
    assert float(total[0][0]) == pytest.approx(float(loss), rel=1e-5)
    assert float(total[0][1][0]) == pytest.approx(float(weight))
    for path, want in trees.flatten(gradient).items():
        got = trees.flatten(total[1])[path]
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max() + 1e-4)


def test_devices_change_nothing():
    mesh = tiny.mesh(data=4, fsdp=2)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
    batch = jax.jit(OBJECTIVE.corrupt)(jax.device_put(BATCH, rows), jax.random.key(3))
    for name, value in corrupted().items():
        np.testing.assert_allclose(batch[name], value, rtol=1e-6, err_msg=name)
    new = jax.jit(OBJECTIVE.generate)(params(), batch)[0]["tokens"]
    np.testing.assert_array_equal(new, generated()["tokens"])


def test_held_out_samples_are_fixed():
    """Whatever the rate in training, and whatever other rows a batch has."""

    def sums(predict, rows):
        found = predict(params(), {k: v[rows] for k, v in BATCH.items()})
        return {k: np.array(pair, np.float64) for k, pair in found.items()}

    predict = jax.jit(OBJECTIVE.predict)
    other = jax.jit(dataclasses.replace(OBJECTIVE, mask_rate=0.1).predict)
    all_rows, parts = (
        sums(predict, range(8)),
        [sums(predict, x) for x in ([6, 1, 3, 0], [2, 7, 5, 4])],
    )
    for name, pair in sums(other, range(8)).items():
        np.testing.assert_allclose(pair, all_rows[name], rtol=1e-5)
        np.testing.assert_allclose(parts[0][name] + parts[1][name], pair, rtol=1e-5)
    assert all_rows.keys() == set(OBJECTIVE.scores)
    masked = np.round(0.15 * (BATCH["tokens"] >= 5).sum(1)) * BATCH["weights"]
    assert all_rows["generator_loss"][1] == masked.sum()


def test_flops_are_those_of_both():
    length, predicted = 24, round(0.3 * 24)
    expected = OBJECTIVE.generator.forward_flops(length, predicted)
    assert OBJECTIVE.train_flops(length) == tiny.rtd(**DISCRIMINATOR).train_flops(24) + 3 * expected


@pytest.mark.parametrize(
    "name, shape",
    [
        ("small", (12, 64, 1, 256, 128)),
        ("base", (12, 256, 4, 1024, 768)),
        ("large", (24, 256, 4, 1024, 1024)),
    ],
)
def test_generators_are_of_the_published_sizes(name, shape):
    config = electra.get_config(name)
    options = tasks.backbone_options(configs.Reader(config))
    found = generator_options(options, config.objective.generator_size)
    fields = ("num_layers", "hidden_size", "num_heads", "ffn_size", "embedding_width")
    assert tuple(getattr(found, field) for field in fields) == shape
    assert config.objective.replace_rate == (0.25 if name == "large" else 0.15)
    if name != "small":  # which was released with a generator of full size
        own = electra.get_config(f"{name}-generator").model
        released = TransformerConfig(**{k: own[k] for k in vars(found)})
        assert dataclasses.replace(released, vocab_size=0) == dataclasses.replace(
            found, vocab_size=0
        )


def test_a_generator_of_any_size_has_whole_heads():
    config = bert.get_config("small").model
    options = TransformerConfig(**{k: config[k] for k in schema.MODELS["transformer"]})
    for size in (0.01, 0.3, 0.77, 1.0, 1.5):
        found = generator_options(options, size)
        assert found.hidden_size % found.num_heads == 0
        assert found.hidden_size == pytest.approx(512 * size, abs=found.num_heads)
        assert found.embedding_width == 512
    assert generator_options(options, 1.0) == options


def test_the_generator_has_dropout_of_its_own():
    """Its embeddings are the discriminator's, at the same paths: one key would be one pattern."""
    keys = {}

    class Recorded(type(OBJECTIVE)):
        def generate(self, *args, **kwargs):
            keys["generator"] = kwargs["rngs"]["dropout"]
            return args[1], {"loss": None, "masked_accuracy": None}

        def forward(self, *_, **kwargs):
            keys["discriminator"] = kwargs["rngs"]["dropout"]

        def score(self, *_):
            return {}

    fields = {f.name: getattr(OBJECTIVE, f.name) for f in dataclasses.fields(OBJECTIVE)}
    Recorded(**fields).metrics({}, {}, deterministic=False, rngs={"dropout": KEY})
    assert keys["discriminator"] == KEY != keys["generator"]
