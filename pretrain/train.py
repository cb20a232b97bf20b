"""Trains one model: config -> data -> mesh -> state -> loop.

    python -m pretrain.train --config=configs/bert.py:tiny --workdir=runs/bert-tiny
    python -m pretrain.train --config=configs/ner.py --config.init_from=runs/bert-tiny \
        --config.data.train=my.conll --workdir=runs/ner

Any key of the config can be set on the command line: --config.optimizer.lr=5e-4. The same command
run again continues an interrupted run, exactly; a finished one is only reported.
"""

import dataclasses
import logging
import math
import pathlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from pretrain import cli, evaluators, metrics, optim, record, sharding, state, tasks
from pretrain import config as configs
from pretrain.checkpoint import BEST, LAST, Checkpointer, graft, load_params
from pretrain.data.loader import eval_batches, train_batches
from pretrain.errors import UserError
from pretrain.files import read_json, write_json
from pretrain.logs import Logs, Progress
from pretrain.models.transformer import RUNTIME_FIELDS
from pretrain.tasks import CONFIG

logger = logging.getLogger(__name__)

RESULT = "result.json"
FOREVER = 2**40  # steps of a run whose budget is in seconds


class Interrupted(SystemExit):
    """SIGTERM came and the state is saved: the same command goes on from there."""

    def __init__(self, message: str):
        print(message, flush=True)
        super().__init__(128 + signal.SIGTERM)


@dataclasses.dataclass
class Counters:
    """What the loop has spent so far; saved with every checkpoint."""

    tokens: float = 0.0
    examples: float = 0.0
    seconds: float = 0.0  # of stepping, compilation and evaluation excluded
    best_score: float = math.nan
    best_step: int = 0
    loss: float = math.nan


@dataclasses.dataclass(frozen=True)
class Budget:
    """When training ends: after ``steps``, or else after ``seconds``."""

    steps: int | None
    seconds: float | None

    def progress(self, step: int, seconds: float) -> float:
        """Fraction spent, in [0, 1]."""
        spent = step / self.steps if self.steps else seconds / self.seconds
        return min(1.0, spent)


def resolve(config: ConfigDict) -> ConfigDict:
    """A copy in which the model of ``init_from``, if any, stands under ``model``."""
    config = ConfigDict(config.to_dict())
    if config.init_from:
        file = pathlib.Path(config.init_from) / CONFIG
        if not file.is_file():
            raise UserError(
                f"config.init_from: no {CONFIG} in {config.init_from!r}; "
                "expected the workdir of a training run"
            )
        source = read_json(file)["model"]
        if source["name"] != config.model.name:
            raise UserError(
                f"config.init_from: {config.init_from} holds a {source['name']} model, "
                f"expected {config.model.name}"
            )
        config.model.update({k: v for k, v in source.items() if k not in RUNTIME_FIELDS})
    return config


