import time

import numpy as np
import pytest

from pretrain.data import features
from pretrain.data.labels import decode_tags, words_from_predictions
from pretrain.data.ngrams import NgramFeatures, NgramOptions
from pretrain.errors import UserError

# rows


@pytest.mark.parametrize("longest", [1, 7, 64, 200])
def test_rows_hold_things_whole_and_little_else(longest):
    sizes = np.random.default_rng(longest).integers(1, longest + 1, 3000)
    row, first, lanes = features.pack(sizes)
    assert lanes == max(64, longest)
    taken = np.zeros((row.max() + 1, lanes), int)
    for r, start, size in zip(row, first, sizes, strict=True):
        assert start + size <= lanes
        taken[r, start : start + size] += 1
    assert taken.max() == 1
    assert taken.mean() > 0.95


def test_rows_mix_what_comes_in_the_order_of_labels():
    row, _, _ = features.pack(np.full(640, 8))
    share = np.bincount(row, np.arange(640) < 320) / np.bincount(row)
    assert len(share) == 80 and ((share > 0) & (share < 1)).mean() > 0.9


def test_no_things_are_no_rows():
    assert features.pack(np.zeros(0, np.int64))[0].size == 0


# documents

TEXTS = ["good film", "bad", "x", "", " ".join(f"w{i}" for i in range(600))]
NAMES = ("pos", "neg", None, "neg", "pos")
EXAMPLES = [{"text": t, "label": n} for t, n in zip(TEXTS, NAMES, strict=True)]


