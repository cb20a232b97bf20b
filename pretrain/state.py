"""Training state and the compiled functions on it: sharded init, train step, prediction.

The functions are pure; compiled ones are cached by what they depend on (objective, optimizer, mesh,
shapes), so that runs in one process that differ only in data, seed or length compile once.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pretrain import sharding
from pretrain.objectives.base import Batch, Metrics, Objective


class TrainState(flax.struct.PyTreeNode):
    """Everything a step changes. ``step`` counts the updates made."""

    step: jax.Array
    params: Any
    opt_state: Any


def init(objective: Objective, optimizer, key: jax.Array) -> TrainState:
    """The state before the first step, its leaves boxed with logical axis names."""
    params = objective.init(key)["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


@functools.lru_cache
def abstract(objective: Objective, optimizer, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state; no memory is touched."""
    boxed = jax.eval_shape(functools.partial(init, objective, optimizer), jax.random.key(0))
    specs = sharding.shardings(boxed, mesh)
    return jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spec),
        nn.unbox(boxed),
        specs,
    )


@functools.lru_cache
def _jitted_init(objective: Objective, optimizer, mesh: Mesh):
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract(objective, optimizer, mesh))
    return jax.jit(lambda key: nn.unbox(init(objective, optimizer, key)), out_shardings=shardings)


def sharded_init(objective: Objective, optimizer, mesh: Mesh, key: jax.Array) -> TrainState:
    """The initial state, created in place on the mesh."""
    with jax.set_mesh(mesh):
        return _jitted_init(objective, optimizer, mesh)(key)


def _micro_batches(batch: Batch, count: int) -> Batch:
    """``[B, ...] -> [count, B / count, ...]``, each with rows of every device's share."""
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch
    )


def train_step(
    objective: Objective,
    optimizer,
    accumulate: int,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    progress: jax.Array,
) -> tuple[TrainState, Metrics]:
    """One update from one global batch.

    Loss and gradients are summed over all rows, whatever micro-batch or device holds them, and
    divided once by the summed weights. ``key`` is the run's; what is drawn is a function of it and
    of ``state.step``. ``progress`` is the fraction of the budget spent.
    """
    corrupt_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
    batch = objective.corrupt(batch, corrupt_key)

    def sums(params, rows, key):
        loss, weight, metrics = objective.loss(params, rows, key)
        return loss, (weight, metrics)

    gradient = jax.value_and_grad(sums, has_aux=True)

    def all_sums(params):
        if accumulate == 1:
            return gradient(params, batch, dropout_key)

        def add(total, inputs):
            return jax.tree.map(jnp.add, total, gradient(params, *inputs)), None

        rows = _micro_batches(batch, accumulate)
        keys = jax.random.split(dropout_key, accumulate)
        first = jax.tree.map(lambda x: x[0], (rows, keys))
        rest = jax.tree.map(lambda x: x[1:], (rows, keys))
        total, _ = jax.lax.scan(add, gradient(params, *first), rest)
        return total

    def mean_loss(params):  # the line search of a quasi-Newton method evaluates it elsewhere
        loss, weight, _ = objective.loss(params, batch, dropout_key)
        return (loss + objective.penalty(params)) / jnp.maximum(weight, 1e-9)

    (loss_sum, (weight_sum, metrics)), grads = all_sums(state.params)
    scale = 1.0 / jnp.maximum(weight_sum, 1e-9)
    penalty, penalty_grads = jax.value_and_grad(lambda p: 0.0 + objective.penalty(p))(state.params)
    grads = jax.tree.map(lambda g, p: (g + p) * scale, grads, penalty_grads)
    params, opt_state, scalars = optimizer.update(
        grads,
        state.opt_state,
        state.params,
        progress=progress,
        value=(loss_sum + penalty) * scale,
        value_fn=mean_loss,
    )
    norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grads)))
    one = jnp.ones(())
    metrics |= {name: (value, one) for name, value in scalars.items()}
    metrics["grad_norm"] = (norm, one)
    return TrainState(state.step + 1, params, opt_state), metrics


def shapes(batch: Batch) -> tuple[tuple[str, tuple[int, ...], Any], ...]:
    """Sorted ``(name, shape, dtype)``: what a step is compiled for."""
    return tuple(sorted((name, x.shape, x.dtype) for name, x in batch.items()))


class CompiledStep(NamedTuple):
    """An executable train step and what compiling it told."""

    run: Any  # (state, batch, key, progress) -> (state, metrics); the state is donated
    memory_bytes: int  # per device: arguments and temporaries


@functools.lru_cache
def compile_train_step(
    objective: Objective, optimizer, mesh: Mesh, accumulate: int, batch_shapes: tuple
) -> CompiledStep:
    """Compiles `train_step` for batches of these `shapes`."""
    state = abstract(objective, optimizer, mesh)
    replicated = NamedSharding(mesh, PartitionSpec())
    rows = sharding.batch_sharding(mesh)
    batch = {n: jax.ShapeDtypeStruct(s, d, sharding=rows) for n, s, d in batch_shapes}
    step = jax.jit(
        functools.partial(train_step, objective, optimizer, accumulate),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), None),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated)
    progress = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated)
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.ACTIVATION_RULES):
        compiled = step.lower(state, batch, key, progress).compile()
    memory = compiled.memory_analysis()
    memory_bytes = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return CompiledStep(compiled, memory_bytes)


@functools.lru_cache
def predict_fn(objective: Objective, mesh: Mesh):
    """Compiled ``(params, batch) -> objective.predict(...)``."""
    replicated = NamedSharding(mesh, PartitionSpec())
    predict = jax.jit(objective.predict, out_shardings=replicated)

    def run(params, batch):
        with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.ACTIVATION_RULES):
            return predict(params, batch)

    return run


def is_embedding(path: Sequence[str]) -> bool:
    """Whether an array is a table, or an output matrix over the vocabulary that is not one."""
    head, inner, name = path[0], path[1:-1], path[-1]
    output = head == "lm_head" and name == "kernel" and all(x.startswith("output") for x in inner)
    return name == "embedding" or output


def count_params(params: Any) -> dict[str, int]:
    """Numbers of parameters: total, of the kind `is_embedding`, and the rest."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    total = sum(leaf.size for _, leaf in leaves)
    embedding = sum(
        leaf.size for path, leaf in leaves if is_embedding([entry.key for entry in path])
    )
    return {"total": total, "embedding": embedding, "other": total - embedding}
