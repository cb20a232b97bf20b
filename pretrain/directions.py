"""Directions of descent: what each optimizer makes of a gradient, before the learning rate.

Layers are stacked for a scan, and attention's kernels have two dimensions where others have one.
What an optimizer says of *a matrix* (Muon, Adafactor) or of *a layer's parameters* (LAMB) is meant
for each layer by itself, with heads and their width as one dimension. The logical names of the
dimensions tell: ``("layers", "embed", "heads", "kv")`` are matrices ``[embed, heads * kv]``.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from pretrain.errors import UserError
from pretrain.trees import Names, flatten, merge, nest, split

Transform = optax.GradientTransformation
FACTORED = 128  # Adafactor factors the moments of matrices at least so large in both dimensions


@dataclasses.dataclass(frozen=True)
class Leaves:
    """What an optimizer knows of the parameters by path: the names of their dimensions."""

    names: Mapping[str, Names]

    def is_stacked(self, path: str) -> bool:
        return self.names.get(path, ())[:1] == ("layers",)

    def groups(self, path: str) -> list[tuple[int, ...]]:
        """The dimensions of a layer's array, those of heads and their width as one."""
        names, groups = self.names.get(path, ()), []
        for axis in range(self.is_stacked(path), len(names)):
            if names[axis] == "kv" and axis and names[axis - 1] == "heads":
                groups[-1] += (axis,)
            else:
                groups.append((axis,))
        return groups

    def is_layer_matrix(self, path: str) -> bool:
        """Kernels of the layers of a trunk; not embeddings, heads, biases."""
        *parents, name = path.split("/")
        inside = self.is_stacked(path) or "first_layer" in parents
        return inside and name == "kernel" and len(self.groups(path)) == 2

    def layers(self, path: str, x: jax.Array) -> jax.Array:
        """``[L, ...]``: the array of each layer (one, if none are stacked), dimensions grouped."""
        stack = x.shape[:1] if self.is_stacked(path) else (1,)
        groups = self.groups(path)
        shape = [math.prod(x.shape[axis] for axis in group) for group in groups]
        return x.reshape(*stack, *(shape if groups else x.shape))


def only(chosen: Callable[[str], bool], inner: Transform) -> Transform:
    """``inner`` on the leaves whose path is ``chosen``; no state, and no change, for the others."""

    def init(params):
        return inner.init(split(params, chosen)[0])

    def update(updates, state, params=None):
        ours, others = split(updates, chosen)
        ours, state = inner.update(ours, state, split(params, chosen)[0])
        return merge(ours, others), state

    return Transform(init, update)


def by_layer(leaves: Leaves, inner: Transform) -> Transform:
    """``inner`` on every layer of every leaf by itself, in the shape of `Leaves.layers`.

    Its state, which is to be small, lies whole on every device.
    """

    def init(params):
        flat = flatten(nn.unbox(params))
        return nest(
            {path: jax.vmap(inner.init)(leaves.layers(path, x)) for path, x in flat.items()}
        )

    def update(updates, state, params):
        flat, new, states = flatten(updates), {}, {}
        for path, p in flatten(params).items():
            old = state
            for part in path.split("/"):
                old = old[part]
            arrays = leaves.layers(path, flat[path]), old, leaves.layers(path, p)
            update, states[path] = jax.vmap(inner.update)(*arrays)
            new[path] = update.reshape(p.shape)
        return nest(new), nest(states)

    return Transform(init, update)


def scale_by_uncorrected_adam(
    b1: float, b2: float, eps: float, mu_dtype: str = "float32"
) -> Transform:
    """Adam without bias correction, as in BERT's release: its first steps are longer."""

    def init(params):
        mu, nu = optax.tree.zeros_like(params, dtype=mu_dtype), optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

    def update(updates, state, params=None):
        del params
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        mu = optax.tree.cast(mu, mu_dtype)
        return updates, optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)

    return Transform(init, update)


