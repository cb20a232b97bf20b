r"""Trains one model: config -> data -> mesh -> state -> loop.

    python -m pretrain.train --config=configs/bert.py:tiny --workdir=runs/bert-tiny
    python -m pretrain.train --config=configs/ner.py --config.init_from=runs/bert-tiny \
        --config.data.train=my.conll --workdir=runs/ner
    python -m pretrain.train --config=configs/bert.py:tiny --workdir=/shared/bert-tiny \
        --coordinator=host0:1234 --num_processes=2 --process_id=0  # and 1 on the other host

Any key of the config can be set on the command line: --config.optimizer.lr=5e-4. The same command
run again continues an interrupted run, exactly; a finished one is only reported. Slurm and TPU pods
say by themselves how many processes there are.
"""

import contextlib
import dataclasses
import logging
import math
import pathlib
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pretrain import (
    chips,
    cli,
    evaluators,
    host,
    probe,
    processes,
    record,
    schedules,
    sharding,
    state,
    tasks,
    teacher,
)
from pretrain import config as configs
from pretrain.budget import Periodic, Units
from pretrain.checkpoint import BEST, LAST, Checkpointer, load_params
from pretrain.data.loader import eval_batches, train_batches
from pretrain.errors import Interrupt, UserError
from pretrain.files import read_json, write_json
from pretrain.inherit import inherit_params, resolve
from pretrain.monitor import Counters, Monitor
from pretrain.objectives.distill import model_params
from pretrain.surgery import Surgery, parse
from pretrain.tasks import CONFIG, RESULT

logger = logging.getLogger(__name__)

DATA = "data.json"  # fingerprints of what a run was begun on
FOREVER = 2**40  # steps of a run whose budget is in seconds


class Interrupted(SystemExit):
    """SIGTERM came and the state is saved: the same command goes on from there."""

    def __init__(self, message: str):
        print(message, flush=True)
        super().__init__(128 + signal.SIGTERM)


class Sigterm:
    """While entered, SIGTERM only sets ``came``; a signal that nobody acted on comes again after.

    Handlers can be set in the main thread only; elsewhere this does nothing.
    """

    came = False

    def __enter__(self) -> "Sigterm":
        try:
            self._before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "came", True))
        except ValueError:
            self._before = None
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            if self.came and kind is None:
                signal.raise_signal(signal.SIGTERM)


def check_workdir(workdir: pathlib.Path, config: ConfigDict) -> dict[str, Any] | None:
    """The result of the run if it has finished; `UserError` if the workdir holds another run."""
    file = workdir / CONFIG
    if not file.is_file():
        if any((workdir / name).exists() for name in (LAST, BEST, RESULT)):
            raise UserError(
                f"--workdir: {workdir} holds checkpoints or a result but no {CONFIG}; "
                "expected a new workdir"
            )
    elif changed := configs.differences(read_json(file), config.to_dict()):
        raise UserError(
            f"--workdir: {workdir} holds a run with another config ({'; '.join(changed)}); "
            "expected a new workdir, or the same config to continue"
        )
    return read_json(workdir / RESULT) if (workdir / RESULT).is_file() else None


def check_data(workdir: pathlib.Path, data: dict[str, str]) -> None:
    """`UserError` if a run's data are others than when it began: its checkpoint means nothing then.

    ``data``: fingerprints by name.
    """
    begun = read_json(workdir / DATA) if (workdir / DATA).is_file() else data
    if changed := sorted(k for k in begun.keys() | data.keys() if begun.get(k) != data.get(k)):
        raise UserError(
            f"--workdir: {workdir} was begun on other data: {', '.join(changed)} changed since; "
            "expected the same, or a new workdir"
        )


