"""Pairs of sentences, against the documents that they come from."""

import functools
import math
import tempfile

import numpy as np
import pytest

from pretrain.data import store
from pretrain.data import tokenizer as tokenizers
from pretrain.data.loader import train_batches
from pretrain.data.pairs import SentencePairs
from pretrain.errors import UserError
from tests import small_runs
from tests.data.test_store import Texts

SEQ_LEN = 40
WORDS = ["the", "cat", "sees", "house", "water", "river", "stone", "tree", "green", "small"]


@functools.cache
def pieces():
    return tokenizers.load(small_runs.TOKENIZERS / "bert_uncased")


def documents(
    count: int = 40, sentences: int = 12, words: tuple[int, int] = (2, 5), stop: str = "."
) -> list[str]:
    """Each names itself in every sentence, so that a piece of it tells where it is from."""
    rng = np.random.default_rng(0)

    def sentence(document, number):
        chosen = rng.choice(WORDS, rng.integers(*words, endpoint=True)).tolist()
        return " ".join([*chosen, f"d{document} s{number} {stop}"])

    return [" ".join(sentence(d, s) for s in range(sentences)) for d in range(count)]


@functools.cache
def rows(texts: tuple[str, ...] | None = None, seq_len: int = SEQ_LEN) -> store.TokenStore:
    folder = tempfile.mkdtemp()
    return store.build(
        Texts(list(texts or documents())), pieces(), seq_len=seq_len - 1, cache_dir=folder,
        packing=False, progress=False,
    )  # fmt: skip


def dataset(kind: str, short_rate: float = 0.0) -> SentencePairs:
    return SentencePairs(rows(), pieces(), kind, SEQ_LEN, short_rate)


def parts(batch, row) -> tuple[list[int], list[int]]:
    """A and B, and the columns of the row on the way."""
    tokens, types = batch["tokens"][row].tolist(), batch["token_types"][row].tolist()
    length = int(batch["segment_ids"][row].sum())
    ends = [i for i, token in enumerate(tokens) if token == pieces().sep_id]
    assert tokens[0] == pieces().cls_id and len(ends) == 2 and ends[1] == length - 1
    assert tokens[length:] == [pieces().pad_id] * (SEQ_LEN - length)
    assert types == [0] * (ends[0] + 1) + [1] * (length - ends[0] - 1) + [0] * (SEQ_LEN - length)
    positions = batch["positions"][row].tolist()
    assert positions == [*range(length), *[0] * (SEQ_LEN - length)]
    assert batch["segment_ids"][row].tolist() == [1] * length + [0] * (SEQ_LEN - length)
    return tokens[1 : ends[0]], tokens[ends[0] + 1 : ends[1]]


def found(batch):
    """Row, label, A and B of each pair."""
    pairs = np.flatnonzero(batch["pair_weights"])
    for row in pairs.tolist():
        yield row, int(batch["pair_labels"][row]), *parts(batch, row)


@functools.cache
def encoded() -> list[str]:
    """Documents as texts of ids."""
    return [f" {' '.join(map(str, pieces().encode(text)))} " for text in documents()]


def homes(*ids: int) -> set[int]:
    """Documents that hold these pieces in a row."""
    text = f" {' '.join(map(str, ids))} "
    return {i for i, document in enumerate(encoded()) if text in document}


def test_next_sentences_and_others():
    batch = dataset("nsp").prepare(np.arange(len(rows())), np.full(len(rows()), 3), seed=1)
    lengths = []
    ends = rows()[np.arange(len(rows()))]["segment_ids"].sum(1) <= 6  # of documents: no whole pair
    assert (batch["pair_weights"][~ends] == 1).mean() > 0.98, "but where no short B is found"
    for _, label, first, second in found(batch):
        assert first and second
        together, home, other = homes(*first, *second), homes(*first), homes(*second)
        assert home and other and (together or label)
        if label and min(len(first), len(second)) > 12:  # else it may stand in many places
            assert not home & other, "B is from another document"
        if not label:
            lengths.append(len(first) + len(second) + 3)
    assert max(lengths) == SEQ_LEN and np.mean(lengths) > 0.75 * SEQ_LEN