def _adam(b1: float, b2: float, eps: float, bias_correction: bool, mu_dtype: str) -> Transform:
    if bias_correction:
        return optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)
    return scale_by_uncorrected_adam(b1, b2, eps, mu_dtype)


def adamw(_leaves: Leaves, _decayed, decay: Transform, **adam: Any) -> Transform:
    """Adam with decoupled weight decay (Kingma & Ba 2015; Loshchilov & Hutter 2019)."""
    return optax.chain(_adam(**adam), decay)


def lamb(leaves: Leaves, decayed, decay: Transform, **adam: Any) -> Transform:
    """Adam's steps as long as the parameters of each layer are (You et al. 2020).

    As in its release, parameters without weight decay keep the length of Adam's.
    """
    trust = only(decayed, by_layer(leaves, optax.scale_by_trust_ratio()))
    return optax.chain(_adam(**adam), decay, trust)


def lion(_leaves: Leaves, _decayed, decay: Transform, **momentum: Any) -> Transform:
    """The sign of a momentum (Chen et al. 2023)."""
    return optax.chain(optax.scale_by_lion(**momentum), decay)


def sgd(
    _leaves: Leaves, _decayed, decay: Transform, *, momentum: float, nesterov: bool, mu_dtype: str
) -> Transform:
    """Stochastic gradient descent with momentum (Sutskever et al. 2013); decay is decoupled."""
    trace = optax.trace(momentum, nesterov, mu_dtype) if momentum else optax.identity()
    return optax.chain(trace, decay)


def adafactor(
    leaves: Leaves,
    _decayed,
    decay: Transform,
    *,
    decay_rate: float,
    eps: float,
    update_clip: float,
    relative: bool,
) -> Transform:
    """Adam's second moment as row and column sums, no first (Shazeer & Stern 2018)."""
    parts = [optax.scale_by_factored_rms(True, decay_rate, 0, FACTORED, eps)]
    if update_clip:
        parts.append(optax.clip_by_block_rms(update_clip))
    if relative:
        parts.append(optax.scale_by_param_block_rms())
    return optax.chain(by_layer(leaves, optax.chain(*parts)), decay)


def muon(
    leaves: Leaves, _decayed, decay: Transform, *, momentum: float, rms: float, **adam: Any
) -> Transform:
    """Orthogonalised momentum for the matrices of the layers (Jordan et al. 2024), else AdamW.

    Updates of matrices are scaled to the root mean square ``rms``, about that of Adam's, so that
    all parameters share a learning rate and a weight decay (Liu et al. 2025).
    """
    if not any(map(leaves.is_layer_matrix, leaves.names)):
        raise UserError(
            "config.optimizer.name: found 'muon' with a model that has no matrices in layers to "
            "train, expected adamw"
        )

    def dimensions(updates):
        groups = {path: leaves.groups(path) for path in flatten(updates)}
        return nest({k: optax.contrib.MuonDimensionNumbers(*pair) for k, pair in groups.items()})

    def rescale(path, x):
        rows, columns = leaves.layers(path, x).shape[1:]
        return x * (rms * math.sqrt(max(rows, columns)))

    orthogonal = optax.chain(
        optax.contrib.scale_by_muon(
            beta=momentum, mu_dtype=adam["mu_dtype"], weight_dimension_numbers=dimensions
        ),
        optax.stateless(lambda u, _: nest({k: rescale(k, x) for k, x in flatten(u).items()})),
    )
    return optax.chain(
        only(leaves.is_layer_matrix, orthogonal),
        only(lambda path: not leaves.is_layer_matrix(path), _adam(**adam)),
        decay,
    )


DIRECTIONS: dict[str, Callable[..., Transform]] = {
    "adamw": adamw,
    "lamb": lamb,
    "lion": lion,
    "adafactor": adafactor,
    "muon": muon,
    "sgd": sgd,
}
