"""The token store against a reading of its rows token by token."""

import json
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pretrain.data import store
from pretrain.data import tokenizer as tokenizers
from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "tern", "sho") for b in ("bre", "nu", "dal", "x")]


class Texts:
    """A source that counts how often it is read, and reads slowly when asked to."""

    name = "texts"

    def __init__(self, texts: list[str], seconds: float = 0.0):
        self.texts = texts
        self.seconds = seconds
        self.reads = 0

    def __iter__(self) -> Iterator[dict]:
        self.reads += 1
        for text in self.texts:
            time.sleep(self.seconds)
            yield {"text": text}

    def fingerprint(self) -> str:
        return "-".join(map(str, map(len, self.texts)))


def documents(count: int, longest: int = 60, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest))) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizers.train(documents(200), vocab_size=300, model_type="bpe")


def segments(rows: store.TokenStore) -> list[list[int]]:
    """Every segment's pieces, in order, by walking each row; checks the row's form on the way."""
    found = []
    for row in rows[np.arange(len(rows))]["tokens"].tolist():
        rest = row
        while rest and rest[0] == Tokenizer.cls_id:
            end = rest.index(Tokenizer.sep_id)
            assert min(rest[1:end]) >= 5
            found.append(rest[1:end])
            rest = rest[end + 1 :]
        assert set(rest) <= {Tokenizer.pad_id}
    return found


def windows(texts: list[str], tokenizer: Tokenizer, size: int) -> list[list[int]]:
    return [
        ids[start : start + size]
        for ids in map(tokenizer.encode, texts)
        for start in range(0, len(ids), size)
    ]


@pytest.mark.parametrize("seq_len", [3, 16, 64, 1000])
@pytest.mark.parametrize("packing", [True, False])
def test_rows_hold_each_document_once(tokenizer, tmp_path, seq_len, packing):
    texts = [*documents(150), "", "  ", "lobre " * 900]
    rows = store.build(
        Texts(texts), tokenizer, seq_len=seq_len, cache_dir=tmp_path, packing=packing
    )
    expected = windows(texts, tokenizer, seq_len - 2)
    assert sorted(segments(rows)) == sorted(expected)
    if not packing:
        assert segments(rows) == expected
        assert len(rows) == len(expected)
        sizes = [len(windows([text], tokenizer, seq_len - 2)) for text in texts]
        begins = [i == 0 for size in sizes for i in range(size)]
        assert rows.begins.tolist() == begins


@pytest.mark.parametrize("packing", [True, False])
def test_segment_ids_and_positions(tokenizer, tmp_path, packing):
    rows = store.build(
        Texts(documents(80)), tokenizer, seq_len=48, cache_dir=tmp_path, packing=packing
    )
    batch = rows[np.arange(len(rows))]
    assert {(a.dtype, a.shape) for a in batch.values()} == {(np.dtype(np.int32), (len(rows), 48))}
    for tokens, ids, positions in zip(*(batch[k].tolist() for k in batch), strict=True):
        segment = position = 0
        for token, found_segment, found_position in zip(tokens, ids, positions, strict=True):
            if token == Tokenizer.pad_id:
                assert (found_segment, found_position) == (0, 0)
                continue
            if token == Tokenizer.cls_id:
                segment, position = segment + 1, 0
            assert (found_segment, found_position) == (segment, position)
            position += 1
    assert (batch["segment_ids"].max() > 1) == packing


def test_fancy_indexing(tokenizer, tmp_path):
    rows = store.build(Texts(documents(50)), tokenizer, seq_len=32, cache_dir=tmp_path)
    whole = rows[np.arange(len(rows))]
    indices = np.array([len(rows) - 1, 0, 2, 2])
    for name, column in rows[indices].items():
        np.testing.assert_array_equal(column, whole[name][indices])
    with pytest.raises(IndexError):
        rows[np.array([len(rows)])]


def test_stats(tokenizer, tmp_path):
    texts = [*documents(100), "", "héllo ☃"]
    rows = store.build(Texts(texts), tokenizer, seq_len=32, cache_dir=tmp_path)
    pieces = [i for text in texts for i in tokenizer.encode(text)]
    num_windows = len(windows(texts, tokenizer, 30))
    shares = [count / len(pieces) for count in Counter(pieces).values()]
    assert rows.stats.num_rows == len(rows)
    assert rows.stats.num_documents == 101
    assert rows.stats.num_tokens == len(pieces) + 2 * num_windows
    assert rows.stats.num_tokens == np.count_nonzero(rows[np.arange(len(rows))]["tokens"])
    assert rows.stats.num_bytes == sum(len(text.encode()) for text in texts)
    assert rows.stats.unigram_entropy == pytest.approx(-sum(p * math.log(p) for p in shares))
    assert (rows.name, rows.fingerprint) == ("texts", Texts(texts).fingerprint())
    meta = json.loads((rows.path / "meta.json").read_text())
    assert meta["tokenizer_fingerprint"] == tokenizer.fingerprint


