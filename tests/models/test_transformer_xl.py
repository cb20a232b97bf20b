"""Transformer-XL: against the transformers library, against loops, and what memory means."""

import dataclasses
import functools
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain import config as configs
from pretrain import hf, schema
from pretrain.errors import UserError
from pretrain.hf import models
from pretrain.hf.transformer_xl import FAMILY
from pretrain.models.adaptive import AdaptiveSoftmax
from pretrain.models.attention import SCORES
from pretrain.models.heads import LanguageModel
from pretrain.models.transformer_xl import (
    TransformerXL,
    TransformerXLConfig,
    initial_memory,
    next_memory,
)
from pretrain.objectives.causal import CausalLM, next_tokens
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
CASES = ("", "-lm", "-untied", "-one-table", "-plain", "-memory", "-classify")


def config(**overrides) -> TransformerXLConfig:
    section = schema.MODELS["transformer_xl"] | tiny.SHAPE | {"head_size": 6, "dropout": 0.0}
    section |= {"cutoffs": "20,40", "div_val": 2}
    return TransformerXLConfig(**(section | overrides))


PLAIN = config()
SEEING = config(mem_len=5, same_length=True, clamp_len=7, shared_biases=True, cutoffs="")


def language_model(cfg) -> LanguageModel:
    return LanguageModel(TransformerXL(cfg), AdaptiveSoftmax(cfg))


def shapes_of(model) -> dict:
    """Of its parameters."""
    tokens = jnp.zeros((1, 8), jnp.int32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, method="initialise"))
    return nn.unbox(shapes)["params"]


@functools.cache
def parameters(cfg):
    """Random, with visible effects, biases among them."""
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (centre + rng.normal(0, 0.4, shape.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes_of(language_model(cfg)))


@functools.cache
def compiled(cfg):
    model = language_model(cfg)
    return jax.jit(
        lambda params, tokens, inputs: model.apply(
            {"params": params}, tokens, **inputs, mutable=["intermediates", SCORES]
        )
    )


def run(cfg, tokens, **inputs):
    """Hidden states, and what the trunk tells."""
    hidden, told = compiled(cfg)(parameters(cfg), tokens, inputs)
    scores = told[SCORES]["trunk"]["layers"]["attention"]["attention_scores"][0]
    return np.asarray(hidden, np.float32), told["intermediates"]["trunk"] | {"scores": scores}


def states(told) -> np.ndarray:
    """As transformers lists them: the embeddings and each layer's output."""
    return np.concatenate([np.asarray(told["embedded"][0])[None], told["layers"]["hidden"][0]])


BATCH = tiny.lm_batch(4, 24)
TOKENS = BATCH["tokens"]


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_logits_equal_those_of_transformers(case):
    """Of tiny random models, also of a second segment that is given the first one's memory."""
    golden = np.load(GOLDEN / f"transfo-xl{case}" / "golden.npz")
    loaded = hf.read(GOLDEN / f"transfo-xl{case}")
    assert all(name.endswith("pos_emb.inv_freq") for name in loaded.unused)
    cfg, params = loaded.options, {"params": loaded.params}
    model = models.build(loaded.family, cfg, loaded.head, len(loaded.label_names))
    segment_ids = golden["attention_mask"].astype(np.int32)
    real = segment_ids > 0

    @jax.jit
    def forward(tokens, **inputs):
        if loaded.head == "classification_head":
            return None, {}, model.apply(params, {"tokens": tokens, **inputs})
        hidden, told = model.apply(params, tokens, **inputs, mutable=["intermediates"])
        logits = model.apply(params, hidden, method="logits") if loaded.head else None
        return hidden, told["intermediates"]["trunk"], logits

    def check(tokens, real, prefix="", **inputs):
        hidden, told, logits = forward(tokens.astype(np.int32), **inputs)
        if loaded.head == "classification_head":
            np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)
            return told
        expected = golden[f"{prefix}hidden_states"]
        np.testing.assert_allclose(states(told)[:, real], expected[:, real], atol=1e-4)
        np.testing.assert_allclose(hidden[real], expected[-1][real], atol=1e-4)
        if loaded.head:
            np.testing.assert_allclose(logits[real], golden[f"{prefix}logits"][real], atol=1e-4)
        return told

    with jax.default_matmul_precision("highest"):
        told = check(golden["input_ids"], real, segment_ids=segment_ids)
        if case == "-memory":
            memory = next_memory(told, cfg.mem_len, initial_memory(cfg, len(real)))
            assert memory.shape == (2, 2, 11, 16)
            tokens = golden["next_input_ids"]
            check(tokens, np.ones(tokens.shape, bool), "next_", memory=memory)


