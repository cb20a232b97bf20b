"""Optimizers: from summed gradients to new parameters.

What differs between them stands in `pretrain.directions`; what they share, here: clipping, weight
decay by name, layer-wise learning rates, frozen parameters, an average of the parameters. The
learning rate comes from outside (`pretrain.schedules`).
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pretrain import schedules
from pretrain.directions import DIRECTIONS, Leaves, only
from pretrain.errors import UserError
from pretrain.trees import Names, flatten, nest, split

WIDTHS = ("embed", "embed_out", "heads", "mlp")  # dimensions that grow with a model's width
MOMENTS = ("float32", "bfloat16")  # types of a first moment; a second one would stand still
MUP = ("adamw", "lion")  # whose every entry moves by about the learning rate, whatever the gradient


def _scaled(updates: Any, scales: Mapping[str, Any]) -> Any:
    return nest({path: x * scales[path] for path, x in flatten(updates).items()})


def matcher(pattern: str, key: str, paths: Any) -> Callable[[str], bool]:
    """Whether a path matches a regular expression as a whole; `UserError` if none does."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"config.optimizer.{key}: {pattern!r}: {error}") from None
    paths = sorted(paths)
    if not any(map(compiled.fullmatch, paths)):
        raise UserError(
            f"config.optimizer.{key}: found {pattern!r}, which matches no parameter; expected a "
            f"regular expression for whole paths such as {paths[-1] if paths else 'kernel'}"
        )
    return lambda path: compiled.fullmatch(path) is not None


def split_frozen(params: Any, freeze: str) -> tuple[Any, Any]:
    """``(parameters to train, frozen ones)``: those whose path matches ``freeze`` ("": none)."""
    if not freeze:
        return params, {}
    frozen, trained = split(params, matcher(freeze, "freeze", flatten(params)))
    if not trained:
        raise UserError(
            f"config.optimizer.freeze: found {freeze!r}, which matches every parameter; expected "
            "to leave some to train"
        )
    return trained, frozen


def layer_scales(shapes: Mapping[str, Any], names: Mapping[str, Names], decay: float) -> dict:
    """By path, what the learning rate is multiplied with: ``decay`` for every layer further down.

    Heads: 1; the last layer, and a norm behind it: ``decay``; the first of n: ``decay ** n``;
    embeddings, and all else before the layers: ``decay ** (n + 1)`` (Clark et al. 2020, whose
    release puts all but the head one factor lower). An encoder lies below its decoder. Of stacked
    layers: an array ``[n, 1, ...]``.
    """
    leaves, trunks = Leaves(names), {}
    for path, shape in shapes.items():
        if leaves.is_stacked(path):
            stack = path.partition("/layers/")[0]
            first = any(other.startswith(f"{stack}/first_layer/") for other in shapes)
            trunk = stack.removesuffix("/encoder").removesuffix("/decoder")
            trunks.setdefault(trunk, {})[stack] = first, shape[0] + first
    stacked = {path.partition("/layers/")[0] for path in names if leaves.is_stacked(path)}
    if not trunks or stacked.difference(*trunks.values()):
        raise UserError(
            f"config.optimizer.layer_decay: found {decay} with a model without layers, or with all "
            "layers of a stack under optimizer.freeze; expected 1.0"
        )

    def depth(path: str, stacks: Mapping[str, tuple[bool, int]]) -> int | np.ndarray:
        """0 for embeddings, from 1 on for layers."""
        below = 0
        for stack in sorted(stacks, reverse=True):  # the encoder, then the decoder
            first, count = stacks[stack]
            if path.startswith(f"{stack}/"):
                part = path.removeprefix(f"{stack}/").partition("/")[0]
                if part == "layers":
                    return np.arange(below + first, below + count) + 1
                return below + {"first_layer": 1, "final_norm": count}.get(part, 0)
            below += count
        return 0

    def scale(path: str) -> float | np.ndarray:
        trunk = next((t for t in trunks if path.startswith(f"{t}/")), None)
        if trunk is None:
            return 1.0
        total = sum(count for _, count in trunks[trunk].values())
        power = total + 1 - depth(path, trunks[trunk])
        if np.ndim(power):
            power = power.reshape(-1, *(1,) * (len(shapes[path]) - 1))
        return np.float32(decay) ** power

    return {path: scale(path) for path in shapes}


def width_scales(names: Mapping[str, Names], ratio: float) -> dict[str, float]:
    """By path, what muP multiplies the learning rate of Adam with (Yang et al. 2022, Table 8).

    ``1 / ratio`` for matrices whose two dimensions both grow with the width of the model, which is
    ``ratio`` times its base's; 1 for embeddings, what makes logits, norms and biases.
    """
    leaves = Leaves(names)

    def scale(path: str) -> float:
        wide = [any(names[path][axis] in WIDTHS for axis in g) for g in leaves.groups(path)]
        return 1.0 / ratio if sum(wide) == 2 else 1.0

    return {path: scale(path) for path in names}


