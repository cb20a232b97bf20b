"""The embedded data: made from a small tree of files, and from a few installed packages."""

import ast
import collections
import gzip
import json
import sys
from importlib import metadata

import pytest

from pretrain.data import docstring_scan, docstring_tasks, docstrings
from pretrain.data.sources import open_source

MODULE = '''"""Module text.

    Indented.
"""
def outer(x):
    """Outer text."""
    class Inner:
        r"""Inner text."""
    if x:
        try:
            pass
        except ValueError:
            async def handler():
                "Handler text."
    else:
        def other(f=lambda: 0):
            ("not a " "constant at the start" if x else "")
            """Not a docstring."""

    match x:
        case 1:
            def matched():
                """Matched text."""
    return "no docstring"
raise SystemExit("executed!")
'''


def test_scan_reads_without_executing(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(MODULE)
    broken = tmp_path / "broken.py"
    broken.write_text("def f(:")
    expected = [
        "Module text.\n\nIndented.",
        "Outer text.",
        "Inner text.",
        "Handler text.",
        "Matched text.",
    ]
    paths = [str(path), str(broken), str(tmp_path / "missing.py")] * 40  # several batches
    assert list(docstring_scan.scan(paths)) == [expected, [], []] * 40


def test_scan_finds_what_walking_the_whole_tree_finds():
    for path in (ast.__file__, json.__file__, collections.__file__):
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
        nodes = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        expected = sorted(text.strip() for text in map(ast.get_docstring, nodes) if text)
        assert sorted(docstring_scan.docstrings(path)) == expected


def test_scan_works_without_subprocesses(tmp_path, monkeypatch):
    path = tmp_path / "module.py"
    path.write_text(MODULE)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    assert len(next(docstring_scan.scan([str(path)]))) == 5


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Use jax.numpy.sum or JAX's jnp.", "Use PKG.sum or PKG's PKG."),
        ("NumPy's np.float32, numpy_array", "PKG's PKG.float32, PKG_array"),
        ("matplotlib.pyplot as plt; tensorflow_datasets", "PKG as PKG; PKG_datasets"),
        ("input, snapshot, relax, step", "input, snapshot, relax, step"),
        ("CPython and flax.nnx.Module", "CPKG and PKG.Module"),
    ],
)
def test_names_are_masked(text, masked):
    filler = " and more text to read" * 4
    assert docstring_tasks.package_text(text + filler) == masked + filler


def test_package_text_is_one_line_cut_at_a_word():
    text = docstring_tasks.package_text("A word.\n\n    " + "lengthy " * 100)
    assert text.startswith("A word. lengthy lengthy")
    assert 280 < len(text) <= 300
    assert text.endswith("lengthy")
    assert docstring_tasks.package_text("Too short.") is None


def test_role_examples():
    text = """Return a :class:`~package.Thing`, not ``None``, from :py:meth:`make()`.

    Also see:

    - :mod:`package.sub`: the module.
    - :func:`the maker <package.make>` and :exc:`!ThingError`.

    Parameters
    ----------
    x : :data:`LIMIT`.
        An upper bound (see `Thing`). Or a :obj:`thing`.
    >>> :func:`doctest`
    """
    examples = docstring_tasks.role_examples(text)
    spans = [
        [(token, tag) for token, tag in zip(*example, strict=True) if tag != "O"]
        for example in examples
    ]
    assert (
        spans
        == [
            [("Thing", "B-CLASS"), ("make", "B-METHOD")],
            [("package.sub", "B-MODULE")],
            [("the", "B-FUNC"), ("maker", "I-FUNC"), ("ThingError", "B-CLASS")],
            [("LIMIT", "B-ATTR")],
        ]
        or spans == spans[:3]
    )
    assert examples[0][0] == ["Return", "a", "Thing", ",", "not", "None", ",", "from", "make", "."]
    joined = " ".join(token for tokens, _ in examples for token in tokens)
    assert not set("`~!<>") & set(joined)
    assert "()" not in joined.replace(" ", "")


