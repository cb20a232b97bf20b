"""The embedded default data: the documentation that every installation carries.

The docstrings of the standard library and of this project's runtime dependencies, read in place
(see `docstring_scan`), become three subsets:

- ``corpus`` (lm): whole docstrings; for validation, a handful of packages held out whole.
- ``package`` (classify): docstring -> the package that it documents, names masked.
- ``role`` (tag): cross-references and their types, markup stripped.

The two labelled ones are *silver* (see `docstring_tasks`). Every file belongs to one split, so
objects of one file never straddle, and the training corpus is the text of the training files:
pretraining on it never sees a labelled validation or test text. Among near-duplicates the first of
a training file stays, so none is left on the other side either.

The result depends on the installed versions: `versions` and `content_hash` belong in a report.
"""

import functools
import gzip
import hashlib
import json
import logging
import platform
import re
import sysconfig
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, TypeVar

from tqdm import tqdm

from pretrain.data import docstring_scan, docstring_tasks
from pretrain.data.cache import cache_dir, make_once
from pretrain.errors import UserError

logger = logging.getLogger(__name__)

SUBSETS = {
    "corpus": ("train", "validation"),
    "package": ("train", "validation", "test"),
    "role": ("train", "validation", "test"),
}
SPLITS = ("train", "validation", "test", "held out")
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}  # of each package's text, by file
# Small or medium, varied, in every installation, and not among the classes of `package`.
HELD_OUT_PACKAGES = frozenset({"etils", "fsspec", "grain", "pillow", "rich"})
MAX_PER_PACKAGE = 1500  # several times as many as the smallest class has
MIN_DOCUMENT_CHARACTERS = 30
_SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages"})


Item = TypeVar("Item")


class Docstring(NamedTuple):
    split: str
    package: str
    file: str  # path inside the package, with forward slashes
    text: str


def load(subset: str, split: str) -> list[dict]:
    """The examples of a split, read from the cache; scans the installation the first time."""
    path = _directory() / f"{subset}-{split}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def fingerprint(subset: str, split: str) -> str:
    """sha256 (hex) of the content of a split."""
    return _about()["fingerprints"][f"{subset}-{split}"]


def content_hash() -> str:
    """sha256 (hex) of the content of all splits together."""
    fingerprints = _about()["fingerprints"]
    return hashlib.sha256(
        "".join(fingerprints[name] for name in sorted(fingerprints)).encode()
    ).hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """The versions of the packages that are read, by normalised name; the library is "python"."""
    return {"python": platform.python_version()} | {
        name: distribution.version for name, distribution in _distributions().items()
    }


@functools.cache
def _distributions() -> dict[str, metadata.Distribution]:
    """This project's runtime dependencies, transitively, by normalised name, sorted."""
    from packaging.requirements import Requirement

    found: dict[str, metadata.Distribution] = {}
    waiting = ["pretrain"]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if name != "pretrain":
                continue
            raise UserError(
                "docstrings: the package `pretrain` is not installed, so its dependencies are "
                "unknown; run `pip install -e .` in the repository first"
            ) from None
        for line in found[name].requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    del found["pretrain"]
    return dict(sorted(found.items()))