@dataclasses.dataclass(frozen=True)
class Descent:
    """Steps in a direction of `DIRECTIONS`, with what all of them share."""

    direction: str
    options: tuple[tuple[str, Any], ...]  # of the direction
    weight_decay: float
    decayed: str
    layer_decay: float
    freeze: str
    clip: float
    ema: float
    offload: bool
    width_ratio: float = 1.0  # of `width_scales`

    def _transform(self, names: Mapping[str, Names], params: Any) -> optax.GradientTransformation:
        paths = flatten(params).keys()
        decayed = matcher(self.decayed, "decayed", {*paths, *names})
        decay = optax.add_decayed_weights(self.weight_decay)
        decay = only(decayed, decay) if self.weight_decay else optax.identity()
        leaves = Leaves({path: names.get(path, ()) for path in paths})
        if self.width_ratio != 1.0:  # before the decay, whose product with the rate stays
            scales = width_scales(leaves.names, self.width_ratio)
            decay = optax.chain(optax.stateless(lambda u, _: _scaled(u, scales)), decay)
        return DIRECTIONS[self.direction](leaves, decayed, decay, **dict(self.options))

    def init(self, params: Any, names: Mapping[str, Names]) -> Any:
        """The state before the first update of the parameters to train.

        ``names``: of the dimensions of each parameter, frozen ones too, by path.
        """
        return self._transform(names, params).init(params)

    def update(self, grads, state, params, *, names, lr, value, value_fn):
        """``(new params, new state, scalars to log)``.

        ``names`` as of `init`; ``lr``: the learning rate of this update.
        """
        del value, value_fn
        if self.clip:
            grads, _ = optax.clip_by_global_norm(self.clip).update(grads, optax.EmptyState())
        updates, state = self._transform(names, params).update(grads, state, params)
        if self.layer_decay != 1.0:
            shapes = {path: x.shape for path, x in flatten(updates).items()}
            updates = _scaled(updates, layer_scales(shapes, names, self.layer_decay))
        params = jax.tree.map(lambda p, u: p - lr * u, params, updates)
        return params, state, {"lr": lr}


@dataclasses.dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS with a zoom line search (Liu & Nocedal 1989), for convex losses.

    The loss must be the same function at every step: the whole training set, no dropout.
    """

    memory: int
    tolerance: float
    freeze = ""  # nothing, and no average: it converges
    ema = 0.0
    offload = False

    def _transform(self) -> optax.GradientTransformationExtraArgs:
        return optax.lbfgs(memory_size=self.memory)

    def init(self, params: Any, names: Mapping[str, Names]) -> Any:
        del names
        return self._transform().init(params)

    def update(self, grads, state, params, *, names, lr, value, value_fn):
        """``(new params, new state, scalars to log)``; the identity once ``converged``."""
        del names, lr
        largest = jax.tree.reduce(
            jnp.maximum, jax.tree.map(lambda g: jnp.abs(g).max(), grads), jnp.zeros(())
        )

        def step():
            updates, new_state = self._transform().update(
                grads, state, params, value=value, grad=grads, value_fn=value_fn
            )
            return optax.apply_updates(params, updates), new_state

        converged = largest <= self.tolerance
        params, state = jax.lax.cond(converged, lambda: (params, state), step)
        searched = optax.tree.get(state, "info").num_linesearch_steps
        scalars = {"gradient_max": largest, "converged": converged}
        return params, state, scalars | {"evaluations": 1 + jnp.where(converged, 0, searched)}


def average(mean: Any, params: Any, decay: float, updates: jax.Array) -> Any:
    """An exponential moving average of the parameters, after so many ``updates``.

    It follows faster at first, ``min(decay, (1 + n) / (10 + n))``, or short runs would average
    their initial weights (as in TensorFlow's ``ExponentialMovingAverage``).
    """
    n = updates.astype(jnp.float32)
    rate = 1.0 - jnp.minimum(decay, (1.0 + n) / (10.0 + n))
    return jax.tree.map(lambda m, p: m + rate * (p - m), mean, params)  # exact where they agree


OWN = ("direction", "options", "width_ratio")  # of `Descent`: no keys of a config
SHARED = tuple(f.name for f in dataclasses.fields(Descent) if f.name not in OWN)


def create(name: str, *, width_ratio: float = 1.0, **options) -> Descent | LBFGS:
    """The optimizer of ``config.optimizer``, whose `schedules.KEYS` are not its concern.

    ``width_ratio``: of the model's width to that of its muP base.
    """
    if width_ratio != 1.0 and name not in MUP:
        raise UserError(
            f"config.optimizer.name: found {name!r} with a model that is {width_ratio:g} times as "
            f"wide as its model.mup_base_width, expected {' or '.join(MUP)}"
        )
    options = {key: value for key, value in options.items() if key not in schedules.KEYS}
    if (kept := options.get("mu_dtype", MOMENTS[0])) not in MOMENTS:
        raise UserError(
            f"config.optimizer.mu_dtype: found {kept!r}, expected {' or '.join(MOMENTS)}"
        )
    if name == "lbfgs":
        return LBFGS(**options)
    shared = {key: options.pop(key) for key in SHARED}
    return Descent(name, tuple(sorted(options.items())), **shared, width_ratio=width_ratio)
