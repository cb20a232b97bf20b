"""Training state and the compiled functions on it: sharded init, train step, prediction.

The functions are pure; compiled ones are cached by what they depend on (objective, optimizer, mesh,
shapes), so that runs in one process that differ only in data, seed or length compile once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pretrain import optim, processes, sharding
from pretrain.models.layers import micro_batch
from pretrain.objectives.base import Batch, Metrics, Objective
from pretrain.trees import Names, dimension_names, merge

NUM_PROGRAMS = 16  # kept of a kind: a CPU's takes hundreds of the 65,530 maps that Linux allows


class TrainState(flax.struct.PyTreeNode):
    """Everything a step changes. ``step`` counts the updates made.

    ``mean``: the moving average of the parameters, where the optimizer keeps one. ``memory``: what
    the objective carries from each batch to the next, rows first, if it carries any.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    mean: Any = None
    memory: Any = None

    @property
    def scored(self) -> Any:
        """The parameters that the run stands for: what is evaluated and what others load."""
        return self.params if self.mean is None else self.mean

    def begin_with(self, params: Any) -> "TrainState":
        """This state, before its first update, with other parameters."""
        mean = None if self.mean is None else jax.tree.map(jnp.copy, params)  # a step donates both
        return self.replace(params=params, mean=mean)


def init(objective: Objective, optimizer, key: jax.Array) -> TrainState:
    """The state before the first step, its leaves boxed with logical axis names."""
    params = objective.init(key)["params"]
    trained, _ = optim.split_frozen(params, optimizer.freeze)
    opt_state = optimizer.init(trained, dimension_names(params))
    mean = params if optimizer.ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, mean)


@functools.lru_cache
def parameter_names(objective: Objective) -> dict[str, Names]:
    """The logical names of the dimensions of each parameter, by path."""
    return dimension_names(jax.eval_shape(objective.init, jax.random.key(0))["params"])


@functools.lru_cache
def abstract_params(init: Callable[[jax.Array], dict], mesh: Mesh) -> dict:
    """Shapes, types and shardings of the parameters that ``init`` makes."""
    return _laid_out(jax.eval_shape(init, jax.random.key(0))["params"], mesh)


def _laid_out(boxed: Any, mesh: Mesh) -> Any:
    """Abstract arrays with the shardings that their names give them."""
    return jax.tree.map(_abstract_leaf, nn.unbox(boxed), sharding.shardings(boxed, mesh))


def _abstract_leaf(leaf: Any, spec: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spec)


def _on_host(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The same in the memory of the host; counters stay."""
    kind = "pinned_host" if leaf.shape else None
    return leaf.update(sharding=leaf.sharding.with_memory_kind(kind))


@functools.lru_cache
def abstract(objective: Objective, optimizer, mesh: Mesh, rows: int = 0) -> TrainState:
    """Shapes, types and shardings of the state; no memory is touched.

    ``rows``: of a global batch, for objectives that carry memory.
    """
    boxed = jax.eval_shape(functools.partial(init, objective, optimizer), jax.random.key(0))
    state = _laid_out(boxed, mesh)
    if optimizer.offload:
        state = state.replace(opt_state=jax.tree.map(_on_host, state.opt_state))
    if objective.carries_memory:
        memory = jax.eval_shape(lambda: objective.initial_memory(rows))
        by_rows = sharding.batch_sharding(mesh)
        state = state.replace(memory=jax.tree.map(lambda x: _abstract_leaf(x, by_rows), memory))
    return state


@functools.lru_cache(NUM_PROGRAMS)
def _jitted_init(objective: Objective, optimizer, mesh: Mesh):
    state = abstract(objective, optimizer, mesh).replace(memory=None)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(lambda key: nn.unbox(init(objective, optimizer, key)), out_shardings=shardings)


def initial_memory(objective: Objective, mesh: Mesh, rows: int, held_out: bool = False) -> Any:
    """That of the objective, laid out as a batch is."""
    memory, layout = objective.initial_memory(rows, held_out), sharding.batch_sharding(mesh)
    return jax.tree.map(lambda x: sharding.place(np.asarray(x), layout), memory)


def sharded_init(
    objective: Objective, optimizer, mesh: Mesh, key: jax.Array, rows: int = 0
) -> TrainState:
    """The initial state, created in place on the mesh; ``rows`` as of `abstract`."""
    state = processes.settled(_jitted_init(objective, optimizer, mesh)(key))
    if objective.carries_memory:
        state = state.replace(memory=initial_memory(objective, mesh, rows))
    return state


def _micro_batches(batch: Batch, count: int) -> Batch:
    """``[B, ...] -> [count, B / count, ...]``, each with rows of every device's share."""
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch
    )


