"""Which learning rate is best for which model of a study: a table, and a picture.

    python -m tools.rates --config=configs/mup.py --workdir=runs/mup --plot=runs/mup/rates.png

The study has run (python -m pretrain.study, the same --config and --workdir) and its runs set
`optimizer.lr`. Runs of a model at one rate count by their mean validation loss. A model named
"15M, muP" belongs to the panel "muP" of the picture, and one without comma to all of them.
"""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from pretrain import cli, comparison, plots, results, study
from pretrain.comparison import Row
from pretrain.errors import UserError

_PLOT = flags.DEFINE_string("plot", "", "Also draw it into this PNG file.")
KEY = "optimizer.lr"
Curves = dict[str, dict[float, float]]  # model -> rate -> loss


def curves(config: ConfigDict, rows: Sequence[Row]) -> Curves:
    """The loss of each model at each rate of the runs that have finished, both in order."""
    rates = {run.name: run.overrides.get(KEY) for run in study.parse_runs(config.runs)}
    losses: dict[str, dict[float, list[float]]] = {}
    for row in comparison.finished(rows):
        if (rate := rates.get(row["name"])) is None:
            raise UserError(
                f"--workdir: run {row['name']!r} is none of --config that sets {KEY}, expected the "
                "study of this config"
            )
        line = losses.setdefault(row["model"], {})
        line.setdefault(rate, []).append(row["scores.validation.loss"])
    if not losses:
        raise UserError(f"--workdir: found no finished run, expected a study that has run ({KEY})")
    return {
        model: {rate: float(np.mean(line[rate])) for rate in sorted(line)}
        for model, line in losses.items()
    }


def panels(found: Curves) -> Mapping[str, Curves]:
    """By what stands behind the comma of the models' names."""
    parts = {model: model.partition(", ") for model in found}
    titles = list(dict.fromkeys(title for _, _, title in parts.values() if title)) or [""]
    return {
        title: {size: found[model] for model, (size, _, own) in parts.items() if own in ("", title)}
        for title in titles
    }


def table(found: Curves) -> str:
    """In Markdown: a row a rate, a column a model, its best in bold."""
    rates = sorted(set().union(*found.values()))
    lines = [["learning rate", *found], ["---"] * (1 + len(found))]
    for rate in rates:
        cells = []
        for line in found.values():
            cell = f"{line[rate]:.3f}" if rate in line else ""
            cells.append(f"**{cell}**" if line.get(rate) == min(line.values()) else cell)
        lines.append([f"{rate:.2e}", *cells])
    best = [f"{min(line, key=line.get):.2e}" for line in found.values()]
    lines.append(["best", *best])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def run() -> None:
    found = curves(flags.FLAGS.config, results.read(pathlib.Path(flags.FLAGS.workdir)))
    print(table(found))
    if _PLOT.value:
        pathlib.Path(_PLOT.value).write_bytes(plots.loss_versus_rate(panels(found)))


if __name__ == "__main__":
    cli.define_config_flags()
    flags.mark_flags_as_required(["config", "workdir"])
    cli.main(run, __doc__)