@pytest.mark.parametrize("case", ["-plain", "-memory"])
def test_a_written_checkpoint_says_the_same(case, tmp_path):
    """Without zero states before a row, theirs must keep no memory; shared biases are copied."""
    options, params = hf.load(GOLDEN / f"transfo-xl{case}")
    options = dataclasses.replace(options, mem_len=9, zero_memory=False, same_length=False)
    assert hf.save(tmp_path / "out", options, params) == "TransfoXLLMHeadModel"
    again, loaded = hf.load(tmp_path / "out")
    assert again == dataclasses.replace(options, mem_len=0)
    jax.tree.map(np.testing.assert_array_equal, params, loaded)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("pre_lnorm", True, "pre_lnorm of model_type 'transfo-xl': found True, expected False"),
        ("attn_type", 1, "attn_type .* found 1, expected 0"),
        ("tie_projs", [True, False], r"tie_projs: found \[True, False\], expected \[False, True\]"),
        ("cutoffs", [70], "cutoffs: found '70', expected '' or rising ids"),
    ],
)
def test_options_that_there_are_not_are_refused(key, value, message):
    theirs = {"model_type": "transfo-xl"} | FAMILY.to_hf(config(cutoffs="40")) | {key: value}
    with pytest.raises(UserError, match=message):
        FAMILY.from_hf(theirs)


@pytest.mark.parametrize("cfg", [PLAIN, SEEING], ids=["plain", "seeing"])
def test_scores_equal_a_loop_over_distances(cfg):
    """With memory, segments, clamped distances and the same number of keys for all."""
    rng = np.random.default_rng(1)
    held, length = 4, 6
    memory = rng.normal(size=(2, 1, held, 16)).astype(np.float32)
    segments = np.array([[1, 1, 1, 2, 2, 0]], np.int32)
    before = np.array([[3, 1, 1, 1]], np.int32)
    _, told = run(
        cfg, TOKENS[:1, :length], segment_ids=segments, memory=memory, memory_segment_ids=before
    )
    found = told["scores"][0, 0]
    trunk = parameters(cfg)["trunk"]
    layer = jax.tree.map(lambda x: x[0].astype(np.float64), trunk["layers"]["attention"])
    of = trunk if cfg.shared_biases else layer
    states = np.concatenate([memory[0, 0], told["embedded"][0][0]]).astype(np.float64)
    owners = [*before[0], *segments[0]]
    project = {name: layer[name]["kernel"] for name in ("query", "key", "relative")}
    for i in range(length):
        for j in range(held + length):
            distance = held + i - j
            visible = distance >= 0 and owners[j] == segments[0, i]
            visible &= distance < 5 or not cfg.same_length
            if not visible:
                assert (found[:, i, j] < -1e30).all()
                continue
            angles = (min(distance, 7) if cfg.clamp_len else distance) / 10_000 ** (
                np.arange(0, 16, 2) / 16
            )
            encoding = np.concatenate([np.sin(angles), np.cos(angles)])
            q = np.einsum("d,dhk->hk", states[held + i], project["query"])
            k = np.einsum("d,dhk->hk", states[j], project["key"])
            r = np.einsum("d,dhk->hk", encoding, project["relative"])
            score = ((q + of["content_bias"]) * k + (q + of["position_bias"]) * r).sum(-1)
            np.testing.assert_allclose(found[:, i, j], score / math.sqrt(6), atol=1e-4)


