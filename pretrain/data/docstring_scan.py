"""Reads docstrings out of Python files with `ast`: nothing is imported, nothing is executed.

Parsing the installed packages takes a CPU core about twenty seconds, so `scan` shares the files
among subprocesses that run this very file: it needs the standard library alone, so they start in
milliseconds, never touch JAX, and do not care what the calling program's main module is (which
`multiprocessing` would import again).
"""

import ast
import gc
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BATCH = 64  # files per subprocess: large enough to hide its start, small enough to show progress


def docstrings(path: str) -> list[str]:
    """The cleaned docstrings of one file in the order of its lines; [] if it cannot be parsed."""
    try:
        with open(path, "rb") as file:
            source = file.read()
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # a template, a file for another Python version, or one that has gone
    found: list[str] = []
    _collect(tree, found)
    # Escapes can spell lone surrogates, which no UTF-8 file can hold.
    return [text for text in found if text and not any("\ud800" <= c <= "\udfff" for c in text)]


def scan(paths: Sequence[str]) -> Iterator[list[str]]:
    """Yields the docstrings of each of `paths`, in order, reading on every CPU we may use."""
    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    if hasattr(os, "sched_getaffinity"):
        workers = len(os.sched_getaffinity(0))
    else:
        workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for found in pool.map(_scan_in_subprocess, batches):
            yield from found


def _scan_in_subprocess(paths: Sequence[str]) -> list[list[str]]:
    try:
        finished = subprocess.run(
            [sys.executable, "-I", __file__],
            input=json.dumps(list(paths)),
            capture_output=True,
            check=True,
            encoding="utf-8",
        )
        found = json.loads(finished.stdout)
    except (OSError, TypeError, ValueError, subprocess.CalledProcessError):
        # No interpreter to start (embedded Python), or it died: slower, but the same result.
        return [docstrings(path) for path in paths]
    return found


def _collect(node: ast.AST, found: list[str]) -> None:
    """Appends the docstrings of `node` and of the definitions nested in its statements."""
    if isinstance(node, _DOCUMENTED):
        text = ast.get_docstring(node, clean=True)
        if text:
            found.append(text.strip())
    for block in ("body", "orelse", "finalbody", "handlers", "cases"):
        children = getattr(node, block, None)
        if isinstance(children, list):  # a lambda's or a conditional's body is one expression
            for child in children:
                _collect(child, found)


def _main() -> None:
    gc.disable()  # syntax trees hold no cycles; collecting them costs two thirds of the time
    paths = json.loads(sys.stdin.buffer.read())
    sys.stdout.write(json.dumps([docstrings(path) for path in paths]))


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # old escapes in other people's code
    _main()
