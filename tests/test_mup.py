"""muP: a coordinate check over widths, and the entries of its table one by one."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pretrain import config as configs
from pretrain import inherit, masked, optim, schema, tasks, trees
from pretrain.errors import UserError
from pretrain.files import write_json
from pretrain.hf import FAMILIES, writing
from pretrain.models.attention import SCORES
from pretrain.models.families import language_model
from pretrain.models.heads import (
    Classifier,
    Discriminator,
    LanguageModel,
    LMHead,
    PairModel,
    Tagger,
)
from pretrain.models.layers import Embed
from pretrain.models.transformer import Transformer, TransformerConfig, layer_outputs
from tests import small_runs, tiny

WIDTHS = (64, 128, 256, 512, 1024)
STEPS, RATE = 4, np.float32(1e-2)
STEADY, SPREAD, GROWS = 0.2, 2.0, 0.4  # of slopes and ratios over the widths, set beforehand
ADAM = schema.OPTIMIZERS["adamw"] | {"b2": 0.95, "eps": 1e-12, "clip": 0.0, "weight_decay": 0.0}


@functools.cache
def coordinates(width: int, mup: bool, larger_heads: bool = False) -> dict:
    """Mean sizes after a few steps of a decoder, and of how far they went from their first values.

    Wider ones have more heads of 32, or the same two ``larger_heads``.

    Without muP it is the standard parametrisation of 64, the base, at every width: matrices begin
    at 1 / sqrt(width), one rate for all.
    """
    options = tiny.transformer(
        hidden_size=width, num_heads=2 if larger_heads else width // 32, ffn_size=width,
        causal=True, norm_position="pre", embedding_norm=False,
        head_transform=False, head_bias=False,
        init_std=(64 if mup else width) ** -0.5,
        mup_base_width=64 if mup else 0, mup_base_head_size=32 if larger_heads else 0,
    )  # fmt: skip
    model = language_model("transformer", options)
    optimizer = optim.create("adamw", **ADAM, width_ratio=options.width_ratio)
    tokens = jnp.asarray(tiny.lm_batch(4, 16)["tokens"])
    seen = np.tril(np.ones((16, 16), bool))

    def loss(params):
        variables = {"params": params}
        hidden, told = model.apply(variables, tokens, mutable=["intermediates", SCORES])
        logits = model.apply(variables, hidden, method="logits")
        scores = layer_outputs(told[SCORES]["trunk"], "attention_scores")
        scores = jnp.where(seen, scores, 0.0)
        found = {
            "hidden": layer_outputs(told["intermediates"]["trunk"]),
            "attention": scores,
            "logits": logits,
        }
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
        return losses.mean(), found

    @jax.jit
    def run(key):
        boxed = model.init(key, tokens, method="initialise")["params"]
        names, params = trees.dimension_names(boxed), nn.unbox(boxed)
        more = dict(names=names, lr=RATE, value=None, value_fn=None)

        def step(now, _):
            grads, found = jax.grad(loss, has_aux=True)(now[0])
            return optimizer.update(grads, now[1], now[0], **more)[:2], found

        first = params, optimizer.init(params, names)
        _, found = jax.lax.scan(step, first, length=STEPS + 1)
        return {name: x[0] for name, x in found.items()}, {k: x[-1] for k, x in found.items()}

    first, last = run(jax.random.key(0))
    sizes = {name: float(jnp.abs(x).mean()) for name, x in last.items()}
    return sizes | {f"{k} moved": float(jnp.abs(last[k] - first[k]).mean()) for k in last}


def slope(sizes: list[float], widths=WIDTHS) -> float:
    """Of the logarithm of sizes on that of widths: the power with which they grow."""
    return float(np.polyfit(np.log(widths), np.log(sizes), 1)[0])


@pytest.mark.parametrize(
    "name", ["hidden", "hidden moved", "attention", "attention moved", "logits moved"]
)
def test_coordinates_do_not_depend_on_the_width(name):
    """The first logits vanish with the width, what is learned does not."""
    for widths, larger_heads in ((WIDTHS, False), (WIDTHS[::2], True)):
        sizes = [coordinates(width, True, larger_heads)[name] for width in widths]
        assert abs(slope(sizes, widths)) < STEADY and max(sizes) < SPREAD * min(sizes), sizes


@pytest.mark.parametrize("name", ["hidden moved", "attention moved", "logits moved"])
def test_they_do_in_the_standard_parametrisation(name):
    widths = 64, 512
    assert slope([coordinates(width, False)[name] for width in widths], widths) > GROWS


def test_larger_heads_have_another_scale():
    """1 / d, as large as 1 / sqrt(d) in the base; the same 1 / sqrt(d) where heads are as large."""
    wide = dict(hidden_size=32, num_layers=1, mup_base_width=8, norm_position="pre")
    scores = []
    for options in (dict(), dict(mup_base_head_size=16), dict(mup_base_head_size=4)):
        model = Transformer(tiny.transformer(**wide | options))
        params = model.init(jax.random.key(0), TOKENS)["params"]
        _, told = model.apply({"params": params}, TOKENS, mutable=["intermediates", SCORES])
        scores.append(layer_outputs(told[SCORES], "attention_scores"))
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_allclose(scores[2], scores[0] / 2, rtol=1e-5)
    assert model.config.attention_scale == 4**0.5 / 16


RATIO = 4
STANDARD = tiny.transformer(hidden_size=32, embedding_size=16)
MUP = dataclasses.replace(STANDARD, mup_base_width=32 // RATIO)
TOKENS = jnp.arange(16, dtype=jnp.int32).reshape(2, 8)


class Table(nn.Module):
    """Stands for a trunk."""

    config: TransformerConfig

    def setup(self):
        cfg = self.config
        self.word = Embed(cfg.vocab_size, cfg.embedding_width, "vocab", cfg.init_std)
        self.hidden = Embed(cfg.vocab_size, cfg.hidden_size, "vocab", cfg.init_std)

    def __call__(self, tokens, **_):
        return self.hidden(tokens)

    def output_table(self):
        return self.word.embedding


def with_heads(config, trunk=Table):
    """By name: a model with each head, and what it is called with."""
    untied = dataclasses.replace(config, tied=False, head_transform=False)
    batch = {"tokens": TOKENS, "segment_ids": jnp.ones_like(TOKENS)}
    language = dict(inputs=TOKENS, method="initialise")
    return {
        "pairs": (PairModel(trunk(config), LMHead(config)), language),
        "untied": (LanguageModel(trunk(untied), LMHead(untied)), language),
        "classifier": (Classifier(trunk(config), 3, "pooler", 0.0), dict(inputs=batch)),
        "tagger": (Tagger(trunk(config), 3, 0.0, True), dict(inputs=batch)),
        "discriminator": (Discriminator(trunk(config)), dict(inputs=TOKENS)),
    }


def apply(model, variables, inputs, **kwargs):
    return model.apply(variables, inputs, **kwargs)


def init(model, inputs, **kwargs):
    return model.init(jax.random.key(0), inputs, **kwargs)["params"]


MATRICES = {  # whose two dimensions both grow
    *(f"trunk/layers/attention/{name}/kernel" for name in ("query", "key", "value", "out")),
    *("trunk/layers/ffn/in/kernel", "trunk/layers/ffn/out/kernel"),
    *("trunk/embedding_projection/kernel", "lm_head/transform/kernel", "pooler/dense/kernel"),
    "discriminator_head/transform/kernel",
}
OTHERS = {  # and other kernels and tables
    *(f"trunk/{name}/embedding" for name in ("word", "position", "type")),
    *(f"{name}/kernel" for name in ("lm_head", "pair_head", "classification_head")),
    *("tagging_head/kernel", "discriminator_head/out/kernel"),
}


def test_matrices_learn_at_the_rate_over_the_ratio():
    found = {}
    for model, call in with_heads(MUP, Transformer).values():
        boxed = jax.eval_shape(functools.partial(init, model, **call))
        found |= optim.width_scales(trees.dimension_names(boxed), RATIO)
    assert {path for path, scale in found.items() if scale == 1 / RATIO} == MATRICES
    assert {path for path, scale in found.items() if scale == 1.0} > OTHERS
    assert {path.split("/")[-1] for path in found.keys() - MATRICES - OTHERS} == {"bias", "scale"}


def test_matrices_begin_smaller():
    """In one over the root of the ratio, from the same random numbers."""

    @functools.partial(jax.jit, static_argnums=0)
    def begin(config):
        trunk = Transformer(config).init(jax.random.key(0), TOKENS)["params"]
        found = {f"trunk/{path}": x for path, x in trees.flatten(nn.unbox(trunk)).items()}
        for model, call in with_heads(config).values():
            found |= trees.flatten(nn.unbox(init(model, **call)))
        return found

    got, standard = begin(MUP), begin(STANDARD)
    for path, x in got.items():
        scale = RATIO**-0.5 if path in MATRICES else 1.0
        np.testing.assert_allclose(x, standard[path] * scale, rtol=1e-5, err_msg=path)
    assert got.keys() > MATRICES | OTHERS


@pytest.mark.parametrize("name", ["pairs", "untied", "classifier", "tagger", "discriminator"])
def test_logits_are_divided_by_the_ratio_and_their_biases_are_not(name):
    model, call = with_heads(MUP)[name]
    flat = trees.flatten(nn.unbox(init(model, **call)))
    flat = {k: x + 0.5 if k.endswith("bias") else x for k, x in flat.items()}
    params = {"params": trees.nest(flat)}
    got = apply(model, params, **call)
    want = apply(with_heads(STANDARD)[name][0], params, **call)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert float(jnp.abs(y - 0.5).max()) > 1e-3
        np.testing.assert_allclose((x - 0.5) * RATIO, y - 0.5, rtol=1e-4, atol=1e-6)


def test_at_the_width_of_the_base_it_is_the_standard_parametrisation():
    """Bit for bit; `tiny`'s width is 16."""
    batch = jax.tree.map(jnp.asarray, tiny.lm_batch())
    steps = []
    for options in (dict(), dict(mup_base_width=16, mup_base_head_size=8)):
        objective = tiny.causal(**options)
        params = nn.unbox(jax.jit(objective.init)(jax.random.key(0)))["params"]
        steps.append((params, tiny.value_and_gradient(objective, params, batch)))
    jax.tree.map(np.testing.assert_array_equal, *steps)
    config = configs.base()
    config.model.mup_base_width = config.model.hidden_size
    optimizers = [tasks.make_optimizer(configs.Reader(c)) for c in (configs.base(), config)]
    assert optimizers[0] == optimizers[1]