def claim(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Makes the workdir this run's own; `UserError` if it holds another run."""
    file, ours = workdir / CONFIG, config.to_dict()
    if file.is_file():
        if changed := configs.differences(read_json(file), ours):
            raise UserError(
                f"--workdir: {workdir} holds a run with another config ({'; '.join(changed)}); "
                "expected a new workdir, or the same config to continue"
            )
        return
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(file, ours)


def to_steps(text: str, key: str, task: tasks.Task, batch_size: int, total: int | None) -> Budget:
    """Converts a duration of the config to steps; only seconds stay as they are."""
    amount, unit = configs.duration(text, key)
    train = task.splits["train"]
    if unit == "seconds" or (unit == "%" and total is None):
        return Budget(None, amount)
    row_flops = task.objective.train_flops(task.encoder.seq_len)
    per_step = {
        "steps": 1.0,
        "examples": batch_size,
        "epochs": batch_size / len(train.dataset),
        "tokens": batch_size * task.tokens_per_row,
        "flops": batch_size * row_flops,
        "%": 100.0 / (total or 1),
    }
    return Budget(max(1, math.ceil(amount / per_step[unit] - 1e-9)), None)


class Periodic:
    """Says when a thing that recurs by steps, seconds or share of the budget is due."""

    def __init__(self, every: Budget, step: int, seconds: float):
        self._every = every
        self._last = seconds if every.steps is None else step

    def due(self, step: int, seconds: float) -> bool:
        now, every = (
            (step, self._every.steps) if self._every.steps else (seconds, self._every.seconds)
        )
        if now // every > self._last // every:
            self._last = now
            return True
        return False


def batches(task: tasks.Task, config: configs.Reader, mesh: Mesh, start: int) -> Iterator:
    """Global batches from step ``start`` on; ``batch_size`` 0 is the whole training set, always."""
    dataset, size = task.splits["train"].dataset, config.train.batch_size
    if size == 0:
        whole = next(eval_batches(dataset, batch_rows(task, config, mesh)))
        whole = sharding.to_global(whole, mesh), count_tokens(whole)
        while True:
            yield whole
    for batch in train_batches(
        dataset,
        batch_size=size,
        seed=config.seed,
        start_step=start,
        num_steps=FOREVER,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    ):
        yield sharding.to_global(batch, mesh), count_tokens(batch)


def batch_rows(task: tasks.Task, config: configs.Reader, mesh: Mesh) -> int:
    """Rows of a global batch, checked against the mesh; a whole training set is filled up."""
    size, accumulate = config.train.batch_size, config.train.accumulate
    if size == 0:
        ways = math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES) * accumulate
        return -(-len(task.splits["train"].dataset) // ways) * ways
    sharding.check_batch("train.batch_size", size, mesh, accumulate)
    return size


def count_tokens(batch: dict[str, np.ndarray]) -> int:
    """Real tokens of a batch over all processes; for linear models, non-zero features."""
    real = batch["segment_ids"] if "segment_ids" in batch else batch["values"]
    return int((real > 0).sum()) * jax.process_count()


def train(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Runs or continues one training run; returns what it wrote to ``workdir/result.json``."""
    workdir = pathlib.Path(workdir)
    config = resolve(config)
    if workdir.is_dir() and (workdir / CONFIG).is_file():
        claim(workdir, config)
        if (workdir / RESULT).is_file():
            print(f"{workdir}: finished before; see {workdir / RESULT}", flush=True)
            return read_json(workdir / RESULT)
    read = configs.Reader(config)
    task = tasks.build(read)
    mesh = sharding.make_mesh(dict(read.mesh))
    optimizer = optim.create(**read.optimizer)
    batch_size = batch_rows(task, read, mesh)
    budget = to_steps(read.train.budget, "train.budget", task, batch_size, None)

    def period(text, key):
        every = to_steps(text, key, task, batch_size, budget.steps)
        if configs.duration(text, key).unit == "%" and budget.steps is None:
            every = Budget(None, every.seconds / 100 * budget.seconds)
        return every

    # The initial state, or where an earlier attempt came to.
    replicated = NamedSharding(mesh, PartitionSpec())
    init_key, key = jax.random.split(jax.random.key(read.seed))
    claim(workdir, config)
    task.encoder.save(workdir)
    last = Checkpointer(workdir / LAST, read.checkpoint.keep)
    counters = Counters()
    if last.latest_step() is None:
        train_state = state.sharded_init(task.objective, optimizer, mesh, init_key)
        if read.init_from:
            source, _ = load_params(read.init_from, mesh)
            params = graft(train_state.params, source, read.init_from)
            train_state = train_state.replace(params=params)
    else:
        train_state, meta = last.restore(state.abstract(task.objective, optimizer, mesh))
        counters = Counters(**meta)
    step = int(train_state.step)
    if step:
        print(f"continuing {workdir} at step {step}", flush=True)
    counts = state.count_params(train_state.params)

    source = batches(task, read, mesh, step)
    batch, tokens = next(source)
    shapes = tuple(sorted((name, x.shape, x.dtype) for name, x in batch.items()))
    compiled = state.compile_train_step(
        task.objective, optimizer, mesh, read.train.accumulate, shapes
    )
    key = jax.device_put(key, replicated)

    evals, best_metric = read.evals, read.checkpoint.best
    scores_of = {
        split: evaluators.create(task, split, mesh, evals.batch_size, limit)
        for split, limit in (("validation", evals.batches), ("test", 0))
        if split in task.splits
    }
    best = Checkpointer(workdir / BEST) if best_metric and "validation" in scores_of else None
    evaluate_every = Periodic(period(evals.every, "evals.every"), step, counters.seconds)
    save_every = Periodic(period(read.checkpoint.every, "checkpoint.every"), step, counters.seconds)
    log_interval = read.train.seconds_between_logs
    record.describe(task, counts, read)  # reads the rest of the config
    for name in read.unread():
        logger.warning("config.%s is set but nothing reads it", name)

    logs = Logs(workdir, step)
    shown = Progress(budget.progress(step, counters.seconds), log_interval)
    stop = _on_sigterm()
    pending: Any = None
    evaluated: dict[str, float] = {}
    last_log = time.monotonic()
    rate_from = (time.monotonic(), counters.tokens)

    def report_pending():
        """Reads the metrics of the step before: the device is already busy with the next."""
        nonlocal pending, last_log, rate_from
        if pending is None:
            return False
        at, values = pending
        pending = None
        values = metrics.finalize(metrics.add({}, jax.device_get(values)))
        counters.loss = values["loss"]
        if not math.isfinite(counters.loss):
            raise UserError(
                f"training diverged: the loss is {counters.loss} at step {at} of {workdir}; the "
                "last checkpoint is kept. Try a lower optimizer.lr or a longer optimizer.warmup"
            )
        now = time.monotonic()
        rate = (counters.tokens - rate_from[1]) / max(now - rate_from[0], 1e-9)
        shown.update(
            budget.progress(at, counters.seconds),
            f"step {at}  loss {counters.loss:.3f}  {rate / 1e3:.1f}k tokens/s",
        )
        if now - last_log >= min(1.0, log_interval):
            last_log, rate_from = now, (now, counters.tokens)
            spent = {"tokens": counters.tokens, "seconds": counters.seconds, "tokens_per_s": rate}
            logs.write(at, {f"train/{k}": v for k, v in (values | spent).items()})
        return bool(values.get("converged"))

    def evaluate():
        nonlocal evaluated
        evaluated = scores_of["validation"](train_state.params)
        spent = {"tokens": counters.tokens, "seconds": counters.seconds}
        values = {f"validation/{k}": v for k, v in evaluated.items()}
        logs.write(step, values | {f"train/{k}": v for k, v in spent.items()})
        text = "  ".join(f"{k} {v:.4g}" for k, v in evaluated.items() if "/" not in k)
        shown.note(f"step {step}  validation: {text}")
        if best is not None:
            if best_metric not in evaluated:
                raise UserError(
                    f"config.checkpoint.best: no score {best_metric!r}; "
                    f"expected one of {', '.join(evaluated)}"
                )
            if evaluators.better(best_metric)(evaluated[best_metric], counters.best_score):
                counters.best_score, counters.best_step = evaluated[best_metric], step
                best.save(train_state, dataclasses.asdict(counters))

    def save():
        last.save(train_state, dataclasses.asdict(counters))

    progress = budget.progress(step, counters.seconds)
    while progress < 1.0:
        started = time.perf_counter()
        rate = jax.device_put(np.float32(progress), replicated)
        train_state, values = compiled.run(train_state, batch, key, rate)
        counters.tokens += tokens
        counters.examples += batch_size
        converged = report_pending()
        step += 1
        pending = (step, values)
        batch, tokens = next(source)
        counters.seconds += time.perf_counter() - started
        progress = 1.0 if converged else budget.progress(step, counters.seconds)
        done = progress >= 1.0
        if done or stop.is_set():
            started = time.perf_counter()
            report_pending()
            counters.seconds += time.perf_counter() - started
        due = evaluate_every.due(step, counters.seconds)
        if "validation" in scores_of and (due or done):
            report_pending()
            evaluate()
        if stop.is_set() and not done:
            save()
            last.close()
            raise Interrupted(f"stopped by SIGTERM at step {step}; run the same command to go on")
        if done or save_every.due(step, counters.seconds):
            report_pending()
            save()

    # The finished model: the best by validation, else the last.
    for checkpointer in (last, best):
        if checkpointer is not None:
            checkpointer.close()
    params, chosen = train_state.params, step
    if best is not None and counters.best_step != step:
        params, chosen = load_params(workdir, mesh)
    scores = {}
    for split, evaluator in scores_of.items():
        scores[split] = evaluator(params) if (split, chosen) != ("validation", step) else evaluated
    result = record.describe(task, counts, read) | {
        "train": {
            "steps": step,
            "tokens": int(counters.tokens),
            "examples": int(counters.examples),
            "flops": counters.examples * task.objective.train_flops(task.encoder.seq_len),
            "seconds": counters.seconds,
            "compile_seconds": compiled.compile_seconds,
            "step_memory_bytes": compiled.memory_bytes,
            "final_loss": counters.loss,
        },
        "scores": scores,
        "selection": {"metric": best_metric or "loss", "step": chosen},
        "latency_ms": record.latency(task, params),
        "config_hash": configs.digest(config),
    }
    for split, values in scores.items():
        text = "  ".join(f"{k} {v:.4g}" for k, v in values.items() if "/" not in k)
        shown.note(f"finished at step {step}; {split} at step {chosen}: {text}")
    shown.close()
    logs.close()
    write_json(workdir / RESULT, result)
    return result


def _on_sigterm() -> threading.Event:
    """An event that SIGTERM sets (where this is the main thread, as handlers need)."""
    stop = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return stop


def main() -> None:
    train(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == "__main__":
    cli.define_config_flags()
    flags.mark_flags_as_required(["config", "workdir"])
    cli.main(main, __doc__)
