"""One small comparison, run as users run it."""

import os
import re
import subprocess
import sys

import pytest

from pretrain.errors import UserError
from tests import small_runs
from tools import bench


def test_step_and_input_are_measured(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench", "--layers=1", "--width=64", "--rounds=1"],
        cwd=small_runs.ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    step, read = done.stdout.splitlines()
    measured = re.fullmatch(r"step +(\d+\.\d) ms +(\d+) tokens/s", step)
    milliseconds, rate = map(float, measured.groups())
    assert milliseconds * rate == pytest.approx(1e3 * 32 * 128, rel=0.05)
    share = re.fullmatch(r"input +(\d+\.\d\d) % of the step", read)
    assert float(share[1]) > 0
    assert not list(tmp_path.glob("tmp*")), "the token store is gone"


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"width": 100}, "--width: found 100, expected a multiple of 64"),
        ({"num_rounds": 0}, "--layers, --rounds, --steps: expected at least 1"),
        ({"peer_python": "no/python"}, "--peer_python: no/python is no program"),
    ],
)
def test_wrong_sizes_are_clear_errors(changes, said):
    sizes = dict(layers=1, width=64, peer_python="", num_rounds=1, steps=1)
    with pytest.raises(UserError, match=re.escape(said)):
        bench.compare(**sizes | changes)