def _whole_batch(micro_batches: Any) -> Any:
    """The inverse of `_micro_batches`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), micro_batches)


def real_tokens(batch: Batch) -> jax.Array:
    """How many tokens (of linear models: features) a batch has, in rows that count: no padding.

    Of an encoder-decoder those of the encoder's input, no targets, as the papers on T5 count.
    """
    real = batch["segment_ids"] if "segment_ids" in batch else batch["features"]
    in_row = (real > 0).reshape(len(real), -1).sum(axis=1)
    if "weights" in batch:
        counts = (batch["weights"] > 0).reshape(len(real), -1).any(axis=1)
        in_row = jnp.where(counts, in_row, 0)
    return in_row.sum()


def train_step(
    objective: Objective,
    optimizer,
    accumulate: int,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    progress: jax.Array,
    lr: jax.Array,
    teacher: dict,
) -> tuple[TrainState, Metrics]:
    """One update from one global batch.

    Loss and gradients are summed over all rows, whatever micro-batch or device holds them, and
    divided once by the summed weights. ``key`` is the run's; what is drawn is a function of it, of
    ``state.step`` and of a row's place in the batch. ``progress`` is the fraction of the budget
    spent, ``lr`` the learning rate. Frozen parameters have no gradient. ``teacher``: the parameters
    of `Objective.init_teacher`.
    """
    names, tokens = parameter_names(objective), real_tokens(batch)
    objective = objective.bind(teacher, progress)
    corrupt_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
    if objective.carries_memory:
        batch = batch | {"memory": state.memory}
    batch = objective.corrupt(batch, corrupt_key)

    trained, frozen = optim.split_frozen(state.params, optimizer.freeze)

    def whole(params):
        return merge(params, frozen) if frozen else params

    def sums(params, rows, number):
        with micro_batch(number, accumulate):
            loss, weight, metrics, *memory = objective.loss(whole(params), rows, dropout_key)
        return loss, (weight, metrics, memory)

    def gradient(params, rows, number):
        sums_of = jax.value_and_grad(sums, has_aux=True)
        (loss, (weight, metrics, memory)), grads = sums_of(params, rows, number)
        return ((loss, (weight, metrics)), grads), memory

    def all_sums(params):
        if accumulate == 1:
            return gradient(params, batch, 0)

        def add(total, inputs):
            found, memory = gradient(params, *inputs)
            return jax.tree.map(jnp.add, total, found), memory

        rows = _micro_batches(batch, accumulate)
        numbers = jnp.arange(accumulate, dtype=jnp.uint32)
        first = jax.tree.map(lambda x: x[0], (rows, numbers))
        rest = jax.tree.map(lambda x: x[1:], (rows, numbers))
        total, memory = gradient(params, *first)
        total, later = jax.lax.scan(add, total, rest)
        memory = jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), memory, later)
        return total, _whole_batch(memory)

    def mean_loss(params):  # the line search of a quasi-Newton method evaluates it elsewhere
        loss, weight, *_ = objective.loss(whole(params), batch, dropout_key)
        return (loss + objective.penalty(whole(params))) / jnp.maximum(weight, 1e-9)

    ((loss_sum, (weight_sum, metrics)), grads), memory = all_sums(trained)
    scale = 1.0 / jnp.maximum(weight_sum, 1e-9)
    penalty, penalty_grads = jax.value_and_grad(lambda p: 0.0 + objective.penalty(whole(p)))(
        trained
    )
    grads = jax.tree.map(lambda g, p: (g + p) * scale, grads, penalty_grads)
    opt_state = state.opt_state
    if optimizer.offload:  # what comes back goes where `abstract` has it
        opt_state = jax.device_put(opt_state, jax.memory.Space.Device)
    trained, opt_state, scalars = optimizer.update(
        grads,
        opt_state,
        trained,
        names=names,
        lr=lr,
        value=(loss_sum + penalty) * scale,
        value_fn=mean_loss,
    )
    params = whole(trained)
    if (moving := objective.moving(state.params)) is not None:
        params = jax.tree.map(jnp.where, moving, params, state.params)
    norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grads)))
    one = jnp.ones(())
    metrics |= {name: (value, one) for name, value in scalars.items()}
    metrics |= {"grad_norm": (norm, one), "tokens": (tokens, one)}
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    if objective.carries_memory:
        state = state.replace(memory=memory[0])
    if optimizer.ema:
        mean = optim.average(state.mean, state.params, optimizer.ema, state.step)
        state = state.replace(mean=mean)
    return state, metrics


def shapes(batch: Batch) -> tuple[tuple[str, tuple[int, ...], Any], ...]:
    """Sorted ``(name, shape, dtype)``: what a step is compiled for."""
    return tuple(sorted((name, x.shape, x.dtype) for name, x in batch.items()))


class CompiledStep(NamedTuple):
    """An executable train step and what compiling it told."""

    run: Any  # (state, batch, key, progress, lr, teacher) -> (state, metrics); donates the state
    memory_bytes: int  # per device: arguments and temporaries
    program: Any  # the executable itself


@functools.lru_cache(NUM_PROGRAMS)
def compile_train_step(
    objective: Objective, optimizer, mesh: Mesh, accumulate: int, batch_shapes: tuple
) -> CompiledStep:
    """Compiles `train_step` for batches of these `shapes`."""
    num_rows = batch_shapes[0][1][0]
    state = abstract(objective, optimizer, mesh, num_rows if objective.carries_memory else 0)
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
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated)
    teacher = abstract_params(objective.init_teacher, mesh)
    with jax.set_mesh(mesh):
        compiled = step.lower(state, batch, key, number, number, teacher).compile()
    memory = compiled.memory_analysis()
    memory_bytes = memory.argument_size_in_bytes + memory.temp_size_in_bytes

    def run(state, batch, key, progress, lr, teacher=None):
        return processes.settled(compiled(state, batch, key, progress, lr, teacher or {}))

    return CompiledStep(run, memory_bytes, compiled)


@functools.lru_cache(NUM_PROGRAMS)
def predict_fn(objective: Objective, mesh: Mesh):
    """Compiled ``(params, batch) -> objective.predict(...)``, each device with its rows' memory."""
    layout = NamedSharding(mesh, PartitionSpec())
    if objective.carries_memory:
        layout = layout, sharding.batch_sharding(mesh)
    predict = jax.jit(objective.predict, out_shardings=layout)

    def run(params, batch):
        with jax.set_mesh(mesh):
            return processes.settled(predict(params, batch))

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
