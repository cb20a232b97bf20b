"""Where examples come from: one function that opens every kind of source.

A *source* yields plain dictionaries, always in the same order:

- task ``lm``: ``{"text": str}``
- task ``classify``: ``{"text": str, "label": str}``
- task ``tag``: ``{"tokens": list[str], "tags": list[str]}``, tags always IOB2

docs/data.md describes the specs for users. To add a kind of source, write a module with a function
like `files.read` that returns a `Reading`, and name its scheme in `_SCHEMES`.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from fractions import Fraction

from pretrain.data import builtin, files, tfds_source
from pretrain.data.hashing import GOLDEN, mix
from pretrain.data.reading import TASKS, Reading, Request
from pretrain.errors import UserError

_SCHEMES: dict[str, Callable[[str, Request], Reading]] = {
    "docstrings": builtin.read_docstrings,
    "sotu": builtin.read_sotu,
    "tfds": tfds_source.read,
}
# "name:" but neither a URL ("gs://...") nor fsspec's chained ones ("simplecache::...").
_SCHEME = re.compile(r"([A-Za-z][\w+.-]*):(?!//|:)(.*)", re.DOTALL)
_SLICE = re.compile(r"\[([^\[\]]*:[^\[\]]*)\]$")
_BOUND = re.compile(r"(?:(\d+(?:\.\d+)?)%)?")


class Source:
    """Examples in a fixed order; may be iterated any number of times.

    Attributes:
        name: short, for reports.
    """

    def __init__(self, name: str, key: str, reading: Reading, share: tuple[Fraction, Fraction]):
        self.name = name
        self._key = key
        self._reading = reading
        self._share = share

    def __iter__(self) -> Iterator[dict]:
        """Yields the examples; raises UserError for broken input or if there are none."""
        low, high = self._share
        whole = (low, high) == (0, 1)
        empty = True
        for index, example in enumerate(self._reading.examples()):
            if whole or low <= position(index) < high:
                empty = False
                yield example
        if empty:
            raise UserError(f"{self._key}={self.name}: holds no examples; at least one is needed")

    def fingerprint(self) -> str:
        """sha256 (hex) of what identifies the content: bytes or versions, settings, slice."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:  # once: it reads whole files
        identity = [self._reading.identity(), *map(str, self._share)]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def open_source(
    spec: str,
    *,
    task: str,
    key: str = "data.train",
    format: str = "",
    text: str = "text",
    label: str = "label",
    tokens: str = "tokens",
    tags: str = "tags",
    document: str = "paragraph",
) -> Source:
    """Opens what `spec` names: files, embedded data or a TensorFlow dataset; see docs/data.md.

    Args:
        spec: a path, glob or fsspec URL, ``docstrings:SUBSET:SPLIT``, ``sotu:SUBSET:SPLIT``, or
            ``tfds:NAME:SPLIT``; any of them may end in a slice such as ``[:90%]``.
        task: ``lm``, ``classify`` or ``tag``: which example dictionaries to yield.
        key: the config key that `spec` comes from, for error messages.
        format: how to read files whose extension does not say it; see `files.FORMATS`.
        text, label, tokens, tags: names of the columns (a number: place in a table without header).
            Several text columns, separated by commas, are joined by a space.
        document: what one document of a text file is: ``paragraph``, ``line`` or ``file``.

    Raises:
        UserError: for a spec that names nothing known, and while iterating for broken content.
    """
    if task not in TASKS:
        raise ValueError(f"task is {task!r}; expected one of {', '.join(TASKS)}")
    request = Request(task, key, format, text, label, tokens, tags, document)
    spec = spec.strip()
    rest, share = _cut_slice(spec, key)
    if not rest:
        raise UserError(
            f"{key} is empty; expected a path, glob or URL, or one of "
            + ", ".join(f"{scheme}:..." for scheme in _SCHEMES)
        )
    match = _SCHEME.fullmatch(rest)
    if match and match[1] in _SCHEMES:
        reading = _SCHEMES[match[1]](match[2], request)
        name = spec
    else:
        if match and not files.exists(rest):
            raise UserError(
                f"{key}={spec}: no such file, and {match[1]!r} is no known kind of source; "
                f"expected a path, glob or URL, or one of {', '.join(_SCHEMES)}"
            )
        reading = files.read(rest, request)
        name = "/".join(spec.split("/")[-2:])
    return Source(name, key, reading, share)


def position(index: int) -> Fraction:
    """The place in [0, 1) of the example number `index`, by which slices choose.

    A fixed hash (the numbers of SplitMix64), so that the slices of a file that is sorted by label
    are random samples of it, disjoint, and together the whole.
    """
    return Fraction(mix((index + 1) * GOLDEN % 2**64), 2**64)


def _cut_slice(spec: str, key: str) -> tuple[str, tuple[Fraction, Fraction]]:
    """`spec` without its slice, and the slice as shares of 1."""
    match = _SLICE.search(spec)
    if not match:
        return spec, (Fraction(0), Fraction(1))
    bounds = match[1].split(":")
    parsed = [_BOUND.fullmatch(bound.strip()) for bound in bounds]
    if len(parsed) == 2 and all(parsed):
        low = Fraction(parsed[0][1] or 0) / 100
        high = Fraction(parsed[1][1] or 100) / 100
        if low < high <= 1:
            return spec[: match.start()], (low, high)
    raise UserError(
        f"{key}={spec}: cannot read the slice {match[0]}; expected shares in per cent, the first "
        "below the second, such as [:90%], [90%:] or [80%:90%]"
    )
