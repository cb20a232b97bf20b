"""Linear models on hashed sparse features: logistic regression and SVM, by the loss chosen."""

import flax.linen as nn
import jax
import jax.numpy as jnp


@jax.custom_vjp
def weighted_rows(kernel: jax.Array, features: jax.Array, values: jax.Array) -> jax.Array:
    """``sum_k values[..., k] * kernel[features[..., k]]``: ``[..., K] -> [..., C]``.

    ``values`` are data and get no gradient. Training takes one of the K at a time: to gather all
    rows first, as prediction does, needs K times the memory and, on a CPU, twice the time.
    """
    return jnp.einsum("...kc,...k->...c", jnp.take(kernel, features, axis=0), values)


def _forward(kernel: jax.Array, features: jax.Array, values: jax.Array):
    def add(total, inputs):
        ids, weights = inputs
        return total + kernel[ids] * weights[..., None], None

    total = jnp.zeros((*features.shape[:-1], kernel.shape[1]), kernel.dtype)
    total = jax.lax.scan(add, total, _by_slot(features, values))[0]
    return total, (kernel, features, values)


def _backward(saved: tuple[jax.Array, ...], grad: jax.Array):
    kernel, features, values = saved

    def scatter(total, inputs):  # in place; the scan's own gradient would add K whole kernels
        ids, weights = inputs
        return total.at[ids].add(grad * weights[..., None]), None

    total = jax.lax.scan(scatter, jnp.zeros_like(kernel), _by_slot(features, values))[0]
    return total, None, None


weighted_rows.defvjp(_forward, _backward)


def _by_slot(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(jnp.moveaxis(x, -1, 0) for x in arrays)


class HashedLinear(nn.Module):
    """``weighted_rows(kernel, features, values) + bias``: ``[..., K] -> [..., C]``.

    The same model classifies texts (``features [B, K]``) and words (``features [B, S, K]``).
    The kernel starts at zero, so that the convex losses start at one known point.
    """

    num_features: int
    num_classes: int

    def example(self) -> dict[str, jax.Array]:
        """A batch to initialise with."""
        return {"features": jnp.ones((1, 8), jnp.int32), "values": jnp.ones((1, 8))}

    def forward_flops(self, seq_len: int) -> int:
        """Of one row of ``seq_len`` features."""
        return 2 * seq_len * self.num_classes

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, deterministic: bool = True) -> jax.Array:
        del deterministic  # no dropout: the losses are convex
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(nn.initializers.zeros, ("features", "classes")),
            (self.num_features, self.num_classes),
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, ("classes",)),
            (self.num_classes,),
        )
        logits = weighted_rows(kernel, batch["features"], batch["values"])
        return logits + bias.reshape((1,) * (logits.ndim - 1) + bias.shape)