def test_packing_wastes_little(tokenizer, tmp_path):
    texts = documents(3000, longest=40)
    rows = store.build(Texts(texts), tokenizer, seq_len=128, cache_dir=tmp_path)
    assert rows.stats.num_tokens / (len(rows) * 128) > 0.98
    loose = store.build(Texts(texts), tokenizer, seq_len=128, cache_dir=tmp_path, packing=False)
    assert loose.stats.num_tokens / (len(loose) * 128) < 0.6


def test_open_rows_are_bounded(tokenizer, tmp_path, monkeypatch):
    """With few open rows the fullest are written early, and still no document is lost."""
    monkeypatch.setattr(store, "_OPEN_ROWS", 3)
    texts = documents(300)
    rows = store.build(Texts(texts), tokenizer, seq_len=100, cache_dir=tmp_path)
    assert sorted(segments(rows)) == sorted(windows(texts, tokenizer, 98))


@pytest.mark.parametrize(
    "vocab_size, dtype", [(300, "<u2"), (2**16 - 3, "<u2"), (2**16 - 2, "<u4")]
)
def test_token_width(tmp_path, vocab_size, dtype):
    """The largest id comes back whole, whatever the width on disk; three more have a meaning."""

    class Wide(Tokenizer):
        def __init__(self):
            self.vocab_size = vocab_size
            self.fingerprint = "wide"

        def encode_batch(self, texts, **_):
            return [[5, vocab_size - 1] for _ in texts]

    rows = store.build(Texts(["a"]), Wide(), seq_len=4, cache_dir=tmp_path)
    assert rows[np.array([0])]["tokens"].tolist() == [[2, 5, vocab_size - 1, 3]]
    assert (rows.path / "tokens.bin").stat().st_size == 4 * np.dtype(dtype).itemsize


def test_one_special_token_for_everything(tmp_path):
    """As of GPT-2: it begins, ends and fills up, and may stand in a text."""

    class Single(Tokenizer):
        pad_id = cls_id = sep_id = 9
        special_ids = (9,)

        def __init__(self):
            self.vocab_size = 10
            self.fingerprint = "single"

        def encode_batch(self, texts, **_):
            return [[int(c) for c in text] for text in texts]

    rows = store.build(Texts(["12", "0", "394"]), Single(), seq_len=8, cache_dir=tmp_path)
    batch = {name: column.tolist() for name, column in rows[np.arange(len(rows))].items()}
    assert batch == {
        "tokens": [[9, 1, 2, 9, 9, 0, 9, 9], [9, 3, 9, 4, 9, 9, 9, 9]],
        "segment_ids": [[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 0, 0, 0]],
        "positions": [[0, 1, 2, 3, 0, 1, 2, 0], [0, 1, 2, 3, 4, 0, 0, 0]],
    }
    assert rows.stats.unigram_entropy == pytest.approx(math.log(5))  # 0, 1, 2, 3, 4 once each


def test_finished_store_is_reused(tokenizer, tmp_path):
    source = Texts(documents(30))
    first = store.build(source, tokenizer, seq_len=32, cache_dir=tmp_path)
    again = store.build(source, tokenizer, seq_len=32, cache_dir=tmp_path)
    assert (source.reads, first.path) == (1, again.path)
    other = tokenizers.train(documents(100), vocab_size=290, model_type="bpe")
    paths = {
        first.path,
        store.build(source, tokenizer, seq_len=33, cache_dir=tmp_path).path,
        store.build(source, tokenizer, seq_len=32, cache_dir=tmp_path, packing=False).path,
        store.build(source, other, seq_len=32, cache_dir=tmp_path).path,
        store.build(Texts(documents(31)), tokenizer, seq_len=32, cache_dir=tmp_path).path,
    }
    assert len(paths) == 5