@pytest.mark.parametrize("name, weight_decay", [("adamw", 0.3), ("lion", 0.3)])
def test_an_update_has_its_closed_form(name, weight_decay):
    """The first: both go by the gradient's sign. The decay is as of the base."""
    options = schema.OPTIMIZERS[name] | {"weight_decay": weight_decay, "clip": 0.0}
    optimizer = optim.create(name, **options, width_ratio=RATIO)
    names = {
        "word/embedding": ("vocab", "embed"),
        "layers/query/kernel": ("layers", "embed", "heads", "kv"),
        "layers/query/bias": ("layers", "heads", "kv"),
    }
    rng = np.random.default_rng(0)
    params, grads = (
        trees.nest({k: rng.normal(size=(2, 3, 4, 5)[: len(n)]) for k, n in names.items()})
        for _ in range(2)
    )
    updated, *_ = optimizer.update(
        grads, optimizer.init(params, names), params,
        names=names, lr=0.1, value=None, value_fn=None,
    )  # fmt: skip
    scales = {"word/embedding": 1.0, "layers/query/kernel": 1 / RATIO, "layers/query/bias": 1.0}
    sign, old = trees.flatten(jax.tree.map(np.sign, grads)), trees.flatten(params)
    for path, new in trees.flatten(updated).items():
        decay = 0.0 if path.endswith("bias") else weight_decay
        want = old[path] - 0.1 * (scales[path] * sign[path] + decay * old[path])
        np.testing.assert_allclose(new, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(schema.OPTIMIZERS.keys() - {"adamw", "lion"}))
