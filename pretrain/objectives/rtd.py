"""Replaced-token detection (Clark et al. 2020), the replacements sampled from a small generator."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pretrain.models.heads import Discriminator, LanguageModel
from pretrain.objectives.base import Batch, Metrics
from pretrain.objectives.language import weigh
from pretrain.objectives.mlm import MaskedLM

# Parts of a trunk that generator and discriminator share: those of the discriminator serve both.
EMBEDDINGS = ("word", "position", "type", "embedding_norm")


def generator_params(params: dict) -> dict:
    """Those of the generator as a language model by itself."""
    own, trunk = params["generator"], params["trunk"]
    shared = {name: trunk[name] for name in EMBEDDINGS if name in trunk}
    return own | {"trunk": own["trunk"] | shared}


@dataclasses.dataclass(frozen=True)
class ReplacedTokenDetection(MaskedLM):
    """Tells of every token whether it was replaced; ``model`` gives one logit a token.

    The ``generator`` learns, as a masked language model, what stands at the chosen positions, and
    one sample of its distribution replaces the piece at each: ordinary pieces only, and no gradient
    goes through. The loss is that of the generator, over the chosen positions, plus
    ``discriminator_weight`` times that of the discriminator, over the real tokens. Its parameters
    are under ``generator``, but for `EMBEDDINGS`, which are the trunk's.

    Without a generator replacements are uniform over the pieces: random token substitution (Di
    Liello et al. 2022).

    One that happens to be the original counts as the original. ``loss`` among the metrics is the
    discriminator's, ``generator_loss`` and ``masked_accuracy`` are the generator's; ``detected`` is
    the accuracy on the replaced tokens.
    """

    name = "rtd"
    held_out: ClassVar[dict] = {"word_start": b""}  # the rest is part of what is detected

    model: Discriminator
    generator: LanguageModel | None = dataclasses.field(default=None, kw_only=True)
    discriminator_weight: float = dataclasses.field(default=50.0, kw_only=True)

    @property
    def scores(self) -> tuple[str, ...]:
        found = ("loss", "accuracy", "detected")
        return (*found, "generator_loss", "masked_accuracy") if self.generator else found

    def init(self, key: jax.Array) -> dict:
        variables = super().init(key)
        if self.generator is None:
            return variables
        own = self._masked_lm.init(jax.random.fold_in(key, 1))["params"]
        own["trunk"] = {k: v for k, v in own["trunk"].items() if k not in EMBEDDINGS}
        return {"params": variables["params"] | {"generator": own}}

    @property
    def _masked_lm(self) -> MaskedLM:
        """The generator's objective."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(MaskedLM)}
        return MaskedLM(**fields | {"model": self.generator})

    def corrupt(self, batch: Batch, key: jax.Array) -> Batch:
        batch = super().corrupt(batch, key)
        if self.generator is None:
            return batch
        # Each loss is divided by its own weight over the whole batch. What a step divides by is the
        # number of real tokens, so that the generator's loss is scaled by how many more these are.
        real = weigh((batch["segment_ids"] > 0).astype(jnp.float32), batch).sum()
        scale = real / jnp.maximum(weigh(batch["masked_weights"], batch).sum(), 1.0)
        return batch | {"generator_scale": jnp.full(batch["tokens"].shape[0], scale)}

    def _mask(self, batch: Batch, rate: float, keys: jax.Array) -> Batch:
        """Also adds ``originals [B, S]``, and ``sample_seeds [B]`` uint32 for the generator."""
        added = {"originals": batch["tokens"]}
        if self.generator is not None:
            seed = jax.vmap(lambda key: jax.random.bits(jax.random.fold_in(key, 3)))
            added["sample_seeds"] = seed(keys)
        return super()._mask(batch, rate, keys) | added

    def combined(self, metrics: Metrics, batch: Batch) -> jax.Array:
        loss, _ = metrics["loss"]
        if self.generator is None:
            return loss
        scale = batch["generator_scale"][0]
        return scale * metrics["generator_loss"][0] + self.discriminator_weight * loss

    def metrics(self, params: dict, batch: Batch, **kwargs) -> Metrics:
        if self.generator is None:
            return super().metrics(params, batch, **kwargs)
        apart = {  # dropout that the discriminator does not share
            name: jax.random.fold_in(key, 1) for name, key in kwargs.get("rngs", {}).items()
        }
        batch, found = self.generate(params, batch, **kwargs | {"rngs": apart})
        return super().metrics(params, batch, **kwargs) | {
            "generator_loss": found["loss"],
            "masked_accuracy": found["masked_accuracy"],
        }

    def generate(self, params: dict, batch: Batch, **kwargs) -> tuple[Batch, Metrics]:
        """The batch with the generator's samples in place of the masks, and its metrics."""
        own, masked_lm = generator_params(params), self._masked_lm
        hidden = masked_lm.forward(own, batch, **kwargs)
        logits = masked_lm.masked_logits(own, hidden, batch)
        labels, positions = batch["masked_labels"], batch["masked_positions"]
        sampled = jnp.where(
            batch["masked_weights"] > 0, self.sample(logits, batch["sample_seeds"]), labels
        )
        rows = jnp.arange(labels.shape[0])[:, None]
        tokens = batch["originals"].at[rows, positions].set(sampled)
        return batch | {"tokens": tokens}, masked_lm.score_logits(logits, batch)

    def sample(self, logits: jax.Array, seeds: jax.Array) -> jax.Array:
        """Ordinary pieces int32 ``[B, K]`` from the softmax of ``logits [B, K, V]``."""
        barred = np.zeros(logits.shape[-1], bool)
        barred[self.num_pieces :] = barred[list(self.special_ids)] = True
        logits = jnp.where(barred, -jnp.inf, jax.lax.stop_gradient(logits))
        draw = jax.vmap(lambda seed, row: jax.random.categorical(jax.random.key(seed), row))
        return draw(seeds, logits).astype(jnp.int32)

    def score(self, params: dict, logits: jax.Array, batch: Batch) -> Metrics:
        del params
        replaced = batch["tokens"] != batch["originals"]
        weights = weigh((batch["segment_ids"] > 0).astype(jnp.float32), batch)
        losses = optax.sigmoid_binary_cross_entropy(logits, replaced.astype(jnp.float32))
        hits = ((logits > 0) == replaced).astype(jnp.float32)
        changed = weights * replaced.astype(jnp.float32)
        total = weights.sum()
        return {
            "loss": ((losses * weights).sum(), total),
            "accuracy": ((hits * weights).sum(), total),
            "detected": ((hits * changed).sum(), changed.sum()),
        }

    def row_weights(self, logits: jax.Array, batch: Batch) -> jax.Array:
        del logits
        return weigh((batch["segment_ids"] > 0).astype(jnp.float32), batch).sum(-1)

    def train_flops(self, seq_len: int) -> float:
        forward = self.model.forward_flops(seq_len)
        if self.generator is not None:
            forward += self.generator.forward_flops(seq_len, self.num_predicted(seq_len))
        return 3.0 * forward
