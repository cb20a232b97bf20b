"""Trains the runs of a JSON file one after the other: most of a program's time is its start."""

import json
import pathlib

from absl import flags
from ml_collections import ConfigDict

from pretrain import cli, processes, train
from pretrain.errors import UserError


def main() -> None:
    processes.join(**{name: flags.FLAGS[name].value for name in processes.FLAGS})
    for config, workdir in json.loads(pathlib.Path(flags.FLAGS.runs).read_text()):
        try:
            train.train(ConfigDict(config), workdir)
        except UserError as error:
            print(f"refused: {error}", flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("runs", None, "[[config, workdir], ...]", required=True)
    processes.define_flags()
    cli.main(main, __doc__)