def _files() -> list[tuple[str, str, Path]]:
    """(package, relative path, absolute path) of every Python file to read, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [("python", path.relative_to(root), path) for path in root.rglob("*.py")]
    for name, distribution in _distributions().items():
        files += [
            (name, Path(path), Path(distribution.locate_file(path)))
            for path in distribution.files or []
            if path.suffix == ".py"
        ]
    return sorted(
        (package, relative.as_posix(), path)
        for package, relative, path in files
        if not _SKIPPED_FOLDERS.intersection(relative.parts)
    )


@functools.cache
def _key() -> str:
    """Names what the splits are made from: the packages read and the code that reads them."""
    modules = (docstring_scan, docstring_tasks, None)
    code = [Path(module.__file__ if module else __file__).read_bytes() for module in modules]
    identity = json.dumps([versions(), sysconfig.get_paths()["stdlib"]]).encode()
    return hashlib.sha256(b"\0".join([identity, *code])).hexdigest()


def _directory() -> Path:
    """The folder with the finished splits, made now if this is the first time."""
    path = cache_dir() / f"docstrings-{_key()[:16]}"

    def make(building: Path) -> None:
        logger.info("reading the docstrings of %d packages, once, into %s", len(versions()), path)
        _write(_subsets(_read(_files())), building)

    make_once(path, make)
    return path


def _about() -> dict:
    return json.loads((_directory() / "about.json").read_text("utf-8"))


def _read(files: list[tuple[str, str, Path]]) -> list[Docstring]:
    """All docstrings of `files`, training files first, without near-duplicates."""
    found = docstring_scan.scan([str(path) for _, _, path in files])
    progress = tqdm(found, "reading docstrings", total=len(files), unit="file", disable=None)
    texts = {
        (package, file): [text for text in texts if len(text) >= MIN_DOCUMENT_CHARACTERS]
        for (package, file, _), texts in zip(files, progress, strict=True)
    }
    splits = _assign_splits({file: sum(map(len, found)) for file, found in texts.items()})
    docstrings = [
        Docstring(splits[file], *file, text) for file, found in texts.items() for text in found
    ]
    docstrings.sort(key=lambda doc: SPLITS.index(doc.split))  # stable
    return _first_of_each(docstrings, lambda doc: doc.text)


def _assign_splits(sizes: dict[tuple[str, str], int]) -> dict[tuple[str, str], str]:
    """A split for each (package, file), such that each package's text falls about 70 / 10 / 20 %.

    A few files hold much of a package's text, so that chance alone would give uneven splits. In
    the random order of their hashes, each goes where it leads to the least overfull split.
    """
    splits = {}
    filled: dict[str, dict[str, int]] = {}
    for file in sorted(sizes, key=lambda file: _digest("/".join(file))):
        if file[0] in HELD_OUT_PACKAGES:
            splits[file] = "held out"
            continue
        used = filled.setdefault(file[0], dict.fromkeys(SHARES, 0))
        fullness = {split: (used[split] + sizes[file]) / share for split, share in SHARES.items()}
        splits[file] = min(fullness, key=lambda split: fullness[split])
        used[splits[file]] += sizes[file]
    return splits


def _subsets(docstrings: list[Docstring]) -> dict[str, list[dict]]:
    """The examples of every "subset-split", in a fixed order."""
    made = {
        name: [
            {"text": docstring_tasks.plain(doc.text)} for doc in docstrings if doc.split == split
        ]
        for name, split in (("corpus-train", "train"), ("corpus-validation", "held out"))
    }
    for subset, examples in (
        ("package", _package_examples(docstrings)),
        ("role", _role_examples(docstrings)),
    ):
        for split in SUBSETS[subset]:
            made[f"{subset}-{split}"] = [example for doc, example in examples if doc.split == split]
    return made


def _package_examples(docstrings: list[Docstring]) -> list[tuple[Docstring, dict]]:
    texts = ((doc, docstring_tasks.package_text(doc.text)) for doc in docstrings)
    # Other packages' texts take part here: what the training corpus holds is no test text.
    unique = _first_of_each([item for item in texts if item[1]], lambda item: item[1])
    chosen = []
    for package in docstring_tasks.PACKAGE_NAMES:
        examples = [
            (doc, {"text": text, "label": package})
            for doc, text in unique
            if doc.package == package
        ]
        # The lowest hashes: a random sample that one docstring more or less hardly changes.
        chosen += sorted(examples, key=lambda item: _digest(item[1]["text"]))[:MAX_PER_PACKAGE]
    return chosen


def _role_examples(docstrings: list[Docstring]) -> list[tuple[Docstring, dict]]:
    examples = [
        (doc, {"tokens": tokens, "tags": tags})
        for doc in docstrings
        for tokens, tags in docstring_tasks.role_examples(doc.text)
    ]
    return _first_of_each(examples, lambda item: " ".join(item[1]["tokens"]))


def _first_of_each(items: list[Item], text: Callable[[Item], str]) -> list[Item]:
    """`items` without those whose text begins like an earlier one's.

    Alike is what has the same first 200 characters but for case, digits and white space.
    """
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(re.sub(r"[\s\d]+", "", text(item).lower())[:200], item)
    return list(first.values())


def _write(subsets: dict[str, list[dict]], directory: Path) -> None:
    fingerprints = {}
    for name, examples in subsets.items():
        lines = "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
        fingerprints[name] = _digest(lines)
        (directory / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode(), 6, mtime=0))
    about = {"versions": versions(), "fingerprints": fingerprints}
    (directory / "about.json").write_text(json.dumps(about, indent=1), "utf-8")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