TEXTS = {
    "sentences": {},
    "long sentences": {"words": (3, 25)},  # often too long for two in a row
    "longer ones": {"words": (50, 80)},
    "no sentences": {"stop": ""},
    "short texts": {"sentences": 3, "count": 200},
    "whole texts": {"sentences": 3, "words": (1, 1), "count": 200},  # each in one row
}


@pytest.mark.parametrize("texts", TEXTS)
@pytest.mark.parametrize("kind", ["nsp", "sop"])
def test_form_and_length_do_not_tell_the_label(kind, texts):
    """The best rule of either, found with half of the pairs, is right on half of the others."""
    store = rows(tuple(documents(**TEXTS[texts])))
    pairs, dot = SentencePairs(store, pieces(), kind, SEQ_LEN, 0.1), pieces().encode(".")[0]
    inside = np.array([piece.startswith("##") for piece in pieces().pieces])
    repeats = 2000 // len(store) + 1
    indices = np.tile(np.arange(len(store)), repeats)
    batch = pairs.prepare(indices, np.arange(repeats).repeat(len(store)), seed=0)
    begun = {tuple(pieces().encode(text)[:5]) for text in documents(**TEXTS[texts])}
    ended = {tuple(pieces().encode(text)[-5:]) for text in documents(**TEXTS[texts])}
    labels, forms = [], []
    for _, label, first, second in found(batch):
        ends = first[-1] == dot, second[-1] == dot
        begins = inside[first[0]], inside[second[0]]
        edges = kind == "nsp" and (tuple(second[:5]) in begun, tuple(second[-5:]) in ended)
        forms.append(((*ends, *begins), edges, len(first) > len(second), len(first) + len(second)))
        labels.append(label)
    assert len(labels) > 0.95 * len(indices)
    for form in zip(*forms, strict=True):
        rule = {}
        for seen, label in zip(form[::2], labels[::2], strict=True):
            rule[seen] = rule.get(seen, 0) + 2 * label - 1
        guesses = [rule.get(seen, 0) > 0 for seen in form[1::2]]
        accuracy = np.mean(np.array(guesses) == labels[1::2])
        assert accuracy < 0.55, form[0]


def test_what_does_not_fit_comes_in_other_epochs():
    """Pairs of a long row begin with the first or the second of its sentences."""
    pairs, row = dataset("sop"), int(np.flatnonzero(rows().begins)[0])
    starts = [documents()[0], documents()[0].partition(". ")[2]]
    starts = [tuple(pieces().encode(text)[:5]) for text in starts]
    batch = pairs.prepare(np.full(200, row), np.arange(200), seed=0)
    texts = [
        second + first if label else first + second for _, label, first, second in found(batch)
    ]
    counts = [sum(tuple(text[:5]) == start for text in texts) for start in starts]
    assert sum(counts) == len(texts) == 200 and abs(counts[0] - 100) < 35


def test_orders():
    batch = dataset("sop").prepare(np.arange(len(rows())), np.zeros(len(rows()), int), seed=1)
    for _, label, first, second in found(batch):
        assert homes(*second, *first) if label else homes(*first, *second)
        if min(len(first), len(second)) > 5:  # else it may stand elsewhere
            assert not (homes(*first, *second) if label else homes(*second, *first))


@pytest.mark.parametrize("kind", ["nsp", "sop"])
def test_half_of_the_pairs_are_true_and_parts_are_whole_sentences(kind):
    pairs, dot = dataset(kind), pieces().encode(".")[0]
    labels, whole = [], 0
    for epoch in range(8):
        batch = pairs.prepare(np.arange(len(pairs)), np.full(len(pairs), epoch), seed=0)
        for _, label, first, second in found(batch):
            labels.append(label)
            assert (first[-1] == dot) == (second[-1] == dot)
            whole += first[-1] == dot
            for part in (first, second) if first[-1] == dot else ():
                text = f" {' '.join(map(str, part))} "
                assert homes(dot, *part) or any(x.startswith(text) for x in encoded())
    n = len(labels)
    assert abs(sum(labels) - n / 2) < 5 * math.sqrt(n) / 2
    assert whole > 0.4 * n, "where two fit into a row"


