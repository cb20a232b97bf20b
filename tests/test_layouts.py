"""Every family on every kind of mesh learns what it learns on one device, and nothing is idle."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from pretrain import config as configs
from pretrain import schema, sharding, state, trees
from pretrain.costs import costs
from pretrain.masked import generator_options
from pretrain.models.bilstm import BiLSTM, BiLSTMConfig
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.models.families import language_model, pair_model
from pretrain.models.heads import Tagger
from pretrain.models.linear import HashedLinear
from pretrain.models.mobilebert import MobileBertConfig
from pretrain.models.transformer_xl import TransformerXLConfig
from pretrain.objectives.distill import Distilled, Terms
from pretrain.objectives.labelled import Classification, Tagging
from pretrain.objectives.mlm import MaskedLM
from pretrain.objectives.pairs import SentencePairLM
from pretrain.objectives.recurrent import RecurrentLM
from pretrain.objectives.spans import Spans
from tests import tiny

ROWS, LENGTH, WIDTH = 8, 16, 32
SHAPE = dict(
    num_layers=1, hidden_size=WIDTH, num_heads=8, ffn_size=64, vocab_size=tiny.VOCAB,
    dropout=0.0,
)  # fmt: skip
LLAMA = dict(num_kv_heads=4, position="rotary", norm="rms", norm_position="pre", gated=True)
LLAMA |= dict(bias=False, tied=False, head_transform=False, head_bias=False, type_vocab_size=0)
MASKING = (4, tiny.SPECIAL, tiny.VOCAB, 0.15, 0.8, 0.1)
SMALL = ("linear", "bilstm")  # no positions to split
SGD = tiny.sgd()
LR = 0.3


@dataclasses.dataclass(frozen=True)
class Masked(MaskedLM):
    """Of batches that are masked already: what a step draws is compared in ``test_state.py``."""

    def corrupt(self, batch, key):
        del key
        return batch


def options(kind, family, **changes):
    return kind(**schema.MODELS[family] | SHAPE | changes)


def rtd():
    generator = generator_options(tiny.transformer(**SHAPE), 0.5, layers=1)
    generator = language_model("transformer", generator)
    return dataclasses.replace(tiny.rtd(**SHAPE), generator=generator)


def spans():
    model = options(EncoderDecoderConfig, "encoder_decoder", attention_dropout=0.0)
    return Spans(language_model("encoder_decoder", model), 4, LENGTH)


def transformer_xl():
    model = options(TransformerXLConfig, "transformer_xl", mem_len=LENGTH, cutoffs="16", div_val=2)
    model = language_model("transformer_xl", model)
    return RecurrentLM(model, 4, model)


def mobilebert():
    changes = dict(embedding_size=16, bottleneck_size=16, num_ffns=2, attention_dropout=0.0)
    model = options(MobileBertConfig, "mobilebert", **changes)
    return Masked(language_model("mobilebert", model), *MASKING)


def bilstm():
    fields = dict(vocab_size=tiny.VOCAB, embedding_size=16, num_layers=1, hidden_size=32)
    model = BiLSTMConfig(**fields, characters="cnn", character_size=16, dropout=0.0)
    return Tagging(Tagger(BiLSTM(model), 3, 0.0), "softmax", 0.0, 1.0, crf=True)


def distilled():
    """From a wider teacher."""
    off = {f.name: configs.distillation()[f.name] for f in dataclasses.fields(Terms)}
    terms = Terms(**off | {"hidden": 1.0, "logits": 1.0, "projection": "shared"})
    return Distilled(tiny.mlm(**SHAPE), tiny.mlm(**SHAPE | {"hidden_size": 64}), terms, (0,), 0, 4)


FAMILIES = {
    "mlm": Masked(tiny.lm(**SHAPE), *MASKING),
    "causal": tiny.causal(chunk_size=4, **SHAPE | LLAMA),
    "mobilebert": mobilebert(),
    "transformer_xl": transformer_xl(),
    "encoder_decoder": spans(),
    "linear": Classification(HashedLinear(64, 3, embedding_size=16), "softmax", 0.0, 1.0),
    "bilstm": bilstm(),
}
OTHERS = {  # on the trunk, with heads and losses of their own
    "rtd": rtd(),
    "pairs": SentencePairLM(pair_model("transformer", tiny.transformer(**SHAPE)), *MASKING),
    "classify": tiny.classification(pool="pooler", **SHAPE),
    "tag": tiny.tagging(**SHAPE | LLAMA | {"pooler": "modernbert"}),
    "distilled": distilled(),
}
OBJECTIVES = FAMILIES | OTHERS
MESHES = (
    {"data": 8},
    {"fsdp": 8},
    {"tensor": 8},
    {"fsdp": 4, "tensor": 2},
    {"fsdp": 2, "tensor": 2, "sequence": 2},
)
CASES = [(n, m) for n in FAMILIES for m in MESHES if not (n in SMALL and "sequence" in m)]
CASES += [(name, MESHES[-1]) for name in OTHERS]
CASES += [("causal", {"slices": 2, "fsdp": 2, "fsdp_y": 2})]
# The compiler once made wrong gradients of heads that transform, where all three are above one.
CASES += [("mobilebert", {"data": 2, "fsdp": 2, "tensor": 2})]


def batch_of(name):
    rng = np.random.default_rng(3)
    batch = tiny.lm_batch(ROWS, LENGTH)
    if name in ("mlm", "mobilebert"):
        batch["masked_positions"] = np.tile(np.int32([[1, 2, 9, 10]]), (ROWS, 1))
        batch["masked_labels"] = np.take_along_axis(
            batch["tokens"], batch["masked_positions"], axis=1
        )
        batch["masked_weights"] = rng.integers(0, 2, (ROWS, 4)).astype(np.float32)
        np.put_along_axis(batch["tokens"], batch["masked_positions"], 4, axis=1)
    elif name == "transformer_xl":
        batch["next_token"] = np.arange(5, 5 + ROWS, dtype=np.int32)
    elif name == "encoder_decoder":
        other = tiny.lm_batch(ROWS, LENGTH, seed=1)
        batch |= {"targets": other.pop("tokens")} | {f"target_{k}": v for k, v in other.items()}
        batch["hidden"] = (batch["targets"] % 2).astype(np.float32)
    elif name == "pairs":
        batch["token_types"] = batch["segment_ids"] // 2
        batch["pair_labels"] = np.arange(ROWS, dtype=np.int32) % 2
        batch["pair_weights"] = np.ones(ROWS, np.float32)
    elif name == "classify":
        batch = tiny.task_batch(ROWS, LENGTH)
    elif name in ("tag", "bilstm"):
        batch = tiny.tag_batch(ROWS, LENGTH)
    elif name == "linear":
        batch = {"features": rng.integers(0, 64, (ROWS, 1, 8)).astype(np.int32)}
        batch["values"] = rng.normal(size=(ROWS, 1, 8)).astype(np.float32)
        batch["labels"] = rng.integers(0, 3, (ROWS, 1)).astype(np.int32)
        batch["weights"] = np.ones((ROWS, 1), np.float32)
    if name == "bilstm":
        batch["characters"] = rng.integers(0, 256, (ROWS, LENGTH, 4)).astype(np.uint8)
        batch["word"] = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
        batch["sentence_end"] = batch["word"] == LENGTH - 1
    return batch


def noise(shapes, seed):
    """Parameters without the symmetries of a beginning: norms have biases, heads differ."""
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [rng.normal(0, 0.2, x.shape).astype("f4") for x in leaves])


@functools.lru_cache(2)  # one device's, and those compared with it
def three_steps(name, **sizes):
    """State and metrics after three updates, and the compiled step."""
    objective, batch, mesh = OBJECTIVES[name], batch_of(name), tiny.mesh(**sizes)
    step = state.compile_train_step(objective, SGD, mesh, 1, state.shapes(batch))
    abstract = state.abstract(objective, SGD, mesh, ROWS)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
    teacher = state.abstract_params(objective.init_teacher, mesh)
    live = zeros.replace(params=noise(abstract.params, 0))
    live, taught = (
        jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), values, like)
        for values, like in ((live, abstract), (noise(teacher, 1), teacher))
    )
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    now = jax.device_put((jax.random.key(1), *np.float32([0.3, LR])), replicated)
    rows = sharding.to_global(batch, mesh)
    for _ in range(3):
        live, metrics = step.run(live, rows, *now, taught)
    return live, {k: float(v) / float(w) for k, (v, w) in metrics.items()}, step


def fallbacks(name, mesh):
    """What a dimension of the parameters would have had if that divided it."""
    names = state.parameter_names(OBJECTIVES[name])
    params = trees.flatten(state.abstract(OBJECTIVES[name], SGD, mesh).params)
    found = (sharding.placements(x.shape, names[path], mesh) for path, x in params.items())
    return {placement.note for array in found for placement in array} - {""}


def shown(value):
    return value if isinstance(value, str) else ",".join(f"{k}:{v}" for k, v in value.items())


@pytest.mark.parametrize("name, sizes", CASES, ids=shown)
def test_three_steps_are_those_of_one_device(name, sizes):
    """And each device does its share of the products, where nothing is told to fall back."""
    (want, expected, alone), (got, metrics, step) = three_steps(name), three_steps(name, **sizes)
    want, found = (trees.flatten(jax.device_get(x.params)) for x in (want, got))
    start = trees.flatten(noise(got.params, 0))
    for path, x in found.items():
        moved = np.abs(want[path] - start[path]).max()
        tolerance = 2e-5 * moved + 5e-6
        np.testing.assert_allclose(x, want[path], atol=tolerance, rtol=0, err_msg=path)
    assert metrics == pytest.approx(expected, rel=1e-4)
    mesh = tiny.mesh(**sizes)
    for path, x in trees.flatten(state.abstract(OBJECTIVES[name], SGD, mesh).params).items():
        part = trees.flatten(got.params)[path].addressable_shards[0].data.shape
        assert part == x.sharding.shard_shape(x.shape), path
    if name not in SMALL and not fallbacks(name, mesh):
        flops, whole = (costs(compiled.program.as_text()).flops for compiled in (step, alone))
        assert flops * mesh.size < 1.3 * whole
