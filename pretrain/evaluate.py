"""Scores of a finished run on its own test data, or on any other labelled source.

python -m pretrain.evaluate --workdir=runs/ner
python -m pretrain.evaluate --workdir=runs/ner --source=other.conll --predictions=out.jsonl
"""

import json
import pathlib
from typing import Any

from absl import flags

from pretrain import cli, evaluators, sharding, tasks
from pretrain.checkpoint import load_params
from pretrain.data import sources, store
from pretrain.errors import UserError

COLUMNS = ("format", "text", "label", "tokens", "tags", "document")


def load(
    workdir: pathlib.Path,
    source: str = "",
    columns: dict[str, str] | None = None,
    batch_size: int = 0,
):
    """The evaluator of a finished run and its parameters.

    Args:
      workdir: of the training run.
      source: what to evaluate on; default: the run's ``data.test``, else ``data.validation``.
      columns: how to read it, where that differs from the run's ``data`` section.
      batch_size: rows at a time; default: the run's.
    """
    config, task = tasks.restore(workdir)
    spec = source or config.data.test or config.data.validation
    if not spec:
        raise UserError("--source: the run has no data.test; expected a source to evaluate on")
    columns = {name: config.data[name] for name in COLUMNS} | (columns or {})
    kind = "lm" if task.encoder.task in tasks.LANGUAGE_MODELS else task.encoder.task
    found = sources.open_source(spec, task=kind, key="--source", **columns)
    if kind == "lm":
        rows = store.build(
            found,
            task.encoder.tokenizer,
            seq_len=task.encoder.seq_len,
            cache_dir=tasks.cache_dir(config),
            packing=config.data.packing,
            key="--source",
        )
        task.splits["test"] = tasks.Split(rows, {"name": found.name})
    else:
        task.splits["test"] = tasks.encode_split(task.encoder, found, list(found), "--source")
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | {"data": -1})
    params, _ = load_params(workdir, mesh)
    evaluator = evaluators.create(task, "test", mesh, batch_size or config.evals.batch_size)
    return evaluator, params, found.name


def evaluate(workdir: pathlib.Path, source: str = "", **options: Any) -> dict[str, float]:
    """Scores by name, such as ``{"f1": 0.58, "f1/PER": ...}``."""
    evaluator, params, _ = load(workdir, source, **options)
    return evaluator(params)


def main() -> None:
    values = flags.FLAGS
    columns = {name: values[name].value for name in COLUMNS if values[name].value is not None}
    evaluator, params, name = load(
        pathlib.Path(values.workdir), values.source, columns, values.batch_size
    )
    if values.predictions:
        path = pathlib.Path(values.predictions)
        if path.exists():
            raise UserError(f"--predictions: {path} exists; expected a new file")
        if not hasattr(evaluator, "predictions"):
            raise UserError("--predictions: a language model labels nothing")
        with path.open("w", encoding="utf-8") as file:
            for record in evaluator.predictions(params):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    print(json.dumps({"source": name, **evaluator(params)}, indent=2))


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
    flags.DEFINE_string("source", "", "What to evaluate on; default: the run's data.test.")
    flags.DEFINE_string("predictions", "", "JSON-lines file to write predictions to.")
    flags.DEFINE_integer("batch_size", 0, "Rows at a time; default: the run's.")
    for name in COLUMNS:
        flags.DEFINE_string(name, None, f"As config.data.{name}; default: the run's.")


if __name__ == "__main__":
    define_flags()
    cli.main(main, __doc__)