def test_two_segments_with_memory_are_one_long_segment():
    cfg, cut = dataclasses.replace(PLAIN, clamp_len=9), 11
    whole, _ = run(cfg, TOKENS)
    first, told = run(cfg, TOKENS[:, :cut])
    memory = next_memory(told, mem_len=30)
    second, told = run(cfg, TOKENS[:, cut:], memory=memory)
    np.testing.assert_allclose(first, whole[:, :cut], atol=1e-5)
    np.testing.assert_allclose(second, whole[:, cut:], atol=1e-5)
    alone, _ = run(cfg, TOKENS[:, cut:])
    assert np.abs(alone - second).max() > 0.1
    kept = next_memory(told, 6, memory)
    assert next_memory(told, 0, memory).shape == (2, 4, 0, 16)
    entered = np.concatenate([memory, states(told)[:-1]], axis=2)
    np.testing.assert_array_equal(kept, entered[:, :, 24 - 6 :])


def test_no_gradient_flows_into_memory():
    memory = np.random.default_rng(0).normal(size=(2, 4, 3, 16)).astype(np.float32)

    def total(memory):
        return (
            TransformerXL(PLAIN)
            .apply({"params": parameters(PLAIN)["trunk"]}, TOKENS[:, :6], memory=memory)[..., 0]
            .sum()
        )

    value_and_gradient = jax.jit(jax.value_and_grad(total))
    value, gradient = value_and_gradient(memory)
    assert not gradient.any()
    assert float(value) != pytest.approx(float(value_and_gradient(memory * 0.5)[0]), abs=1e-3)


def test_zero_states_before_a_row_are_not_nothing():
    zeros = dataclasses.replace(PLAIN, zero_memory=True, mem_len=8)
    given, _ = run(PLAIN, TOKENS, memory=np.zeros((2, 4, 8, 16), np.float32))
    hidden, _ = compiled(zeros)(parameters(PLAIN), TOKENS, {})
    np.testing.assert_array_equal(hidden, given)
    assert np.abs(given - run(PLAIN, TOKENS)[0]).max() > 0.1


def test_documents_of_a_packed_row_do_not_see_each_other():
    """Nor memory that is not theirs; what positions are told makes no difference."""
    memory = np.random.default_rng(0).normal(size=(2, 4, 3, 16)).astype(np.float32)
    packed, _ = run(
        PLAIN, TOKENS, segment_ids=BATCH["segment_ids"], positions=BATCH["positions"], memory=memory
    )
    for row, segments in enumerate(BATCH["segment_ids"]):
        for segment in (1, 2):
            where = np.flatnonzero(segments == segment)
            tokens = np.zeros_like(TOKENS)
            tokens[row, : len(where)] = TOKENS[row, where]
            inputs = {"memory": memory} if segment == 1 else {}
            alone, _ = run(PLAIN, tokens, **inputs)
            np.testing.assert_allclose(packed[row, where], alone[row, : len(where)], atol=2e-5)


def test_later_tokens_and_padding_change_nothing():
    real = BATCH["segment_ids"] > 0
    inputs = {"segment_ids": BATCH["segment_ids"]}
    want, _ = run(PLAIN, TOKENS, **inputs)
    got, _ = run(PLAIN, np.where(real, TOKENS, 33), **inputs)
    np.testing.assert_array_equal(got[real], want[real])
    changed = TOKENS.copy()
    changed[:, 10] = 4
    got, _ = run(PLAIN, changed)
    want, _ = run(PLAIN, TOKENS)
    np.testing.assert_array_equal(got[:, :10], want[:, :10])
    assert (np.abs(got[:, 10:] - want[:, 10:]).max((0, 2)) > 1e-4).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_of_padding_is_finite(dtype):
    cfg = dataclasses.replace(SEEING, dtype=dtype)
    model, params = language_model(cfg), parameters(SEEING)
    nothing = jnp.zeros((2, 12), jnp.int32)

    @jax.jit
    def value_and_gradient(params):
        def total(params):
            hidden = model.apply({"params": params}, nothing, segment_ids=nothing)
            logits = model.apply({"params": params}, hidden, method="logits")
            return logits.astype(jnp.float32).mean(), (hidden, logits)

        return jax.value_and_grad(total, has_aux=True)(params)

    (_, (hidden, logits)), gradient = value_and_gradient(params)
    assert hidden.dtype == dtype and logits.dtype == "float32"
    for leaf in jax.tree.leaves((hidden, logits, gradient)):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()


