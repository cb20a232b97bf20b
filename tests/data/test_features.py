import os
import subprocess
import sys
import time

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from pretrain.data import features
from pretrain.data.labels import decode_tags, words_from_predictions
from pretrain.errors import UserError

TEXTS = [
    "A film; a GOOD film!",
    "not good , not good at all ...",
    "I 've seen 3 films",
    "",
    "what a film ?!",
]
UNSEEN = ["a good film , unseen words", "nothing known here", "film film film film"]


def dense(ids, values, num_features):
    out = np.zeros((len(ids), num_features))
    np.add.at(out, (np.arange(len(ids))[:, None], ids), values)
    return out


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("sublinear_tf", [True, False])
@pytest.mark.parametrize("ngrams", [(1, 1), (1, 2), (2, 3)])
def test_ngram_features_equal_sklearn(ngrams, sublinear_tf, lowercase):
    ours = features.NgramFeatures(2**16, ngrams, lowercase, sublinear_tf).fit(TEXTS)
    theirs = TfidfVectorizer(
        ngram_range=ngrams,
        lowercase=lowercase,
        sublinear_tf=sublinear_tf,
        token_pattern=r"\w+|[^\w\s]",
    ).fit(TEXTS)
    terms = theirs.get_feature_names_out().tolist()
    texts = [*TEXTS, *UNSEEN, *terms]
    ids, values = ours.transform(texts)
    expected = theirs.transform(texts).toarray()
    assert len(set(ids[values > 0])) == len(terms)  # no collisions here
    # Which column is whose does not matter: equal products of all pairs of texts, one of them every
    # term by itself, and equal values in each text.
    found = dense(ids, values, ours.num_features)
    assert np.abs(found @ found.T - expected @ expected.T).max() < 1e-6
    width = len(terms)
    assert np.abs(np.sort(found)[:, -width:] - np.sort(expected)).max() < 1e-6


def test_ngram_features_are_sorted_merged_and_padded():
    fitted = features.NgramFeatures(40).fit(TEXTS)  # so few buckets that n-grams collide
    ids, values = fitted.transform([*TEXTS, "good film " * 100])
    assert ids.dtype == np.int32
    assert values.dtype == np.float32
    assert ids.shape == values.shape == (6, 64)
    for row, value in zip(ids, values, strict=True):
        used = np.count_nonzero(value)
        assert (np.diff(row[:used]) > 0).all()
        assert (row[:used] > 0).all()
        assert not row[used:].any()
    norms = np.linalg.norm(values, axis=1)
    assert norms == pytest.approx([1, 1, 1, 0, 1, 1], abs=1e-6)


def test_ngram_features_grow_by_64():
    texts = [" ".join(f"w{i}" for i in range(n)) for n in (10, 65)]
    fitted = features.NgramFeatures(ngrams=(1, 1)).fit(texts)
    assert fitted.transform(texts)[0].shape == (2, 128)
    assert fitted.transform(texts[:1])[0].shape == (1, 64)


def test_ngram_features_return_from_disk(tmp_path):
    fitted = features.NgramFeatures(1000, (1, 3), False, False).fit(TEXTS)
    fitted.save(tmp_path / "features.npz")
    loaded = features.NgramFeatures.load(tmp_path / "features.npz")
    for ours, theirs in zip(loaded.transform(TEXTS), fitted.transform(TEXTS), strict=True):
        assert np.array_equal(ours, theirs)
    settings = {name: value for name, value in vars(fitted).items() if name != "idf"}
    assert {name: getattr(loaded, name) for name in settings} == settings


