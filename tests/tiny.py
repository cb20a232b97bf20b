"""Small models and batches for the tests."""

import dataclasses
import functools

import jax
import numpy as np
import optax

from pretrain import optim, schema, sharding
from pretrain.models.families import language_model, pair_model
from pretrain.models.heads import Classifier, Discriminator, LanguageModel, Tagger
from pretrain.models.transformer import Transformer, TransformerConfig
from pretrain.objectives.causal import CausalLM
from pretrain.objectives.labelled import Classification, Tagging
from pretrain.objectives.mlm import MaskedLM
from pretrain.objectives.pairs import SentencePairLM
from pretrain.objectives.rtd import ReplacedTokenDetection

VOCAB = 64
SPECIAL = (0, 1, 2, 3, 4)
SHAPE = dict(vocab_size=VOCAB, num_layers=2, hidden_size=16, num_heads=2, ffn_size=32)


def transformer(**overrides) -> TransformerConfig:
    section = {k: v for k, v in schema.MODELS["transformer"].items()}
    section |= SHAPE | {"dropout": 0.0, "attention_dropout": 0.0} | overrides
    return TransformerConfig(**section)


def lm(**overrides) -> LanguageModel:
    return language_model("transformer", transformer(**overrides))


def mlm(**overrides) -> MaskedLM:
    return MaskedLM(lm(**overrides), 4, SPECIAL, VOCAB, 0.15, 0.8, 0.1)


def pairs(**overrides) -> SentencePairLM:
    model = pair_model("transformer", transformer(**overrides))
    return SentencePairLM(model, 4, SPECIAL, VOCAB, 0.3, 0.8, 0.1)


def rtd(**overrides) -> ReplacedTokenDetection:
    model = Discriminator(Transformer(transformer(**overrides)))
    return ReplacedTokenDetection(model, 4, SPECIAL, VOCAB, 0.15, 0.0, 1.0)


def causal(chunk_size: int = 128, **overrides) -> CausalLM:
    return CausalLM(lm(causal=True, **overrides), chunk_size)


def classification(num_classes: int = 3, pool: str = "first", **overrides) -> Classification:
    model = Classifier(Transformer(transformer(**overrides)), num_classes, pool, 0.0)
    return Classification(model, "softmax", 0.0, 1.0)


def tagging(num_classes: int = 3, **overrides) -> Tagging:
    model = Tagger(Transformer(transformer(**overrides)), num_classes, 0.0)
    return Tagging(model, "softmax", 0.0, 1.0)


def adamw(**overrides):
    return optim.create("adamw", **(schema.OPTIMIZERS["adamw"] | overrides))


def sgd():
    """Gradients alone: no momentum, no clipping."""
    return optim.create("sgd", **schema.OPTIMIZERS["sgd"] | {"momentum": 0.0, "clip": 0.0})


def mesh(**sizes):
    """A mesh of just as many devices as the sizes need."""
    sizes = dict.fromkeys(sharding.AXES, 1) | sizes
    count = int(np.prod(list(sizes.values())))
    return sharding.make_mesh(sizes, jax.devices()[:count])


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh asks of a device: one of slices of a TPU, ``side`` x ``side`` chips each."""

    id: int
    side: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0

    @property
    def slice_index(self) -> int:
        return self.id // self.side**2

    @property
    def process_index(self) -> int:
        return self.id // 8

    @property
    def coords(self) -> tuple[int, int, int]:
        return self.id % self.side, self.id % self.side**2 // self.side, 0


def lm_batch(rows: int = 8, seq_len: int = 24, seed: int = 0, padded: bool = True) -> dict:
    """Rows of two packed documents of random lengths, some padding behind."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, VOCAB, (rows, seq_len)).astype(np.int32)
    segment_ids = np.ones((rows, seq_len), np.int32)
    positions = np.tile(np.arange(seq_len, dtype=np.int32), (rows, 1))
    for row in range(rows):
        cut = int(rng.integers(4, seq_len // 2))
        end = int(rng.integers(seq_len // 2 + 4, seq_len)) if padded else seq_len
        segment_ids[row, cut:], segment_ids[row, end:] = 2, 0
        positions[row, cut:] -= cut
        tokens[row, [0, cut]], tokens[row, [cut - 1, end - 1]] = 2, 3
        tokens[row, end:], positions[row, end:] = 0, 0
    return {"tokens": tokens, "segment_ids": segment_ids, "positions": positions}


def pair_batch() -> dict:
    """Rows of two texts; one is no pair, one counts for nothing, one for a half."""
    batch = lm_batch()
    real = batch["segment_ids"] > 0
    rng = np.random.default_rng(0)
    return {
        "tokens": batch["tokens"],
        "token_types": (batch["segment_ids"] == 2).astype(np.int32),
        "segment_ids": real.astype(np.int32),
        "positions": np.arange(24, dtype=np.int32)[None] * real,
        "pair_labels": rng.integers(0, 2, 8).astype(np.int32),
        "pair_weights": np.array([1, 1, 1, 0, 1, 1, 1, 1], np.float32),
        "weights": np.array([1, 1, 0, 1, 0.5, 1, 1, 1], np.float32),
    }


def task_batch(rows: int = 8, seq_len: int = 24, num_classes: int = 3, seed: int = 0) -> dict:
    """One padded document a row, with the labels of both labelled tasks kept apart by name."""
    rng = np.random.default_rng(seed)
    batch = lm_batch(rows, seq_len, seed)
    batch["segment_ids"] = np.minimum(batch["segment_ids"], 1)
    del batch["positions"]
    batch["labels"] = rng.integers(0, num_classes, rows).astype(np.int32)
    batch["weights"] = rng.uniform(0.2, 1.0, rows).astype(np.float32)
    return batch


def tag_batch(rows: int = 8, seq_len: int = 24, num_classes: int = 3, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    batch = task_batch(rows, seq_len, num_classes, seed)
    batch["labels"] = rng.integers(0, num_classes, (rows, seq_len)).astype(np.int32)
    real = batch["tokens"] >= 5
    batch["label_mask"] = (real & (rng.random(real.shape) < 0.5)).astype(np.float32)
    batch["weights"] = np.ones(rows, np.float32)
    return batch


def replace_model(objective, **overrides):
    """The objective with other options of its transformer."""
    model = objective.model
    options = dataclasses.replace(model.trunk.config, **overrides)
    if isinstance(model, LanguageModel):
        return dataclasses.replace(objective, model=language_model("transformer", options))
    return dataclasses.replace(objective, model=model.clone(trunk=Transformer(options)))


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(objective, params, batch):
    """``(loss, (weight, metrics)), gradient``, dropout's key always the same."""

    def loss(params):
        total, weight, metrics = objective.loss(params, batch, jax.random.key(0))
        return total, (weight, metrics)

    return jax.value_and_grad(loss, has_aux=True)(params)


def overfit(objective, params, batch, steps: int) -> dict[str, float]:
    """The mean metrics of one corrupted batch after so many steps of Adam on it."""
    adam = optax.adam(1e-2)

    def step(carry, _):
        params, state = carry
        (_, (_, metrics)), gradient = value_and_gradient(objective, params, batch)
        updates, state = adam.update(gradient, state)
        return (optax.apply_updates(params, updates), state), metrics

    with jax.numpy_dtype_promotion("standard"):  # optax's
        _, metrics = jax.jit(lambda p: jax.lax.scan(step, (p, adam.init(p)), None, steps))(params)
    return {name: float(value[-1] / weight[-1]) for name, (value, weight) in metrics.items()}