def test_building_is_deterministic(tokenizer, tmp_path):
    files = [
        store.build(Texts(documents(500)), tokenizer, seq_len=64, cache_dir=tmp_path / name).path
        for name in "ab"
    ]
    for name in ("tokens.bin", "meta.json"):
        assert (files[0] / name).read_bytes() == (files[1] / name).read_bytes()


def test_failure_leaves_nothing(tokenizer, tmp_path):
    class Broken(Texts):
        def __iter__(self):
            yield {"text": "kabre"}
            raise UserError("corpus.txt:2: broken")

    with pytest.raises(UserError, match="broken"):
        store.build(Broken(["x"]), tokenizer, seq_len=32, cache_dir=tmp_path)
    assert list((tmp_path / "stores").iterdir()) == []


def test_bad_input(tokenizer, tmp_path):
    for texts in ([], ["", " \n"]):
        with pytest.raises(UserError, match=r"^data\.train: texts"):
            store.build(Texts(texts), tokenizer, seq_len=32, cache_dir=tmp_path)
    with pytest.raises(UserError, match=r"^data\.test: texts"):
        store.build(Texts([]), tokenizer, seq_len=32, cache_dir=tmp_path, key="data.test")
    with pytest.raises(UserError, match=r"train\.seq_len: 2 .* at least 3"):
        store.build(Texts(["a"]), tokenizer, seq_len=2, cache_dir=tmp_path)
    rows = store.build(Texts(["kabre"]), tokenizer, seq_len=32, cache_dir=tmp_path)
    (rows.path / "tokens.bin").write_bytes(b"\0\0")
    with pytest.raises(UserError, match="2 bytes, expected 64"):
        store.build(Texts(["kabre"]), tokenizer, seq_len=32, cache_dir=tmp_path)


def test_progress_lines(tokenizer, tmp_path, capsys):
    texts = documents(20)
    rows = store.build(Texts(texts), tokenizer, seq_len=32, cache_dir=tmp_path)
    num_pieces = sum(len(tokenizer.encode(text)) for text in texts)
    shown = capsys.readouterr().err
    assert f"tokenize texts: 20 documents, {num_pieces:,} tokens, " in shown
    assert shown.endswith("tokens/s\n") and "\r" not in shown
    store.build(Texts(texts), tokenizer, seq_len=33, cache_dir=tmp_path, progress=False)
    assert capsys.readouterr().err == ""
    assert rows.stats.num_documents == 20


# Argument: the cache folder. Signals that it reads, waits for the other, then builds.
_BUILDER = """
import pathlib, sys, time
from tests.data.test_store import Texts, documents
from pretrain.data import store, tokenizer
folder, me, other = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
tok = tokenizer.Tokenizer.load(folder / "tokenizer.model")
(folder / me).touch()
deadline = time.monotonic() + 60
while not (folder / other).exists():
    assert time.monotonic() < deadline
    time.sleep(0.01)
source = Texts(documents(200), 0.005)
rows = store.build(source, tok, seq_len=32, cache_dir=folder / "cache")
print(source.reads, len(rows), rows.path)
"""


def test_two_processes_building_at_once(tokenizer, tmp_path):
    """Both want the same store at the same time: one builds it, the other waits for it."""
    tokenizer.save(tmp_path / "tokenizer.model")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _BUILDER, str(tmp_path), *names],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for names in (("a", "b"), ("b", "a"))
    ]
    outputs = []
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        outputs.append(out.split())
    reads, *same = zip(*outputs, strict=True)
    assert sorted(reads) == ["0", "1"]
    assert all(one == other for one, other in same)
    assert len(list((tmp_path / "cache" / "stores").iterdir())) == 1
    source = Texts(documents(200))
    rows = store.build(source, tokenizer, seq_len=32, cache_dir=tmp_path / "cache")
    assert source.reads == 0
    assert sorted(segments(rows)) == sorted(windows(source.texts, tokenizer, 30))


def test_real_text(shared_data, tmp_path):
    """WikiText-2: nothing lost between the file and the rows but the normalised white space."""
    lines = (shared_data / "wikitext2" / "valid.txt").read_text().splitlines()
    texts = [line for line in lines[:600] if line.strip()]
    tokenizer = tokenizers.train(texts, vocab_size=1000, model_type="bpe")
    rows = store.build(
        Texts(texts), tokenizer, seq_len=4096, cache_dir=tmp_path, packing=False, progress=False
    )
    assert [tokenizer.decode(ids) for ids in segments(rows)] == [
        " ".join(text.split()) for text in texts
    ]
