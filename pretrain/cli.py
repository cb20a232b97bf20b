"""What the entry points share: flags, clear errors, exit codes."""

import logging
import sys
from collections.abc import Callable, Sequence

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from pretrain.errors import UserError


def define_config_flags() -> None:
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file, with its argument behind a colon: configs/bert.py:small,seq=256. Any key "
        "can be set: --config.optimizer.lr=1e-3. All keys stand in pretrain/config.py.",
    )
    flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, logs, result.")


def main(function: Callable[..., object], doc: str, positional: bool = False) -> None:
    """Runs a program: ``UserError`` becomes one line and exit code 1, without a traceback.

    ``positional``: call it with the list of arguments that are no flags, else there may be none.
    """

    def guarded(argv: Sequence[str]) -> None:
        absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax and JAX tell much
        absl_logging.get_absl_handler().setFormatter(logging.Formatter("%(message)s"))
        logging.getLogger("pretrain").setLevel(logging.INFO)
        try:
            if positional:
                function(argv[1:])
            elif len(argv) > 1:
                raise UserError(f"found argument {argv[1]!r}, expected only --flags (see --help)")
            else:
                function()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    sys.modules["__main__"].__doc__ = doc
    app.run(guarded)
