"""The table and the picture of losses over learning rates."""

import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from pretrain import results
from pretrain.errors import UserError
from tests import small_runs, study_table
from tools import rates

LOSSES = {  # model -> rate -> of each seed
    "S": {1e-3: (3.0, 3.2), 2e-3: (2.8, 2.9)},
    "L, muP": {1e-3: (2.6, 2.7), 2e-3: (2.4, 2.6), 4e-3: (2.7, 2.7)},
    "L, standard": {1e-3: (2.5, 2.5), 2e-3: (3.5, 3.7)},
}


@pytest.fixture
def study():
    """A made-up study and its table."""
    runs, rows = [], []
    for model, line in LOSSES.items():
        for rate, losses in line.items():
            for seed, loss in enumerate(losses):
                name = f"{model.replace(', ', '-')}-{rate}-s{seed}"
                overrides = {"optimizer.lr": rate}
                runs.append(dict(name=name, model=model, config="x", overrides=overrides))
                row = study_table.pretraining_row("tiny", 1.0, loss)
                rows.append(row | dict(name=name, model=model, seed=seed))
    return ConfigDict(dict(runs=tuple(runs))), rows


def test_losses_are_means_over_seeds(study):
    found = rates.curves(*study)
    assert found.keys() == LOSSES.keys()
    assert found["S"] == pytest.approx({1e-3: 3.1, 2e-3: 2.85})
    assert rates.panels(found) == {
        "muP": {"S": found["S"], "L": found["L, muP"]},
        "standard": {"S": found["S"], "L": found["L, standard"]},
    }
    assert rates.panels({"S": found["S"]}) == {"": {"S": found["S"]}}


def test_the_best_of_a_model_stands_out(study):
    assert rates.table(rates.curves(*study)).splitlines()[2:] == [
        "| 1.00e-03 | 3.100 | 2.650 | **2.500** |",
        "| 2.00e-03 | **2.850** | **2.500** | 3.600 |",
        "| 4.00e-03 |  | 2.700 |  |",
        "| best | 2.00e-03 | 2.00e-03 | 1.00e-03 |",
    ]


def test_runs_of_another_study_are_refused(study):
    config, rows = study
    with pytest.raises(UserError, match="run 'other' is none of --config that sets"):
        rates.curves(config, [rows[0] | {"name": "other"}])
    with pytest.raises(UserError, match="found no finished run"):
        rates.curves(config, [rows[0] | {"status": "pending"}])


def test_command_line(study, tmp_path):
    config, rows = study
    results.write(tmp_path, rows)
    (tmp_path / "study.py").write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict({dict(runs=tuple(dict(run) for run in config.runs))!r})\n"
    )
    command = [sys.executable, "-m", "tools.rates", f"--config={tmp_path / 'study.py'}"]
    command += [f"--workdir={tmp_path}", f"--plot={tmp_path / 'rates.png'}"]
    done = subprocess.run(command, cwd=small_runs.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "| best | 2.00e-03 | 2.00e-03 | 1.00e-03 |" in done.stdout
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
