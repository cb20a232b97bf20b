"""Scores of a run on its own test data (without any: validation data), or on any other source.

python -m pretrain.evaluate --workdir=runs/ner
python -m pretrain.evaluate --workdir=runs/ner --source=other.conll --predictions=out.jsonl
"""

import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags

from pretrain import cli, evaluators, host, sharding, tasks
from pretrain.checkpoint import load_params
from pretrain.config import COLUMNS
from pretrain.errors import UserError
from pretrain.files import check_new, to_json, write_jsonl

ALL_COLUMNS = sorted({name for names in COLUMNS.values() for name in names})


def evaluate(workdir: pathlib.Path, source: str = "", **options: Any) -> dict[str, float]:
    """Scores by name, such as ``{"f1": 0.58, "f1/PER": ...}``; options are those of `run`."""
    return run(workdir, source, **options)[1]


def run(
    workdir: pathlib.Path,
    source: str = "",
    columns: Mapping[str, str] | None = None,
    batch_size: int = 0,
    predictions: pathlib.Path | None = None,
) -> tuple[str, dict[str, float]]:
    """The name of what a run is evaluated on, and its scores there; stderr tells if it goes on.

    Args:
      workdir: of the training run.
      source: what to evaluate on; default: the run's ``data.test``, else ``data.validation``.
      columns: how to read it, where that differs from the run's ``data`` section.
      batch_size: rows at a time; default: the run's.
      predictions: a new JSON-lines file for what was predicted of each example.
    """
    config, task = tasks.restore(workdir)
    name = task.objective.name
    if predictions is not None:
        check_new(predictions, "--predictions")
        if name in tasks.LANGUAGE_MODELS:
            raise UserError(f"--predictions: a language model ({name}) labels nothing")
    if batch_size < 0:
        raise UserError(f"--batch_size: found {batch_size}, expected at least 1, or 0: the run's")
    for column in columns or {}:
        if column not in COLUMNS[name]:
            raise UserError(f"--{column}: the task {name} reads {', '.join(COLUMNS[name])}")
    spec = source or config.data.test or config.data.validation
    if not spec:
        raise UserError("--source: the run has no data.test or data.validation; expected a source")
    task.splits["test"] = split = tasks.read_split(
        config, task.encoder, spec, "--source", columns or {}
    )
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | {"data": -1})
    evaluator = evaluators.create(task, "test", mesh, batch_size or config.evals.batch_size)
    params, step = load_params(workdir, mesh)
    if not (workdir / tasks.RESULT).is_file():
        print(f"{workdir}: not finished: scores of step {step}", file=sys.stderr)
    if predictions is None:
        scores = evaluator(params)
    else:
        predicted = evaluator.predict(params)
        scores = evaluator.scores(*predicted)
        write_jsonl(predictions, evaluator.records(*predicted))
    return split.about["name"], scores


def main() -> None:
    host.keep_freed_memory()
    values = flags.FLAGS
    name, scores = run(
        pathlib.Path(values.workdir),
        values.source,
        {name: values[name].value for name in ALL_COLUMNS if values[name].value is not None},
        values.batch_size,
        pathlib.Path(values.predictions) if values.predictions else None,
    )
    print(to_json({"source": name, **scores}, indent=2))


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
    flags.DEFINE_string(
        "source", "", "What to evaluate on; default: the run's data.test, else data.validation."
    )
    flags.DEFINE_string("predictions", "", "New JSON-lines file to write predictions to.")
    flags.DEFINE_integer("batch_size", 0, "Rows at a time; default: the run's.")
    for name in ALL_COLUMNS:
        flags.DEFINE_string(name, None, f"As config.data.{name}; default: the run's.")


if __name__ == "__main__":
    define_flags()
    cli.main(main, __doc__)