def test_ids_do_not_depend_on_the_process():
    program = (
        "from tests.data import test_features as here;"
        "print(here.features.NgramFeatures().fit(here.TEXTS).transform(here.TEXTS)[0].tolist(),"
        "here.word_features(['a', 'B'], num_features=1000).tolist())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
    here = features.NgramFeatures().fit(TEXTS).transform(TEXTS)[0].tolist()
    assert runs.pop().startswith(str(here))


def test_hashed_ids_spread_evenly():
    words = [f"word{i}" for i in range(20_000)]
    ids, _ = features.NgramFeatures(101, (1, 1)).fit(words).transform(words)
    counts = np.bincount(ids[:, 0], minlength=101)
    assert counts[0] == 0
    # 200 expected in each; chi-squared with 99 degrees of freedom has mean 99 and deviation 14.
    assert ((counts[1:] - 200) ** 2 / 200).sum() < 99 + 5 * 14


@pytest.mark.parametrize("arguments", [{"ngrams": (0, 1)}, {"ngrams": (2, 1)}])
def test_senseless_ngrams_are_refused(arguments):
    with pytest.raises(UserError, match="ngrams"):
        features.NgramFeatures(**arguments)


def test_too_few_features_are_refused():
    with pytest.raises(UserError, match="num_features = 1"):
        features.NgramFeatures(num_features=1).fit(TEXTS)


def test_unfitted_features_are_refused(tmp_path):
    with pytest.raises(ValueError, match="fit"):
        features.NgramFeatures().transform(TEXTS)
    with pytest.raises(ValueError, match="fit"):
        features.NgramFeatures().save(tmp_path / "features.npz")


def test_encoded_documents():
    examples = [{"text": "good", "label": "pos"}, {"text": "bad", "label": "neg"}, {"text": "x"}]
    fitted = features.NgramFeatures().fit([example["text"] for example in examples])
    columns = features.encode_classification_features(examples, fitted, label_names=["neg", "pos"])
    assert columns["labels"].tolist() == [1, 0, -1]
    assert columns["weights"].tolist() == [1, 1, 1]
    assert columns["example"].tolist() == [0, 1, 2]
    ids, values = fitted.transform(["good", "bad", "x"])
    assert np.array_equal(columns["features"], ids)
    assert np.array_equal(columns["values"], values)
    assert values[:, 0].tolist() == [1, 1, 1]
    with pytest.raises(UserError, match=r"data\.test: example 0 .*'pos'"):
        features.encode_classification_features(
            examples, fitted, label_names=["neg"], key="data.test"
        )


# words


def word_features(words, **options):
    """The features of one sentence's words, [words, K]."""
    columns = features.encode_tag_features(
        [{"tokens": words}], label_names=["O"], seq_len=5, **options
    )
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


@pytest.mark.parametrize("seq_len", [1, 4, 64])
def test_sentences_fill_rows_without_gaps_and_come_back(seq_len):
    sentences = [*random_sentences(25, 20), {"tokens": [], "tags": []}]
    columns = features.encode_tag_features(
        sentences, num_features=5000, label_names=TAGS, seq_len=seq_len
    )
    gold = words_from_predictions(columns, columns["labels"], TAGS)
    assert gold == [sentence["tags"] for sentence in sentences]
    assert np.array_equal(columns["values"] > 0, columns["features"] > 0)
    words = sum(max(1, len(s["tokens"])) for s in sentences)  # an empty one keeps a place
    assert columns["features"].shape[:2] == (-(-words // seq_len), seq_len)
    for i, sentence in enumerate(sentences):
        ids = columns["features"][(columns["example"] == i) & (columns["label_mask"] > 0)]
        expected = word_features(sentence["tokens"], num_features=5000)
        assert np.array_equal(ids, expected)
    assert not columns["features"][columns["label_mask"] == 0].any()


@pytest.mark.parametrize("seq_len", [1, 4, 64])
def test_sentences_are_decoded_each_on_its_own(seq_len):
    """Two words that prefer I-A, wherever rows and sentences begin: only the first may be B-A."""
    sentences = [{"tokens": ["a"] * n} for n in (2, 3, 0, 2)]
    columns = features.encode_tag_features(
        sentences, num_features=10, label_names=TAGS, seq_len=seq_len
    )
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
            seq_len=4,
            key="data.test",
        )


def test_features_of_words_are_fast():
    rng = np.random.default_rng(0)
    words = [f"Word-{i}" for i in rng.zipf(1.3, 20_000) % 5000]
    start = time.process_time()
    word_features(words, num_features=2**18)
    assert len(words) / (time.process_time() - start) > 20_000
