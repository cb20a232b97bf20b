"""What the objectives on raw text share, a cross-entropy in chunks among it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from pretrain.errors import UserError
from pretrain.models.heads import LanguageModel
from pretrain.objectives.base import Batch, Metrics, Objective

MASKED = ("masked_loss", "masked_accuracy")


@dataclasses.dataclass(frozen=True)
class Language(Objective):
    """An objective over rows of packed documents; `score` is what a subclass adds."""

    scores: ClassVar[tuple[str, ...]]  # names of what is measured on held-out rows

    model: LanguageModel

    def init(self, key: jax.Array) -> dict:
        return self.model.init(key, jnp.zeros((1, 8), jnp.int32), method="initialise")

    def forward(self, params: dict, batch: Batch, **kwargs) -> jax.Array:
        """``[B, S, D]``; ``kwargs`` go to the model."""
        return self.model.apply(
            {"params": params},
            batch["tokens"],
            segment_ids=batch["segment_ids"],
            positions=batch["positions"],
            **kwargs,
        )

    def row_weights(self, hidden: jax.Array, batch: Batch) -> jax.Array:
        return self.predicted(hidden, batch)[1].sum(-1)

    def predicted(self, hidden: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """``hidden [B, S, D]`` where a token is predicted, ``[B, K, D]``, and weights ``[B, K]``.

        All real positions, unless a subclass knows better.
        """
        return hidden, weigh((batch["segment_ids"] > 0).astype(jnp.float32), batch)

    def num_predicted(self, seq_len: int) -> int:
        """Positions of a row that get logits."""
        return seq_len

    def train_flops(self, seq_len: int) -> float:
        return 3.0 * self.model.forward_flops(seq_len, self.num_predicted(seq_len))

    def score_tokens(
        self,
        params: dict,
        hidden: jax.Array,
        labels: jax.Array,
        batch: Batch,
        chunk_size: int,
        unseen: jax.Array | None = None,
    ) -> Metrics:
        """Loss and accuracy of ``labels [B, S]`` as `predicted` weighs them.

        ``unseen [B, S]`` weighs those that nothing but the model tells, for ``masked_loss`` and
        ``masked_accuracy``.
        """
        losses, hits = self.cross_entropy(params, hidden, labels, chunk_size)
        weights = {"": self.predicted(hidden, batch)[1]}
        if unseen is not None:
            weights["masked_"] = weigh(unseen, batch)
        return {
            f"{prefix}{name}": ((x * of).sum(), of.sum())
            for prefix, of in weights.items()
            for name, x in (("loss", losses), ("accuracy", hits))
        }

    def logits_of(self, params: dict, rows: int) -> Callable[[jax.Array], jax.Array]:
        """Logits of a part of a batch of so many ``rows``, for loops over parts."""
        matrix = self.model.apply({"params": params}, rows, method="matrix")
        return lambda x: self.model.apply({"params": params}, x, matrix, method="logits")

    def cross_entropy(
        self, params: dict, hidden: jax.Array, labels: jax.Array, chunk_size: int
    ) -> tuple[jax.Array, jax.Array]:
        """Of every position of ``hidden [B, S, D]``: loss, and 1 for a hit, float32 ``[B, S]``.

        Never holds all logits of long rows: those of ``chunk_size`` positions a row exist at a
        time. A chunk has positions of every row, so that each device works on its own rows.
        """

        to_logits = self.logits_of(params, len(hidden))

        def score(hidden, labels):
            logits = to_logits(hidden)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses, (logits.argmax(-1) == labels).astype(jnp.float32)

        return in_chunks(score, (hidden, labels), chunk_size)


def in_chunks(function: Callable[..., Any], arrays: Sequence[jax.Array], chunk_size: int) -> Any:
    """``function`` of ``[B, S, ...]`` arrays by the position, evaluated ``chunk_size`` at a time.

    What it computes within a chunk is not kept for the backward pass. Its results are
    ``[B, s, ...]`` for ``s`` positions; these ones ``[B, S, ...]``.
    """
    rows, length = arrays[0].shape[:2]
    count = -(-length // chunk_size)

    def chunks(x):
        """``[B, S, ...] -> [count, B, S / count, ...]``."""
        x = jnp.pad(x, [(0, 0), (0, -length % count)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, -1, count, *x.shape[2:]), 2, 0)

    body = jax.checkpoint(lambda carry, chunk: (carry, function(*chunk)))
    _, results = jax.lax.scan(body, None, tuple(map(chunks, arrays)))

    def whole(x):
        """``[count, B, S / count, ...] -> [B, S, ...]``."""
        return jnp.moveaxis(x, 0, 2).reshape(rows, -1, *x.shape[3:])[:, :length]

    return jax.tree.map(whole, results)


def content_keys(tokens: jax.Array, seed: int) -> jax.Array:
    """A random key for each row of ``tokens [B, S]``: a function of these alone."""
    place = jnp.arange(tokens.shape[1], dtype=jnp.uint32)[None, :]
    odd = place * jnp.uint32(0x9E3779B2) + jnp.uint32(1)  # distinct multipliers
    digest = (tokens.astype(jnp.uint32) * odd).sum(-1)
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(digest)


def check_writes(objective: Language) -> None:
    """`UserError` unless the model has a decoder that reads an encoder."""
    if (found := objective.model.trunk.config.reads) != "decoder":
        raise UserError(
            f"config.model.reads: found {found!r} with objective.name {objective.name!r}, expected "
            "decoder"
        )


def weigh(weights: jax.Array, batch: Batch) -> jax.Array:
    """Weights ``[B, K]`` of positions times those of their rows, where a batch has any."""
    return weights * batch["weights"][:, None] if "weights" in batch else weights