@pytest.mark.parametrize("weighting", ["tfidf", "naive_bayes"])
def test_documents_come_back_from_their_lanes(weighting):
    fitted = NgramFeatures(NgramOptions(weighting=weighting))
    fitted.fit(TEXTS, np.array([1, 0, 0, 0, 1]), 2)
    columns = features.encode_classification_features(EXAMPLES, fitted, label_names=["neg", "pos"])
    labelled = columns["weights"] > 0
    order = np.argsort(columns["example"][labelled])
    assert columns["example"][labelled][order].tolist() == [0, 1, 2, 3, 4]
    assert columns["labels"][labelled][order].tolist() == [1, 0, -1, 0, 1]
    assert set(columns["weights"][labelled]) == {1.0}
    assert columns["features"].shape[1:] == (-(-1199 // features.LANE), features.LANE)
    sizes, ids, values = fitted.transform(TEXTS)
    for row, lane in zip(*np.nonzero(labelled), strict=True):
        i = columns["example"][row, lane]
        own = columns["document"][row] == lane
        used = columns["features"][row, own] > 0
        part = slice(sizes[:i].sum(), sizes[: i + 1].sum())
        assert np.array_equal(columns["features"][row, own][used], ids[part])
        assert np.array_equal(columns["values"][row, own][used], values[part])
        assert not columns["values"][row, own][~used].any()


def test_unknown_labels_are_named():
    fitted = NgramFeatures(NgramOptions()).fit(["good"], np.zeros(1, int), 1)
    with pytest.raises(UserError, match=r"data\.test: example 0 .*'pos'"):
        features.encode_classification_features(
            EXAMPLES, fitted, label_names=["neg"], key="data.test"
        )


# words


def word_features(words, **options):
    """The features of one sentence's words, [words, K]."""
    columns = features.encode_tag_features([{"tokens": words}], label_names=["O"], **options)
    return columns["features"][columns["label_mask"] > 0]


def shared(a, b):
    """How many features two words have in common, place by place."""
    return int(((a == b) & (a > 0)).sum())


def test_words_share_the_features_that_they_should():
    first = word_features(["in", "Paris", ",", "on"], num_features=2**22)
    again = word_features(["in", "Paris", ",", "on"], num_features=2**22)
    assert np.array_equal(first, again)
    assert first.dtype == np.int32
    longer = word_features(["far", "in", "Paris", ",", "on", "9"], num_features=2**22)
    # "Paris" sees two words each way: the same features, though the sentence goes on.
    assert longer.shape[1] == first.shape[1]
    assert np.array_equal(first[1], longer[2]) is False  # the left edge was two words away
    assert np.array_equal(first[2], longer[3]) is False  # and so was the right one
    middle = ["a", "b", "Paris", "c", "d"]
    inside = word_features(middle, num_features=2**22)[2]
    further = word_features(["x", *middle, "y"], num_features=2**22)[3]
    assert np.array_equal(inside, further)
    third = word_features(["x", *middle[1:]], num_features=2**22)[2]
    assert 0 < shared(inside, third) < len(inside)


def test_neighbours_count_by_their_position():
    words = ["k", "LL", "Paris", "12", "3-"]
    ids = [
        set(word_features(order, num_features=2**30)[2].tolist()) for order in (words, words[::-1])
    ]
    own = word_features(["Paris"], num_features=2**30, window=0)[0].tolist()
    assert ids[0] & ids[1] == {*own}


def test_a_word_alone_has_its_own_features_only():
    own = word_features(["Paris", "in", "May"], num_features=2**22, window=0)
    other = word_features(["in", "Paris"], num_features=2**22, window=0)
    assert np.array_equal(own[0], other[1])
    # lower, word, shape, short shape, 4 suffixes, 4 prefixes, capital | 2 letters: 2 affixes each.
    assert np.count_nonzero(own, axis=1).tolist() == [13, 8, 11]


@pytest.mark.parametrize(
    ("a", "b", "common"),
    [
        ("paris", "PARIS", 9),  # lower case, 4 suffixes, 4 prefixes
        ("Rome", "Bern", 3),  # shape, short shape, capital
        ("Bonn", "Genoa", 2),  # short shape, capital
        ("1984", "2001", 3),  # shape, short shape, digit
        ("walking", "talking", 6),  # shape, short shape, 4 suffixes
        ("x-1", "yy-22", 3),  # short shape, digit, hyphen
        ("!", "?", 1),  # mark
        ("a", "1", 0),
    ],
)
def test_similar_words_share_features(a, b, common):
    ids = word_features([a, b], num_features=2**30, window=0)
    assert shared(*ids) == common


def test_ids_of_words_stay_in_range_and_odd_words_work():
    words = ["", " ", "a b", "\ud800", "é" * 50, "\U0001f600", "-"]
    ids = word_features(words, num_features=7)
    assert len(ids) == len(words)
    assert ids.min() == 0
    assert ids.max() == 6
    assert word_features([], num_features=7).shape == (0, ids.shape[1])
    assert word_features([], num_features=7, window=0).shape[0] == 0


TAGS = ["O", "B-A", "I-A"]


def random_sentences(count, longest):
    rng = np.random.default_rng(longest)
    sizes = rng.integers(0, longest + 1, count)
    return [
        {
            "tokens": [f"w{i}" for i in rng.integers(0, 50, size)],
            "tags": rng.choice(TAGS, size).tolist(),
        }
        for size in sizes
    ]


@pytest.mark.parametrize("longest", [3, 20, 100])
def test_sentences_are_packed_whole_and_come_back(longest):
    sentences = [*random_sentences(25, longest), {"tokens": [], "tags": []}]
    columns = features.encode_tag_features(sentences, num_features=5000, label_names=TAGS)
    gold = words_from_predictions(columns, columns["labels"], TAGS)
    assert gold == [sentence["tags"] for sentence in sentences]
    assert np.array_equal(columns["values"] > 0, columns["features"] > 0)
    for i, sentence in enumerate(sentences):
        here = (columns["example"] == i) & (columns["label_mask"] > 0)
        expected = word_features(sentence["tokens"], num_features=5000)
        assert np.array_equal(columns["features"][here], expected)
        assert columns["word"][here].tolist() == list(range(len(sentence["tokens"])))
        ends = [False] * (len(sentence["tokens"]) - 1) + [True] * bool(sentence["tokens"])
        assert columns["sentence_end"][here].tolist() == ends
        assert len(set(np.nonzero(here)[0])) <= 1, "one row"
    assert not columns["features"][columns["label_mask"] == 0].any()


def test_sentences_are_decoded_each_on_its_own():
    """Two words that prefer I-A, wherever sentences begin: only the first may be B-A."""
    sentences = [{"tokens": ["a"] * n} for n in (2, 3, 0, 2)]
    columns = features.encode_tag_features(sentences, num_features=10, label_names=TAGS)
    scores = np.zeros((*columns["word"].shape, 3))
    scores[...] = [-9, -1, 0]
    expected = [["B-A", *["I-A"] * (n - 1)] if n else [] for n in (2, 3, 0, 2)]
    assert decode_tags(columns, scores, TAGS) == expected


def test_unknown_tags_are_named():
    with pytest.raises(UserError, match=r"data\.test: example 0 has the tag 'B-Z'"):
        features.encode_tag_features(
            [{"tokens": ["a"], "tags": ["B-Z"]}],
            num_features=10,
            label_names=TAGS,
            key="data.test",
        )


def test_features_of_words_are_fast():
    rng = np.random.default_rng(0)
    words = [f"Word-{i}" for i in rng.zipf(1.3, 20_000) % 5000]
    start = time.process_time()
    word_features(words, num_features=2**18)
    assert len(words) / (time.process_time() - start) > 20_000