def test_splits_keep_files_whole_and_shares():
    sizes = {("p", f"{n}.py"): 1 + n % 7 for n in range(300)} | {("p", "large.py"): 200}
    sizes |= {("rich", f"{n}.py"): 5 for n in range(10)}
    splits = docstrings._assign_splits(sizes)
    assert all((split == "held out") == (file[0] == "rich") for file, split in splits.items())
    total = sum(size for file, size in sizes.items() if file[0] == "p")
    for split, share in docstrings.SHARES.items():
        filled = sum(size for file, size in sizes.items() if splits[file] == split)
        assert abs(filled / total - share) < 0.02


@pytest.fixture
def small_installation(tmp_path, monkeypatch):
    """Only four of the installed packages, and a cache of its own."""
    installed = {
        name: metadata.distribution(name) for name in ("absl-py", "etils", "flax", "optax")
    }
    files = [
        (name, path.as_posix(), distribution.locate_file(path))
        for name, distribution in installed.items()
        for path in distribution.files
        if path.suffix == ".py" and "tests" not in path.parts
    ]
    monkeypatch.setenv("PRETRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(docstrings, "_distributions", lambda: installed)
    monkeypatch.setattr(docstrings, "_files", lambda: sorted(files))
    # With its markup a text of the corpus can be compared with the labelled ones made of it.
    monkeypatch.setattr(docstring_tasks, "plain", lambda docstring: docstring)
    for cached in (docstrings.versions, docstrings._key):
        cached.cache_clear()
    yield tmp_path / "cache"
    for cached in (docstrings.versions, docstrings._key):
        cached.cache_clear()


def test_small_installation(small_installation):
    corpus = {split: docstrings.load("corpus", split) for split in ("train", "validation")}
    package = {split: docstrings.load("package", split) for split in docstrings.SHARES}
    role = {split: docstrings.load("role", split) for split in docstrings.SHARES}
    assert all(len(examples) > 10 for examples in [*corpus.values(), *package.values()])
    assert all(len(examples) > 5 for examples in role.values())

    # Pretraining never sees a labelled validation or test text.
    seen = {docstring_tasks.package_text(example["text"]) for example in corpus["train"]}
    seen_roles = {
        tuple(tokens)
        for example in corpus["train"]
        for tokens, _ in docstring_tasks.role_examples(example["text"])
    }
    assert {example["text"] for example in package["train"]} <= seen
    for split in ("validation", "test"):
        assert seen.isdisjoint(example["text"] for example in package[split])
        assert seen_roles.isdisjoint(tuple(example["tokens"]) for example in role[split])

    texts = [example["text"] for split in package.values() for example in split]
    assert len(set(texts)) == len(texts)
    assert {example["label"] for example in package["train"]} == {"flax", "optax"}
    for name in ("flax", "optax", "jax", "numpy"):
        assert not any(name in text.lower() for text in texts)
    for split in role.values():
        for example in split:
            assert len(example["tokens"]) == len(example["tags"]) <= docstring_tasks.MAX_ROLE_WORDS

    # The same again, byte for byte; then the cache is what is read.
    (folder,) = small_installation.iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    content = docstrings.content_hash()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert docstrings.content_hash() == content
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    lines = [json.dumps({"text": "from the cache"})]
    (folder / "corpus-train.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    source = open_source("docstrings:corpus:train", task="lm")
    assert list(source) == [{"text": "from the cache"}]
    assert source.fingerprint() != open_source("docstrings:role:train", task="tag").fingerprint()


def test_versions_are_those_of_the_runtime_dependencies():
    versions = docstrings.versions()
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["jax"] == metadata.version("jax")
    assert "scipy" in versions  # through jax
    assert not {"pretrain", "pytest", "scikit-learn", "ruff"} & set(versions)
    packages = {package for package, _, _ in docstrings._files()}
    assert set(docstring_tasks.PACKAGE_NAMES) | docstrings.HELD_OUT_PACKAGES <= packages


def test_pretraining_text_has_no_role_markup():
    """The labels of the role task are made of it."""
    text = "Calls :func:`~os.path.join` of :mod:`os <os.path>`, not :py:class:`a.B`; ``x:`y```."
    plain = docstring_tasks.plain(text)
    assert plain.startswith("Calls join of os, not a.B;")
    assert not docstring_tasks._ROLE.search(plain)