@pytest.mark.parametrize("how", ["all", "all_but_first", "none"])
@pytest.mark.parametrize("tied", [True, False])
def test_log_probabilities_are_of_clusters_and_of_ids_in_them(how, tied):
    """Against NumPy, with a column for each further cluster behind the first one's ids."""
    cfg = config(tied=tied, tied_projections=how)
    params = parameters(cfg)
    hidden = np.random.default_rng(3).normal(size=(3, 2, 16)).astype(np.float32)
    found = language_model(cfg).apply({"params": params}, hidden, method="logits")
    np.testing.assert_allclose(np.exp(found).sum(-1), 1.0, atol=1e-5)

    head, word = params["lm_head"], params["trunk"]["word"]

    def logits(cluster):
        own = f"projection_{cluster}" in head
        assert own == (how == "none" or (how == "all_but_first" and cluster == 0))
        if own:
            inner = hidden @ head[f"projection_{cluster}"]["kernel"]
        else:
            inner = hidden @ word[f"projection_{cluster}"]["kernel"].T
        output = head[f"output_{cluster}"]
        table = word[f"table_{cluster}"]["embedding"].T if tied else output["kernel"]
        return inner, inner @ table + output["bias"]

    inner, first = logits(0)
    clusters = inner @ head["clusters"]["kernel"] + head["clusters"]["bias"]
    first = np.exp(np.concatenate([first, clusters], -1))
    first /= first.sum(-1, keepdims=True)
    probabilities = [first[..., :20]]
    for cluster in (1, 2):
        inside = np.exp(logits(cluster)[1])
        inside /= inside.sum(-1, keepdims=True)
        probabilities.append(first[..., 20 + cluster - 1, None] * inside)
    np.testing.assert_allclose(found, np.log(np.concatenate(probabilities, -1)), atol=1e-4)


def test_ids_outside_the_vocabulary():
    """Are errors, or where ids are not known before the model runs, not a number."""
    trunk, params = TransformerXL(PLAIN), {"params": parameters(PLAIN)["trunk"]}
    with pytest.raises(ValueError, match=r"table_2: ids from 0 to 24, expected 0 to 23"):
        trunk.apply(params, np.array([[5, 64, 6]]))
    ids = np.array([[5, 64, 6], [5, -1, 6], [0, 63, 6]], np.int32)
    hidden = jax.jit(trunk.apply)(params, ids)
    assert np.isnan(hidden[0]).any() and np.isnan(hidden[1]).any()
    assert np.isfinite(hidden[2]).all()


def test_how_layers_run_changes_nothing():
    memory = np.random.default_rng(0).normal(size=(2, 4, 3, 16)).astype(np.float32)

    def value_and_gradient(cfg):
        def total(params):
            hidden = TransformerXL(cfg).apply({"params": params}, TOKENS, memory=memory)
            return jnp.square(hidden[..., 0]).sum()

        return jax.jit(jax.value_and_grad(total))(parameters(PLAIN)["trunk"])

    want = value_and_gradient(PLAIN)
    got = value_and_gradient(dataclasses.replace(PLAIN, remat="dots_saveable", unroll=2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), got, want)


def test_training_through_the_causal_objective():
    """In chunks the loss is that of all log-probabilities, and dropout reaches it."""
    model = language_model(dataclasses.replace(PLAIN, dropout=0.2, attention_dropout=0.2))
    objective, params = CausalLM(model, 7), parameters(PLAIN)

    @jax.jit
    def value_and_gradient(params, key):
        return jax.value_and_grad(lambda p: objective.loss(p, BATCH, key)[0])(params)

    metrics = jax.jit(objective.predict)(params, BATCH)
    hidden, _ = run(PLAIN, TOKENS, segment_ids=BATCH["segment_ids"])
    log_probs = model.apply({"params": params}, hidden, method="logits")
    labels, weights = jax.device_get(next_tokens(BATCH))
    losses = -np.take_along_axis(np.asarray(log_probs), labels[..., None], -1)[..., 0]
    assert float(metrics["loss"][0]) == pytest.approx((losses * weights).sum(), rel=1e-4)
    values = [value_and_gradient(params, jax.random.key(seed)) for seed in (0, 1, 1)]
    assert float(values[1][0]) == float(values[2][0]) != float(values[0][0])
    sizes = jax.tree.map(lambda g: float(jnp.abs(g).max()), values[0][1])
    assert all(0 < size < np.inf for size in jax.tree.leaves(sizes))