def test_other_optimizers_are_refused(name):
    config = configs.base(optimizer=name)
    config.model.mup_base_width = 32
    said = f"config.optimizer.name: found '{name}' with a model that is 4 times as wide as"
    with pytest.raises(UserError, match=said):
        tasks.make_optimizer(configs.Reader(config))


def test_a_head_size_without_a_base_is_refused():
    with pytest.raises(UserError, match="mup_base_head_size: found 8 with mup_base_width 0"):
        tiny.transformer(mup_base_head_size=8)
    config = configs.base()
    config.model.mup_base_width = -1
    with pytest.raises(UserError, match=r"config\.model\.mup_base_width: found -1, expected at"):
        configs.check(config)


def test_families_without_it_have_no_such_key():
    assert [name for name, keys in schema.MODELS.items() if "mup_base_width" in keys] == [
        "transformer"
    ]


def test_an_electra_generator_has_the_ratio_of_its_discriminator():
    options = tiny.transformer(hidden_size=64, num_heads=4, mup_base_width=16)
    generator = masked.generator_options(options, 0.25)
    assert generator.width_ratio == options.width_ratio == 4
    assert masked.generator_options(tiny.transformer(), 0.5).mup_base_width == 0
    odd = tiny.transformer(hidden_size=64, num_heads=4, mup_base_width=18)
    with pytest.raises(UserError, match=r"objective\.generator_size: 0\.25 makes a generator 16"):
        masked.generator_options(odd, 0.25)


def test_export_is_refused_but_of_the_base():
    gpt = configs.load(str(small_runs.ROOT / "configs/gpt.py"), "tiny,published")

    def family(base, head_size=0):
        gpt.model.mup_base_width, gpt.model.mup_base_head_size = base, head_size
        options = tasks.backbone_options(configs.Reader(gpt))
        return writing.find_family(FAMILIES, options, {"trunk": {}, "lm_head": {}}).model_type

    with pytest.raises(UserError, match=r"mup_base_width: found 64 .* with hidden_size 128 in"):
        family(64)
    with pytest.raises(UserError, match=r"mup_base_head_size 32.* in heads of 64: transf"):
        family(128, 32)
    assert family(128) == family(0) == "gpt2"


def test_fine_tuning_goes_on_in_it(tmp_path, small_data):
    source = small_runs.config("bert", small_data, "tiny", model__mup_base_width=4)
    write_json(tmp_path / tasks.CONFIG, source.to_dict())
    write_json(tmp_path / tasks.RESULT, {})
    config = small_runs.config("classify", small_data, "tiny", init_from=str(tmp_path))
    read = configs.Reader(inherit.resolve(config))
    assert tasks.make_optimizer(read).width_ratio == 4.0
    assert tasks.backbone_options(read).width_ratio == 4.0
