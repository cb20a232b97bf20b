"""What the entry points share: flags, clear errors, exit codes."""

import difflib
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Collection, Sequence

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from pretrain import config as configs
from pretrain.errors import Interrupt, UserError


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
        Interrupt.listen()
        try:
            if positional:
                function(argv[1:])
            elif len(argv) > 1:
                raise UserError(f"found argument {argv[1]!r}, expected only --flags (see --help)")
            else:
                function()
        except BaseException as error:
            if Interrupt.came:
                _interrupted()
            if isinstance(error, UserError):
                _fail(error)
            if isinstance(error, BrokenPipeError):  # the reader has what it wanted, as in "| head"
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(1)
            if not isinstance(error, SystemExit):
                _end_others(1, error)
            raise

    sys.modules["__main__"].__doc__ = doc
    app.run(guarded, flags_parser=_parse)


def table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Rows of cells, a header first, in aligned columns: those of ``right`` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _fail(error: Exception) -> None:
    _leave(f"error: {error}", 1)


def _interrupted() -> None:
    goes_on = "; the same command goes on from the last checkpoint"
    print(f"interrupted{goes_on if 'config' in flags.FLAGS else ''}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(130)  # an ordinary exit aborts where a thread of XLA is still compiling


def _leave(message: str, code: int) -> None:
    print(message, file=sys.stderr, flush=True)
    _end_others(code)
    sys.exit(code)


def _end_others(code: int, error: BaseException | None = None) -> None:
    """Does not return where this process is one of several; ``error``: what is yet to be told."""
    if processes := sys.modules.get("pretrain.processes"):  # it imports JAX, which is slow
        processes.leave(code, error)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags as absl does, but tells of every mistake in one line."""
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            spec = config_flags.get_config_filename(flags.FLAGS["config"])
            path = spec.partition(":")[0]  # the argument stands behind the colon
            if not pathlib.Path(path).is_file():  # ml_collections tells when it is first read
                raise UserError(f"--config: no such file: {path}")
        return rest
    except (flags.Error, UserError, AttributeError, KeyError) as error:
        causes = [error]
        while cause := causes[-1].__cause__ or causes[-1].__context__:
            causes.append(cause)
        if isinstance(causes[-1], UserError):  # from get_config, wrapped with its traceback
            _fail(causes[-1])
        if isinstance(error, flags.Error | UserError):
            _fail(error)
        if unknown := _unknown_key(argv):
            _fail(unknown)
        raise


def _unknown_key(argv: Sequence[str]) -> UserError | None:
    """The first ``--config.KEY`` of the command line that the config does not have."""
    spec = next((arg.partition("=")[2] for arg in argv if re.match("--?config=", arg)), "")
    path, _, arg = spec.partition(":")
    known = list(configs.flatten(configs.load(path, arg or None))) if path else []
    for key in (m[1] for arg in argv if (m := re.match(r"--?(?:no)?config\.([^=]+)", arg))):
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            return UserError(f"config: unknown key {key!r}{hint}")
    return None
