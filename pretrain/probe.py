"""Probes: task quality as a curve over pretraining and not a point after it."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pretrain import config as configs
from pretrain import evaluators, schedules, sharding, state, tasks
from pretrain.budget import Units
from pretrain.config import Reader
from pretrain.data.loader import train_batches
from pretrain.data.tokenizer import AnyTokenizer
from pretrain.errors import UserError


class Probe:
    """A short fine-tuning of a copy of the live parameters through the shared heads.

    Everything but those parameters is the same every time: the labelled sample, the order, the
    head's first parameters, the number of steps.
    """

    def __init__(self, config: Reader, pieces: AnyTokenizer, mesh: Mesh):
        """``config``: the sections of a labelled run (see `pretrain.config.probe`)."""
        self._task = task = tasks.build(config, pieces)
        self._mesh, self._size, self._seed = mesh, config.train.batch_size, config.seed
        sharding.check_batch("train.batch_size", self._size, mesh)
        self._optimizer = tasks.make_optimizer(config)
        rows = task.splits["train"].dataset
        units = Units(self._size, len(rows), task.tokens_per_row, task.row_flops)
        budget = units.budget(config.train.budget, "train.budget")
        if budget.steps is None:
            raise UserError(
                f"config.train.budget: found {config.train.budget!r}, expected no seconds: "
                "every probe has the same number of steps"
            )
        self._steps, self._rate = budget.steps, schedules.create(config.optimizer, units, budget)
        self._scores = evaluators.create(task, "validation", mesh, config.evals.batch_size)

    def __call__(self, params: dict) -> evaluators.Scores:
        """Held-out scores of the fine-tuned copy; ``params`` stay as they are."""
        objective, optimizer, mesh = self._task.objective, self._optimizer, self._mesh
        init_key, step_key = jax.random.split(jax.random.key(self._seed))
        live = state.sharded_init(objective, optimizer, mesh, init_key)
        trunk = jax.tree.map(jnp.copy, params["trunk"])  # a step consumes its state
        live = live.begin_with(live.params | {"trunk": trunk})
        batches = train_batches(
            self._task.splits["train"].dataset,
            batch_size=self._size,
            seed=self._seed,
            start_step=0,
            num_steps=self._steps,
            rows=sharding.local_rows(mesh, self._size),
        )
        step_key = sharding.replicate(step_key, mesh)
        for step, batch in enumerate(batches):
            batch = sharding.to_global(batch, mesh)
            compiled = state.compile_train_step(objective, optimizer, mesh, 1, state.shapes(batch))
            now = np.float32(step / self._steps), np.float32(self._rate(step, 0.0))
            live, _ = compiled.run(live, batch, step_key, *sharding.replicate(now, mesh))
        return self._scores(live.scored)


def create(config: Reader, name: str, pieces: AnyTokenizer, mesh: Mesh) -> Probe:
    """The probe ``evals.probes.NAME`` of a language model's config; `UserError` names it."""
    try:
        return Probe(configs.probe_config(config, name), pieces, mesh)
    except UserError as error:
        raise UserError(f"config.evals.probes.{name}: {error}") from None