def test_some_pairs_are_short():
    no_stops = tuple(documents(stop=""))

    def lengths(short_rate):
        pairs = SentencePairs(rows(no_stops), pieces(), "sop", SEQ_LEN, short_rate)
        indices = np.arange(len(pairs)).repeat(20)
        batch = pairs.prepare(indices, np.arange(20 * len(pairs)), seed=0)
        full = rows(no_stops)[indices]["segment_ids"].sum(1) == SEQ_LEN - 1
        return batch["segment_ids"].sum(1)[full]

    least = SEQ_LEN - 8  # words stay whole
    assert (lengths(0.0) >= least).mean() > 0.99
    cut = lengths(0.3)
    n, share = len(cut), 0.3 * (1 - 9 / (SEQ_LEN - 4))
    short = (cut < least).sum()
    assert abs(short - n * share) < 5 * math.sqrt(n * share * (1 - share))
    assert cut.min() < 10


def test_a_pair_is_a_function_of_seed_index_and_epoch():
    pairs, some = dataset("nsp", 0.1), np.array([5, 0, 17])
    ones = np.ones(3, int)
    batch = pairs.prepare(some, ones, seed=2)
    alone = pairs.prepare(some[1:2], ones[:1], seed=2)
    for name, column in batch.items():
        np.testing.assert_array_equal(alone[name][0], column[1])
        assert column.dtype == (np.float32 if name == "pair_weights" else np.int32)
    for other in (pairs.prepare(some, 2 * ones, seed=2), pairs.prepare(some, ones, seed=3)):
        assert (other["tokens"] != batch["tokens"]).any()
    for name, column in pairs[some].items():
        np.testing.assert_array_equal(column, pairs[some][name], err_msg="held out: fixed")
    resumed = train_batches(pairs, batch_size=4, seed=2, start_step=30, num_steps=31)
    going = list(train_batches(pairs, batch_size=4, seed=2, start_step=0, num_steps=31))
    for name, column in next(resumed).items():
        np.testing.assert_array_equal(column, going[30][name])


def test_windows_of_one_document_are_not_taken_for_others():
    """A book and a short text: B of a pair from the book is the short one, where luck finds it."""
    book = " ".join(documents(1, 100))
    texts = (book, "water river . the tree .")
    short = f" {' '.join(map(str, pieces().encode(texts[1])))} "
    pairs = SentencePairs(rows(texts), pieces(), "nsp", SEQ_LEN, 0.0)
    indices = np.tile(np.arange(len(pairs) - 1), 8)
    batch = pairs.prepare(indices, np.arange(len(indices)), seed=0)
    seconds = [second for _, label, _, second in found(batch) if label]
    assert seconds and all(f" {' '.join(map(str, second))} " in short for second in seconds)
    assert pieces().encode("the tree .") in seconds
    assert (batch["pair_weights"] == 0).any(), "where none is found there is no pair"
    with pytest.raises(UserError, match=r"sentence_pairs: found 'nsp' with 1 document in texts"):
        SentencePairs(rows((book,)), pieces(), "nsp", SEQ_LEN, 0.0)


def test_a_pair_reads_few_rows():
    """Of a book too: at most its own two and those of the documents drawn for B."""
    book = rows((" ".join(documents(1, 100)), "water river . the tree ."))
    read = []

    class Counting:
        stats, begins = book.stats, book.begins

        def __len__(self):
            return len(book)

        def __getitem__(self, indices):
            read.append(len(indices))
            return book[indices]

    pairs = SentencePairs(Counting(), pieces(), "nsp", SEQ_LEN, 0.0)
    for index in range(len(pairs)):
        pairs[np.array([index])]
        assert sum(read) <= 4 or index == len(pairs) - 1  # the last has the book to choose from
        read.clear()


def test_a_text_of_one_piece_is_no_pair():
    pairs = SentencePairs(rows(("tree", "the cat . the tree .")), pieces(), "sop", SEQ_LEN, 0.0)
    batch = pairs[np.arange(2)]
    length = len(pieces().encode("tree"))
    assert batch["pair_weights"].tolist() == [float(length > 3), 1.0], "three pieces inside it"
    short = SentencePairs(rows(("a", "the cat .")), pieces(), "sop", SEQ_LEN, 0.0)[np.arange(1)]
    assert len(pieces().encode("a")) == 1
    assert short["pair_weights"].tolist() == [0.0] and short["segment_ids"].sum() == 3
