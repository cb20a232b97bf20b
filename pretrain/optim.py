"""Optimizers and learning-rate schedules over *progress*: the fraction of the budget that is spent.

A step is told its progress, so that one compiled step serves every length and unit of budget.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pretrain.errors import UserError

DECAYED = ("kernel", "embedding")  # by name: a rank test fails on layers stacked for a scan

SCHEDULES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda x: 1.0 - x,
    "cosine": lambda x: 0.5 * (1.0 + jnp.cos(jnp.pi * x)),
    "constant": jnp.ones_like,
}


def decay_mask(params: Any) -> Any:
    """True on kernels and embeddings, False on biases and norm scales."""

    def decayed(path, _):  # the last name of the path: boxed leaves add an attribute after it
        return [entry.key for entry in path if hasattr(entry, "key")][-1] in DECAYED

    return jax.tree_util.tree_map_with_path(decayed, params)


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019) and global-norm clipping."""

    lr: float
    schedule: str
    warmup: float
    end: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip: float

    def _transform(self) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(self.clip) if self.clip else optax.identity(),
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay, decay_mask),
        )

    def init(self, params: Any) -> Any:
        return self._transform().init(params)

    def learning_rate(self, progress: jax.Array) -> jax.Array:
        """Rises from 0 over ``warmup``, then follows the schedule down to ``end * lr`` at 1."""
        after = jnp.clip((progress - self.warmup) / max(1.0 - self.warmup, 1e-9), 0.0, 1.0)
        scale = self.end + (1.0 - self.end) * SCHEDULES[self.schedule](after)
        ramp = jnp.minimum(1.0, progress / self.warmup) if self.warmup else 1.0
        return self.lr * scale * ramp

    def update(self, grads, state, params, *, progress, value, value_fn):
        """``(new params, new state, scalars to log)``."""
        del value, value_fn
        updates, state = self._transform().update(grads, state, params)
        rate = self.learning_rate(progress)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        return params, state, {"lr": rate}


@dataclasses.dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS with a zoom line search (Liu & Nocedal 1989), for convex losses.

    The loss must be the same function at every step: the whole training set, no dropout.
    """

    memory: int
    tolerance: float

    def _transform(self) -> optax.GradientTransformationExtraArgs:
        return optax.lbfgs(memory_size=self.memory)

    def init(self, params: Any) -> Any:
        return self._transform().init(params)

    def update(self, grads, state, params, *, progress, value, value_fn):
        """``(new params, new state, scalars to log)``; the identity once ``converged``."""
        del progress
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


OPTIMIZERS = {"adamw": AdamW, "lbfgs": LBFGS}


def create(name: str, **options) -> AdamW | LBFGS:
    """The optimizer of ``config.optimizer``; `UserError` names a key with a wrong value."""
    if options.get("schedule", "linear") not in SCHEDULES:
        raise UserError(
            f"config.optimizer.schedule: found {options['schedule']!r}, "
            f"expected one of {', '.join(SCHEDULES)}"
        )
    return OPTIMIZERS[name](**options)
