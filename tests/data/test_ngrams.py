import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from pretrain.data import ngrams
from pretrain.data.ngrams import NgramFeatures, NgramOptions, log_count_ratios
from pretrain.errors import UserError

TEXTS = [
    "A film; a GOOD film!",
    "not good , not good at all ...",
    "I 've seen 3 films",
    "",
    "what a film ?!",
]
UNSEEN = ["a good film , unseen words", "nothing known here", "film film film film"]
LABELS = np.array([1, 0, 1, 0, 1])


def fit(texts=TEXTS, labels=LABELS, num_classes=2, **options):
    return NgramFeatures(NgramOptions(**options)).fit(texts, labels, num_classes)


def dense(found, num_features):
    sizes, ids, values = found
    out = np.zeros((len(sizes), num_features, *values.shape[1:]))
    out[np.repeat(np.arange(len(sizes)), sizes), ids] = values
    return out


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("sublinear_tf", [True, False])
@pytest.mark.parametrize(
    "kind, lengths", [("word", (1, 1)), ("word", (1, 2)), ("word", (2, 3)), ("char_wb", (2, 4)),
    ("char_wb", (1, 3)), ("char_wb", (5, 6))],
)  # fmt: skip
def test_tfidf_equals_sklearn(kind, lengths, sublinear_tf, lowercase):
    ranges = {"ngrams": lengths} if kind == "word" else {"ngrams": (0, 0), "char_ngrams": lengths}
    ours = fit(num_features=2**20, sublinear_tf=sublinear_tf, lowercase=lowercase, **ranges)
    theirs = TfidfVectorizer(
        analyzer=kind,
        ngram_range=lengths,
        lowercase=lowercase,
        sublinear_tf=sublinear_tf,
        token_pattern=r"\w+|[^\w\s]" if kind == "word" else None,
    ).fit(TEXTS)
    terms = theirs.get_feature_names_out().tolist() if kind == "word" else []
    texts = [*TEXTS, *UNSEEN, *terms]
    found = dense(ours.transform(texts), 2**20)
    found = found[:, found.any(0)]
    expected = theirs.transform(texts).toarray()
    assert found.shape == expected.shape  # no collisions here
    # Which column is whose does not matter: equal products of all pairs of texts, one of them every
    # term by itself, and equal values in each text.
    assert np.abs(found @ found.T - expected @ expected.T).max() < 1e-6
    assert np.abs(np.sort(found) - np.sort(expected)).max() < 1e-6


def test_words_and_characters_make_one_vector():
    words, characters = ({"ngrams": (1, 2)}, {"char_ngrams": (2, 3)})
    both = fit(**words, **characters).transform(TEXTS)
    parts = [fit(**words), fit(**{"ngrams": (0, 0)}, **characters)]
    assert both.sizes.tolist() == sum(part.transform(TEXTS).sizes for part in parts).tolist()
    norms = np.linalg.norm(dense(both, 2**18), axis=1)
    assert norms == pytest.approx([1, 1, 1, 0, 1], abs=1e-6)


def test_many_texts_are_counted_as_few_are(monkeypatch):
    whole = fit(char_ngrams=(2, 3)).transform([*TEXTS, *UNSEEN])
    monkeypatch.setattr(ngrams, "_AT_A_TIME", 2)
    parts = fit(char_ngrams=(2, 3)).transform([*TEXTS, *UNSEEN])
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a, b)


def test_features_are_sorted_and_merged():
    found = fit(num_features=40).transform([*TEXTS, "good film " * 100])  # n-grams collide
    assert found.values.dtype == np.float32
    for row in np.split(found.ids, np.cumsum(found.sizes)[:-1]):
        assert (np.diff(row) > 0).all() and (row > 0).all() and (row < 40).all()


