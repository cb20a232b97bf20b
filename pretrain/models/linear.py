"""Linear models on hashed sparse features, and averaged embeddings of such features."""

import flax.linen as nn
import jax
import jax.numpy as jnp


@jax.custom_vjp
def weighted_rows(kernel: jax.Array, features: jax.Array, values: jax.Array) -> jax.Array:
    """``sum_k values[..., k, c] * kernel[features[..., k], c]``: ``[..., K] -> [..., C]``.

    ``values`` (``[..., K, C]``, or 1 in place of C) are data and get no gradient. Training takes
    one of the K at a time: to gather all rows first, as prediction does, needs K times the memory
    and, on a CPU, twice the time.
    """
    return (jnp.take(kernel, features, axis=0) * values).sum(-2)


def _forward(kernel: jax.Array, features: jax.Array, values: jax.Array):
    def add(total, inputs):
        ids, weights = inputs
        return total + kernel[ids] * weights, None

    total = jnp.zeros((*features.shape[:-1], kernel.shape[1]), kernel.dtype)
    total = jax.lax.scan(add, total, _by_slot(features, values))[0]
    return total, (kernel, features, values)


def _backward(saved: tuple[jax.Array, ...], grad: jax.Array):
    kernel, features, values = saved

    def scatter(total, inputs):  # in place; the scan's own gradient would add K whole kernels
        ids, weights = inputs
        return total.at[ids].add(grad * weights), None

    total = jax.lax.scan(scatter, jnp.zeros_like(kernel), _by_slot(features, values))[0]
    return total, None, None


weighted_rows.defvjp(_forward, _backward)


def _by_slot(features: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.moveaxis(features, -1, 0), jnp.moveaxis(values, -2, 0)


def add_lanes(x: jax.Array, document: jax.Array) -> jax.Array:
    """``[B, L, C] -> [B, L, C]``: at the first lane of each document the sum over its lanes.

    ``document [B, L]``: the first lane of the document that a lane belongs to.
    """
    return jax.vmap(lambda x, first: jnp.zeros_like(x).at[first].add(x))(x, document)


class HashedLinear(nn.Module):
    """``weighted_rows(kernel, features, values) + bias``: ``features [B, L, K] -> [B, L, C]``.

    The same model classifies words, one a lane, and documents, of several lanes each: a batch with
    ``document [B, L]`` has the logits of a document at its first lane.

    Attributes:
      num_features: V, ids of features.
      num_classes: C.
      embedding_size: 0: linear. The kernel starts at zero, so that the convex losses start at one
        known point. Else features are embedded and the embeddings' weighted sum is classified:
        fastText (Joulin et al. 2016) where the weights are a mean's.
      beta: less than 1: predictions are made with ``(1 - beta) * mean |kernel| + beta * kernel``,
        the mean over each class's features, and ``beta * bias`` (NBSVM; Wang & Manning 2012):
        between naive Bayes, without a bias where classes are equally frequent, and the SVM.
    """

    num_features: int
    num_classes: int
    embedding_size: int = 0
    beta: float = 1.0

    def example(self) -> dict[str, jax.Array]:
        """A batch to initialise with."""
        return {"features": jnp.ones((1, 1, 8), jnp.int32), "values": jnp.ones((1, 1, 8))}

    def forward_flops(self, seq_len: int) -> int:
        """Of one row of ``seq_len`` features; of the layer behind embeddings too few to count."""
        return 2 * seq_len * (self.embedding_size or self.num_classes)

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, deterministic: bool = True) -> jax.Array:
        features, values = batch["features"], batch["values"]
        values = values[..., None] if values.ndim == features.ndim else values
        if self.embedding_size:
            scale = 1.0 / self.embedding_size
            table = self.param(
                "embedding",
                nn.with_logical_partitioning(
                    lambda key, shape: jax.random.uniform(key, shape, minval=-scale, maxval=scale),
                    ("features", "embed"),
                ),
                (self.num_features, self.embedding_size),
            )
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(
                nn.initializers.zeros, ("embed" if self.embedding_size else "features", "classes")
            ),
            (self.embedding_size or self.num_features, self.num_classes),
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, ("classes",)),
            (self.num_classes,),
        )
        if deterministic and self.beta < 1.0:  # features that training did not see stay at zero
            seen = jnp.maximum((kernel != 0).sum(0, keepdims=True), 1).astype(kernel.dtype)
            mean = jnp.abs(kernel).sum(0, keepdims=True) / seen
            kernel = jnp.where(kernel != 0, (1.0 - self.beta) * mean + self.beta * kernel, 0.0)
            bias = self.beta * bias
        total = weighted_rows(table if self.embedding_size else kernel, features, values)
        if "document" in batch:
            total = add_lanes(total, batch["document"])
        logits = total @ kernel if self.embedding_size else total
        return logits + bias.reshape((1,) * (logits.ndim - 1) + bias.shape)
