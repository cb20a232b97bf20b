"""What a user sees of a mistake: one line that begins with ``error:``, exit code 1, no files."""

import subprocess
import sys

from tests import small_runs

BERT, WORKDIR = "--config=configs/bert.py:tiny", "--workdir={workdir}"
MISTAKES = {  # arguments -> what the line says
    f"train {BERT} --config.optimizer.lrr=1 {WORKDIR}": (
        "config: unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"
    ),
    f"train {BERT} --config.train.batch_size=many {WORKDIR}": "batch_size=many: invalid literal",
    f"train --config=configs/bert.py:huge {WORKDIR}": "config variant: found 'huge', expected one",
    f"train --config=configs/none.py {WORKDIR}": "--config: no such file: configs/none.py",
    f"train {BERT}": "Flag --workdir must have a value other than None",
    f"train {BERT} --config.data.train=no/such.txt {WORKDIR}": "data.train=no/such.txt: no such",
    f"evaluate {WORKDIR}": "--workdir: no config.json in {workdir}; expected that of a training",
}


def start(arguments: list[str]) -> subprocess.Popen:
    program, *rest = arguments
    return subprocess.Popen(
        [sys.executable, "-m", f"pretrain.{program}", *rest],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=small_runs.ROOT,
    )


def test_mistakes_are_one_line(tmp_path):
    """Started together, since most of the time is theirs to import JAX."""
    workdir = tmp_path / "run"
    running = {
        arguments: start(arguments.format(workdir=workdir).split()) for arguments in MISTAKES
    }
    for arguments, process in running.items():
        out, err = process.communicate(timeout=120)
        assert process.returncode == 1, arguments
        lines = err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), (arguments, err)
        assert MISTAKES[arguments].format(workdir=workdir) in lines[0]
        assert out == ""
    assert not workdir.exists()


def test_help_explains():
    out, err = start(["train", "--help"]).communicate(timeout=120)
    assert "Any key of the config can be set on the command line" in out
    assert err == ""