def test_naive_bayes_weights_are_log_count_ratios():
    """Wang & Manning 2012, eq. 2, from scikit-learn's binary counts."""
    found = fit(ngrams=(1, 1), weighting="naive_bayes", smoothing=0.5).transform(TEXTS)
    values = dense(found, 2**18)
    vectorizer = CountVectorizer(token_pattern=r"\w+|[^\w\s]", binary=True)
    counts = vectorizer.fit_transform(TEXTS).toarray()
    p, q = (0.5 + counts[c == LABELS].sum(0) for c in (1, 0))
    ratio = np.log((p / p.sum()) / (q / q.sum()))
    np.testing.assert_allclose(values[..., 0], -values[..., 1], atol=1e-6)
    for row, count in zip(values[..., 1], counts, strict=True):
        np.testing.assert_allclose(np.sort(row[row != 0]), np.sort(ratio[count > 0]), rtol=1e-5)


def test_ratios_of_more_classes_are_against_the_rest():
    counts = np.array([[3, 0, 0], [1, 2, 0], [0, 5, 0]])
    ratios = log_count_ratios(counts, np.array([True, True, False]), 1.0)
    assert ratios.shape == (3, 3) and not ratios[2].any()
    assert ratios[0, 0] == pytest.approx(np.log((4 / 5) / (2 / 10)))
    assert ratios[1, 2] == pytest.approx(np.log((6 / 7) / (3 / 8)))


def test_means_count_repetitions():
    found = fit(ngrams=(1, 1), weighting="mean").transform(["film a a a", "unseen", "a"])
    assert found.sizes.tolist() == [2, 0, 1]
    assert sorted(found.values[:2].tolist()) == [0.25, 0.75] and found.values[2] == 1


@pytest.mark.parametrize("weighting", ["tfidf", "naive_bayes"])
def test_features_return_from_disk(weighting, tmp_path):
    options = dict(num_features=1000, ngrams=(1, 3), char_ngrams=(2, 2), lowercase=False)
    fitted = fit(**options, weighting=weighting, smoothing=0.3)
    fitted.save(tmp_path / "features.npz")
    loaded = NgramFeatures.load(tmp_path / "features.npz")
    assert loaded.options == fitted.options
    for ours, theirs in zip(loaded.transform(TEXTS), fitted.transform(TEXTS), strict=True):
        assert np.array_equal(ours, theirs)


def test_ids_do_not_depend_on_the_process():
    program = (
        "from pretrain.data.ngrams import *;"
        "features = NgramFeatures(NgramOptions(char_ngrams=(2, 2)));"
        f"print(features.fit({TEXTS!r}, None, 0).transform({TEXTS!r}).ids.tolist())"
    )
    there = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    here = fit(char_ngrams=(2, 2)).transform(TEXTS).ids.tolist()
    assert there.strip() == str(here)


def test_hashed_ids_spread_evenly():
    words = [f"word{i}" for i in range(20_000)]
    found = fit(words, None, 0, num_features=101, ngrams=(1, 1)).transform(words)
    counts = np.bincount(found.ids, minlength=101)
    assert counts[0] == 0
    # 200 expected in each; chi-squared with 99 degrees of freedom has mean 99 and deviation 14.
    assert ((counts[1:] - 200) ** 2 / 200).sum() < 99 + 5 * 14


@pytest.mark.parametrize(
    "options, said",
    [
        ({"ngrams": (0, 1)}, r"model\.min_ngrams: found lengths from 0 to 1"),
        ({"ngrams": (2, 1)}, r"model\.min_ngrams: found lengths from 2 to 1"),
        ({"char_ngrams": (3, 2)}, r"model\.min_char_ngrams: found lengths from 3 to 2"),
        ({"ngrams": (0, 0)}, r"model\.ngrams: found 0 with char_ngrams 0"),
        ({"weighting": "idf"}, r"model\.weighting: found 'idf', expected one of tfidf"),
    ],
)
def test_senseless_options_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        NgramOptions(**options)


def test_too_few_features_are_refused():
    with pytest.raises(UserError, match=r"model\.num_features: found 1"):
        fit(num_features=1)


def test_unfitted_features_are_refused(tmp_path):
    features = NgramFeatures(NgramOptions())
    with pytest.raises(ValueError, match="fit"):
        features.transform(TEXTS)
    with pytest.raises(ValueError, match="fit"):
        features.save(tmp_path / "features.npz")
