"""Linear models on hashed sparse features: logistic regression and SVM, by the loss chosen."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class HashedLinear(nn.Module):
    """``sum_k values[..., k] * kernel[features[..., k]] + bias``: ``[..., K] -> [..., C]``.

    The same model classifies texts (``features [B, K]``) and words (``features [B, S, K]``).
    The kernel starts at zero, so that the convex losses start at one known point.
    """

    num_features: int
    num_classes: int

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
        rows = jnp.take(kernel, batch["features"], axis=0)
        logits = jnp.einsum("...kc,...k->...c", rows, batch["values"])
        return logits + bias.reshape((1,) * (logits.ndim - 1) + bias.shape)