def batch_rows(task: tasks.Task, config: configs.Reader, mesh: Mesh) -> int:
    """Rows of a global batch, they and their length checked against the mesh.

    A whole training set is filled up with rows that weigh nothing, to a multiple of 32 or, above
    512, one of eight sizes between powers of two: sets of about one size share a compiled step.
    """
    small = config.model.name in configs.SMALL_MODELS
    sharding.check_length("train.seq_len", 0 if small else task.encoder.seq_len, mesh)
    size, accumulate = config.train.batch_size, config.train.accumulate
    if size == 0:
        if hasattr(task.splits["train"].dataset, "prepare"):
            raise UserError(
                f"config.train.batch_size: found 0 with objective.name {task.objective.name!r}, "
                "whose examples are made anew in every epoch; expected a number of rows"
            )
        rows = len(task.splits["train"].dataset)
        ways = math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES) * accumulate
        multiple = math.lcm(ways, max(32, 2 ** (rows.bit_length() - 4)))
        return -(-rows // multiple) * multiple
    sharding.check_batch("train.batch_size", size, mesh, accumulate)
    return size


def batches(
    task: tasks.Task, config: configs.Reader, mesh: Mesh, size: int, start: int
) -> Iterator[dict[str, jax.Array]]:
    """Global batches from step ``start`` on, of which each process reads what its devices hold.

    ``train.batch_size`` 0 gives the whole training set every time.
    """
    dataset = task.splits["train"].dataset
    rows = sharding.local_rows(mesh, size)
    if config.train.batch_size == 0:
        whole = sharding.to_global(next(eval_batches(dataset, size, rows=rows)), mesh)
        while True:
            yield whole
    order = {"seed": config.seed, "start_step": start, "num_steps": FOREVER}
    for batch in train_batches(dataset, batch_size=size, rows=rows, **order):
        yield sharding.to_global(batch, mesh)


def start(
    task: tasks.Task,
    optimizer: Any,
    mesh: Mesh,
    key: jax.Array,
    init_from: str,
    workdir: pathlib.Path,
    operation: Surgery | None = None,
    rows: int = 0,
) -> tuple[state.TrainState, Counters]:
    """Where an earlier attempt came to, else the parameters of ``init_from``, else fresh ones.

    ``rows``: of a global batch.
    """
    if processes.from_first((workdir / LAST).is_dir):
        with Checkpointer(workdir / LAST) as last:
            if last.latest_step() is not None:
                like = state.abstract(task.learner, optimizer, mesh, rows)
                train_state, meta = last.restore(like)
                return train_state, Counters(**meta)
    train_state = state.sharded_init(task.learner, optimizer, mesh, key, rows)
    if init_from:
        params = inherit_params(task, train_state.params, mesh, init_from, operation, workdir)
        train_state = train_state.begin_with(params)
    return train_state, Counters()


def train(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Runs or continues one training run; returns what it wrote to ``workdir/result.json``."""
    workdir = pathlib.Path(workdir)
    config = resolve(config)
    configs.check(config)
    processes.check_same("config", configs.digest(config))
    if (result := processes.from_first(lambda: check_workdir(workdir, config))) is not None:
        print(f"{workdir}: finished before, see {workdir / RESULT}", flush=True)
        return result
    host.reset_peak_rss()

    # Everything that bad input can break comes before the workdir is touched.
    read = configs.Reader(config)
    mesh = sharding.make_mesh(dict(read.mesh))
    task = tasks.build(read)
    processes.check_same("data", task.fingerprints)
    task, taught = teacher.attach(task, read, mesh)
    optimizer = tasks.make_optimizer(read)
    batch_size = batch_rows(task, read, mesh)
    num_rows = len(task.splits["train"].dataset)
    rows_per_step = read.train.batch_size or num_rows  # without those that fill up
    units = Units(rows_per_step, num_rows, task.tokens_per_row, task.row_flops)
    budget = units.budget(read.train.budget, "train.budget")
    rate = schedules.create(read.optimizer, units, budget)
    evaluate_every, save_every, log_every = (
        units.budget(read[section][name], f"{section}.{name}", budget)
        for section, name in (("evals", "every"), ("checkpoint", "every"), ("train", "log_every"))
    )
    scores_of = {
        split: evaluators.create(task, split, mesh, read.evals.batch_size, limit)
        for split, limit in (("validation", read.evals.batches), ("test", 0))
        if split in task.splits
    }
    probes, probe_every = {}, {}
    for name in read.evals.probes if task.objective.name in tasks.LANGUAGE_MODELS else ():
        every = read.evals.probes[name].every
        probe_every[name] = units.budget(every, f"evals.probes.{name}.every", budget)
        probes[name] = probe.create(read, name, task.encoder.tokenizer, mesh)
    best_metric = read.checkpoint.best if "validation" in scores_of else ""
    if best_metric:
        evaluators.check_metric(best_metric, scores_of["validation"])
    sharding.check_sharded(state.abstract(task.learner, optimizer, mesh).params, mesh)
    processes.check_shared(workdir)
    processes.from_first(lambda: check_data(workdir, task.fingerprints))
    init_key, step_key = jax.random.split(jax.random.key(read.seed))
    operation = parse(**read.surgery)
    train_state, counters = start(
        task, optimizer, mesh, init_key, read.init_from, workdir, operation, batch_size
    )
    step = int(train_state.step)
    if processes.first():
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / CONFIG, config.to_dict())
        write_json(workdir / DATA, task.fingerprints)
        task.encoder.save(workdir)

    last = Checkpointer(workdir / LAST, read.checkpoint.keep)
    best = Checkpointer(workdir / BEST) if best_metric else None
    if best is not None:
        best.discard_after(step)
        if not best.has(counters.best_step):  # none yet, or a later one took its place
            counters.best_score, counters.best_step = math.nan, 0
    if step:
        print(f"continuing {workdir} at step {step}", flush=True)
    step_flops = rows_per_step * task.row_flops
    peak = chips.peak(mesh.devices.flat)
    about = record.describe(task, state.count_params(model_params(train_state.params)), read)
    feed = batches(task, read, mesh, batch_size, step)
    batch = next(feed)
    compiling = time.perf_counter()
    compiled = state.compile_train_step(
        task.learner, optimizer, mesh, read.train.accumulate, state.shapes(batch)
    )
    compile_seconds = time.perf_counter() - compiling  # next to none where another run did it
    processes.wait("step")
    for name in read.unread():
        logger.warning("config.%s is set but nothing reads it", name)

    step_key = sharding.replicate(step_key, mesh)
    evaluation_due = Periodic(evaluate_every, step, counters.seconds)
    save_due = Periodic(save_every, step, counters.seconds)
    probe_due = {n: Periodic(e, step, counters.seconds) for n, e in probe_every.items()}
    progress = 1.0 if counters.converged else budget.progress(step, counters.seconds)
    scores, probed, tells = {}, {}, processes.first()
    agreement = processes.Agreement()
    with (
        last,
        best if best is not None else contextlib.nullcontext(),
        Monitor(workdir, counters, budget, log_every, step, step_flops, peak, tells) as monitor,
        Sigterm() as sigterm,
    ):
        while progress < 1.0:
            Interrupt.check()
            started = time.perf_counter()
            now = np.float32([progress, rate(step, counters.seconds)])
            spent, lr = sharding.replicate(tuple(now), mesh)
            train_state, metrics = compiled.run(train_state, batch, step_key, spent, lr, taught)
            step += 1
            counters.examples += rows_per_step
            # The device is busy with this step while the host reads the metrics of the one before
            # and prepares the batch of the next.
            monitor.stepped(step, metrics)
            batch = next(feed)
            progress = budget.progress(step, counters.seconds)
            evaluate = evaluation_due.due(step, counters.seconds)
            if evaluate or progress == 1.0:
                monitor.flush()
            stop, seconds = agreement(sigterm.came, time.perf_counter() - started)
            counters.seconds += seconds
            if counters.converged:
                progress = 1.0

            if "validation" in scores_of and (evaluate or progress == 1.0):
                scores = {"validation": scores_of["validation"](train_state.scored)}
                monitor.evaluated(step, scores["validation"])
                if best is not None and evaluators.improves(
                    best_metric, scores["validation"], counters.best_score
                ):
                    counters.best_score = scores["validation"][best_metric]
                    counters.best_step = step
                    best.save(train_state, dataclasses.asdict(counters))
            for name, fine_tuned in probes.items():
                if probe_due[name].due(step, counters.seconds) or progress == 1.0:
                    probed[name] = fine_tuned(train_state.scored)
                    monitor.evaluated(step, probed[name], f"probe/{name}")
            stopped = stop and progress < 1.0
            if save_due.due(step, counters.seconds) or progress == 1.0 or stopped:
                monitor.flush()
                if best is not None:
                    best.wait()  # what is saved below names its step
                last.save(train_state, dataclasses.asdict(counters))
            if stopped:
                last.wait()
                raise Interrupted(f"SIGTERM: saved at step {step}; the same command goes on")

        tolerance = getattr(optimizer, "tolerance", 0.0)
        if tolerance and not counters.converged:
            logger.warning(
                "config.train.budget: over before the gradient fell to config.optimizer.tolerance "
                "(%g); the loss has a lower minimum",
                tolerance,
            )
        # What the run stands for: the best step by validation, else the last.
        params, chosen = train_state.scored, step
        if counters.best_step not in (0, step):
            best.wait()
            params, chosen = load_params(
                workdir, mesh, like=train_state.scored, directories=(BEST,)
            )
            scores, probed = {}, {}
        for split, scores_on in scores_of.items():
            if split not in scores:
                scores[split] = scores_on(params)
            monitor.finished(step, split, chosen, scores[split])
        for name in probes.keys() - probed.keys():
            probed[name] = probes[name](params)
        flops = counters.evaluations * step_flops
        result = about | {
            "train": {
                "steps": step,
                "tokens": int(counters.tokens),
                "examples": int(counters.examples),
                "flops": flops,
                "seconds": counters.seconds,
                "mfu": flops / (counters.seconds * peak) if peak else None,
                "compile_seconds": compile_seconds,
                "step_memory_bytes": compiled.memory_bytes,
                "peak_rss_bytes": host.peak_rss_bytes(),
                "final_loss": counters.loss,
            },
            "scores": scores,
            "probes": probed,
            "selection": {"metric": best_metric or None, "step": chosen},
            "latency_ms": record.latency(task, params),
            "config_hash": configs.digest(config),
        }
        last.wait()  # a result says that all is on disk
        if processes.first():
            write_json(workdir / RESULT, result)
    return processes.from_first(lambda: read_json(workdir / RESULT))


def main() -> None:
    if "runs" in flags.FLAGS.config:
        raise UserError("--config: this is a study; run it with python -m pretrain.study")
    host.keep_freed_memory()
    processes.join(**{name: flags.FLAGS[name].value for name in processes.FLAGS})
    train(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == "__main__":
    cli.define_config_flags()
    processes.define_flags()
    for module in (cli, processes):
        flags.adopt_module_key_flags(module)  # so that --help shows them
    flags.mark_flags_as_required(["config", "workdir"])
    cli.main(main, __doc__)