@pytest.mark.parametrize(
    "changes",
    [{"div_val": 2}, {"embedding_size": 32, "tied_projections": "none"}, {"cutoffs": ""}],
    ids=str,
)
def test_forward_flops_equal_the_compilers_count(changes):
    """Between batches of two sizes: what a batch has once, the encodings' projection, drops out.

    XLA counts masked pairs too, and a few per cent that are not matrix products.
    """
    cfg = config(hidden_size=64, ffn_size=256, head_size=24, unroll=2, vocab_size=512)
    cfg = dataclasses.replace(cfg, **({"div_val": 1} | changes))
    model, length = language_model(cfg), 64

    def counted(rows):
        tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
        forward = jax.jit(lambda p, t: model.apply({"params": p}, t, method="initialise"))
        return forward.lower(shapes_of(model), tokens).compile().cost_analysis()["flops"]

    masked = length * (length - 1) // 2
    expected = model.forward_flops(length, length) + cfg.num_layers * 6 * masked * 2 * 24
    assert (counted(3) - counted(1)) / 2 == pytest.approx(expected, rel=0.06)


def test_forward_flops_with_zero_memory_count_its_keys():
    """Every one of 10 positions sees 8 zero states and half its row, or always 8 with itself."""
    shape = dict(num_layers=1, div_val=1, cutoffs="", mem_len=8)
    alone = TransformerXL(config(**shape)).forward_flops(10)
    keys_and_values = 2 * 2 * 8 * 16 * 12
    zero = TransformerXL(config(**shape, zero_memory=True)).forward_flops(10)
    assert zero - alone == keys_and_values + 6 * 12 * 80
    same = TransformerXL(config(**shape, zero_memory=True, same_length=True)).forward_flops(10)
    assert zero - same == 6 * 12 * 55
    short = TransformerXL(config(**shape, same_length=True)).forward_flops(10)
    assert alone - short == 6 * 12 * 3  # distances 8, 8 and 9


PUBLISHED = {  # with the head, and the trunk alone
    "enwik8-12": (41_055_436, 41_055_436 - 204),
    "enwik8-24": (277_278_924, 277_278_924 - 204),
    "wt103-base": (151_107_538, 151_107_538 - 267_735 - 3 * 411),
    "wt103-large": (285_205_322, 283_885_936),
}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_numbers_of_parameters(variant):
    whole = configs.load(str(ROOT / "configs" / "transformer_xl.py"), f"{variant},published")
    section = {key: whole.model[key] for key in whole.model if key != "name"}
    shapes = shapes_of(language_model(TransformerXLConfig(**section)))
    counts = [
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for tree in (shapes, shapes["trunk"])
    ]
    assert tuple(counts) == PUBLISHED[variant]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"cutoffs": "20,20"}, r"model\.cutoffs: found '20,20', expected '' or rising ids"),
        ({"cutoffs": "20;40"}, r"model\.cutoffs: found '20;40'"),
        ({"cutoffs": "64"}, r"below vocab_size 64"),
        ({"cutoffs": "0,5"}, r"above 0"),
        ({"div_val": 5}, r"model\.div_val: found 5, which leaves nothing of embedding_size 16"),
        ({"div_val": 0}, r"model\.div_val: found 0, expected at least 1"),
        ({"mem_len": -1}, r"model\.mem_len: found -1, expected at least 0"),
        ({"same_length": True}, r"model\.same_length: found True with mem_len 0"),
        ({"tied_projections": "some"}, "tied_projections: found 'some', expected one of all, all_"),
        ({"hidden_size": 15}, r"model\.hidden_size: found 15, expected an even number"),
        ({"num_heads": 3, "head_size": 0}, r"model\.num_heads: 3 does not divide hidden_size 16"),
        ({"pooler": "modernbert"}, r"model\.pooler: found 'modernbert', expected one of bert, rob"),
    ],
    ids=str,
)
def test_options_that_make_no_model_are_errors(changes, message):
    with pytest.raises(UserError, match=message):
        config(**changes)


def test_memory_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 4, 5, 16\), expected \(2, 4, 5, 16\)"):
        TransformerXL(PLAIN).apply(
            {"params": parameters(PLAIN)["trunk"]}, TOKENS, memory=jnp.zeros((3, 4, 5, 16))
        )
