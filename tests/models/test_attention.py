"""Kernels against the plain attention, interpreted; what is chosen where, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, NamedSharding, PartitionSpec

from pretrain import plan, sharding
from pretrain.errors import UserError
from pretrain.models import attention
from pretrain.models.options import POLICIES
from pretrain.models.transformer import Transformer
from tests import tiny

B, S, H, K, D = 2, 256, 4, 2, 8
SHAPE = attention.Shape(S, H, K, D, "float32", causal=True)
SEGMENTS = np.ones((B, S), np.int32)
SEGMENTS[:, 90:] = 2
SEGMENTS[1, 150:] = 3
SEGMENTS[0, 230:] = 0  # padding, which sees padding


class Plain:
    """What the plain attention asks of a module."""

    config = tiny.transformer()

    def sow(self, *_):
        pass

    def is_initializing(self):
        return False


@functools.cache
def arrays(kv_heads=K):
    """Query, key, value and a gradient of the output."""
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (H, kv_heads, kv_heads, H)
    return [jax.random.normal(k, (B, S, n, D)) for k, n in zip(keys, heads, strict=True)]


def value_and_gradients(function, query, key, value, grad):
    output, backward = jax.vjp(function, query, key, value)
    return output, *backward(grad)


def plain(causal, window, local, *inputs):
    masking = attention.masking("plain", SHAPE._replace(causal=causal, window=window), SEGMENTS)
    return attention.attention(Plain(), *inputs, masking, jnp.asarray(local), True)


def splash(causal, window, local, *inputs):
    ids = jnp.asarray(SEGMENTS)
    return attention.splash(*inputs, ids, local, causal, window, interpret=True)


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=3e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_splash_gives_the_numbers_of_the_plain_attention(monkeypatch, causal):
    """Segments, padding, grouped heads, layers with and without a window; gradients too."""
    monkeypatch.setattr(attention, "BLOCK", 128)  # two by two: a causal mask hides one whole
    run = jax.jit(lambda x, *y: value_and_gradients(functools.partial(splash, causal, 30, x), *y))
    for local in (True, False):
        expected = value_and_gradients(functools.partial(plain, causal, 30, local), *arrays())
        assert_same(run(local, *arrays()), expected)


def test_splash_on_a_mesh():
    """Every device has rows and heads of its own."""
    function = functools.partial(splash, True, 0, False)
    with jax.set_mesh(tiny.mesh(fsdp=2, tensor=2)):
        found = jax.jit(functools.partial(value_and_gradients, function))(*arrays())
    assert found[0].sharding.shard_shape(found[0].shape) == (B // 2, S, H // 2, D)
    assert_same(found, value_and_gradients(functools.partial(plain, True, 0, False), *arrays()))


def test_heads_that_do_not_divide_over_the_mesh():
    """One of keys and values on two devices: each has a copy of it for its queries."""
    inputs = arrays(kv_heads=1)[:3]
    with jax.set_mesh(tiny.mesh(tensor=2)):
        found = jax.jit(functools.partial(splash, False, 0, False))(*inputs)
    assert_same([found], [plain(False, 0, False, *inputs)])


def test_layers_hand_the_kernel_what_they_see(monkeypatch):
    """ModernBERT's: the first by itself and whole, local ones in a scan."""
    called = []

    def instead(query, key, value, ids, local, causal, window):
        called.append((causal, window))
        shape = attention.Shape(*query.shape[1:3], key.shape[2], 8, "float32", causal, window)
        masking = attention.masking("plain", shape, ids)
        return attention.attention(Plain(), query, key, value, masking, local, True)

    monkeypatch.setattr(attention, "splash", instead)
    batch = tiny.lm_batch(rows=2, seq_len=128)
    options = dict(
        norm_position="pre", position="rotary", first_norm=False, num_layers=3, local_window=9,
        global_every=2,
    )  # fmt: skip
    ours, theirs = (
        Transformer(tiny.transformer(**options, attention=x)) for x in ("splash", "plain")
    )
    params = theirs.init(jax.random.key(0), batch["tokens"])
    expected = theirs.apply(params, batch["tokens"], segment_ids=batch["segment_ids"])
    monkeypatch.setattr(attention, "platform", lambda: "tpu")
    apply = functools.partial(ours.apply, params, batch["tokens"])
    found = apply(segment_ids=batch["segment_ids"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert set(called) == {(False, 9)}
    called.clear()
    apply(mutable=["intermediates"])  # hidden states are there whatever computes the attention
    assert called and attention.SCORES not in apply(mutable=["intermediates"])[1]
    with pytest.raises(UserError, match="has no attention scores"):
        apply(mutable=[attention.SCORES])


@pytest.mark.parametrize("causal, window", [(True, 0), (False, 30)])
def test_what_cudnn_is_asked_for_gives_the_numbers_of_the_plain_attention(
    monkeypatch, causal, window
):
    """Computed by XLA in its place: no GPU is here. On a mesh, with gradients."""
    asked = jax.nn.dot_product_attention

    def computed(*arrays, implementation, **options):
        assert implementation == "cudnn"
        return asked(*arrays, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", computed)
    shape = SHAPE._replace(causal=causal, window=window)
    mask = attention.attention_mask(jnp.asarray(SEGMENTS), causal)
    masking = attention.Masking(jnp.asarray(SEGMENTS), mask, "cudnn", shape)

    def cudnn(*inputs):
        return attention.attention(Plain(), *inputs, masking, jnp.asarray(True), True)

    with jax.set_mesh(tiny.mesh(fsdp=2, tensor=2)):
        found = jax.jit(functools.partial(value_and_gradients, cudnn))(*arrays())
    expected = functools.partial(plain, causal, window, True)
    assert_same(found, value_and_gradients(expected, *arrays()))


@pytest.mark.parametrize("window", [0, 30])
@pytest.mark.parametrize("remat", ["minimal", "minimal_with_context"])
def test_what_is_kept_for_the_backward_pass(capsys, remat, window):
    """The logarithms of the sums over keys [B, H, S], or the kernel runs a second time."""
    layer = functools.partial(splash, True, window)
    layer = jax.checkpoint(layer, policy=POLICIES[remat])
    local = jnp.asarray(True)
    jax.ad_checkpoint.print_saved_residuals(lambda *x: layer(*x).sum(), local, *arrays()[:3])
    assert (f"f32[{B},{H},{S}] " in capsys.readouterr().out) == (remat != "minimal")


def test_the_platform_is_that_of_the_mesh():
    assert attention.platform() == "cpu"
    device = AbstractDevice("TPU v5 lite", 1, platform="tpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((4,), ("fsdp",), abstract_device=device)):
        assert attention.platform() == "tpu"
    with jax.set_mesh(tiny.mesh(fsdp=2)):
        assert attention.platform() == "cpu"


def chosen(asked, shape=SHAPE, prefix=False, rate=0.0, scores=False):
    return attention.choose(asked, shape, prefix=prefix, rate=rate, scores=scores)


def test_auto_takes_what_the_platform_has(monkeypatch):
    assert chosen("auto") == "plain"
    monkeypatch.setattr(attention, "_cudnn_error", lambda _: "")
    for platform, kernel in {"tpu": "splash", "gpu": "cudnn", "metal": "plain"}.items():
        monkeypatch.setattr(attention, "platform", lambda platform=platform: platform)
        assert chosen("auto") == kernel and chosen("plain") == "plain"


@pytest.mark.parametrize(
    "asked, platform, said, case",
    [
        ("splash", "cpu", "runs on a TPU, not on cpu", {}),
        ("cudnn", "tpu", "runs on a GPU, not on tpu", {}),
        ("cudnn", "gpu", "cannot: ", {}),  # neither float32 nor without its library
        ("splash", "tpu", "multiple of 128 positions, not of 200", {"shape": (200,)}),
        ("splash", "tpu", "no later positions in a prefix", {"prefix": True}),
        ("splash", "tpu", "needs model.attention_dropout 0 and found 0.1", {"rate": 0.1}),
        ("splash", "tpu", "has no attention scores in memory", {"scores": True}),
        ("splash", "tpu", r"whole on a device \(mesh.sequence 1\)", {"sequence": 2}),
    ],
)
def test_what_a_kernel_cannot_do(monkeypatch, asked, platform, said, case):
    """By name an error in one line; "auto" takes the plain one."""
    monkeypatch.setattr(attention, "platform", lambda: platform)
    if "shape" in case:
        case = case | {"shape": SHAPE._replace(length=case["shape"][0])}
    case = dict(case)
    with jax.set_mesh(tiny.mesh(sequence=case.pop("sequence", 1))):
        with pytest.raises(UserError, match=f"^config.model.attention: found '{asked}', .*{said}"):
            chosen(asked, **case)
        if attention.FASTEST.get(platform, asked) == asked:
            assert chosen("auto", **case) == "plain"


def test_an_unknown_kernel_is_refused():
    with pytest.raises(UserError, match=r"config.model.attention: found 'flash', expected one of"):
        tiny.transformer(attention="flash")


def test_tpus_have_the_kernel():
    """Compiled ahead of time for rows over two chips and heads over two."""
    pytest.importorskip("libtpu")
    target = plan.target("v5e:2x2")
    mesh = sharding.make_mesh(sharding.parse_mesh("fsdp:2,tensor:2"), target.devices)
    layout = NamedSharding(mesh, PartitionSpec())
    arguments = [
        jax.ShapeDtypeStruct((B, S, n, 64), "bfloat16", sharding=layout) for n in (H, K, K, H)
    ]

    def gradients(ids, *inputs):
        return value_and_gradients(lambda *x: attention.splash(*x, ids, False, True), *inputs)

    with jax.set_mesh(mesh):
        assert chosen("auto") == "splash"
        ids = jax.ShapeDtypeStruct((B, S), "int32", sharding=layout)
        text = jax.jit(gradients).lower(ids, *arguments).compile().as_text()
    for name in ("mha_fwd", "mha_dq", "mha_dkv"):
        assert f"splash_{name}" in text
