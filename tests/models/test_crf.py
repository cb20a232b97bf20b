"""The conditional random field against sums over all tag sequences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.data.labels import decode_tags
from pretrain.models import crf

C = 3
RNG = np.random.default_rng(0)
SCORES = {
    "transitions": RNG.normal(size=(C, C)).astype(np.float32),
    "start": RNG.normal(size=C).astype(np.float32),
    "end": RNG.normal(size=C).astype(np.float32),
}


def rows(lengths, width, gaps=0.3, continued=(), unfinished=()):
    """Emissions, tags and chain of sentences packed into one row, sub-words and padding between.

    Sentences ``continued`` began in the row before; those ``unfinished`` end in the next.
    """
    emissions = RNG.normal(size=(1, width, C)).astype(np.float32)
    tags = RNG.integers(0, C, (1, width)).astype(np.int32)
    chain = np.zeros((3, 1, width), bool)
    free = width - sum(lengths)
    place, sentences = 0, []
    for i, length in enumerate(lengths):
        places = []
        for _ in range(length):
            while free and RNG.random() < gaps:
                place, free = place + 1, free - 1
            places.append(place)
            place += 1
        chain[0, 0, places] = True
        chain[1, 0, places[0]] = i not in continued
        chain[2, 0, places[-1]] = i not in unfinished
        sentences.append(places)
    return emissions, tags, crf.Chain(*chain), sentences


def score(emissions, tags, starts=True, ends=True):
    """Of one sentence ``[n, C]``, in Python."""
    total = sum(emissions[i, tag] for i, tag in enumerate(tags))
    total += sum(SCORES["transitions"][a, b] for a, b in itertools.pairwise(tags))
    return total + starts * SCORES["start"][tags[0]] + ends * SCORES["end"][tags[-1]]


def all_scores(emissions, **flags):
    paths = list(itertools.product(range(C), repeat=len(emissions)))
    return paths, np.array([score(emissions, path, **flags) for path in paths], np.float64)


CASES = [
    ([1], 1, {}),
    ([4], 4, {"gaps": 0.0}),
    ([3, 1, 2], 11, {}),
    ([2, 4], 9, {"continued": (0,), "unfinished": (1,)}),
    ([4], 6, {"continued": (0,), "unfinished": (0,)}),
]


@pytest.mark.parametrize("lengths, width, options", CASES)
def test_likelihood_is_that_of_summing_over_all_paths(lengths, width, options):
    emissions, tags, chain, sentences = rows(lengths, width, **options)
    want, want_path, marginals = 0.0, 0.0, np.zeros((width, C))
    for i, places in enumerate(sentences):
        flags = {
            "starts": i not in options.get("continued", ()),
            "ends": i not in options.get("unfinished", ()),
        }
        paths, values = all_scores(emissions[0, places], **flags)
        want += np.logaddexp.reduce(values)
        want_path += score(emissions[0, places], tags[0, places], **flags)
        for path, p in zip(paths, np.exp(values - np.logaddexp.reduce(values)), strict=True):
            marginals[places, path] += p
    value = crf.log_partition(SCORES, emissions, chain)
    np.testing.assert_allclose(value, [want], atol=1e-5)
    np.testing.assert_allclose(
        crf.path_score(SCORES, emissions, tags, chain), [want_path], atol=1e-5
    )
    loss = crf.negative_log_likelihood(SCORES, emissions, tags, chain)
    np.testing.assert_allclose(loss, [want - want_path], atol=1e-5)
    grad = jax.grad(lambda e: crf.log_partition(SCORES, e, chain).sum())(jnp.asarray(emissions))
    np.testing.assert_allclose(grad[0], marginals, atol=1e-5)


def test_rows_without_words_cost_nothing():
    emissions, tags, chain, _ = rows([], 4)
    assert crf.negative_log_likelihood(SCORES, emissions, tags, chain).tolist() == [0.0]
    grad = jax.grad(lambda e: crf.log_partition(SCORES, e, chain).sum())(jnp.asarray(emissions))
    assert not np.asarray(grad).any()


def test_rows_do_not_touch_each_other():
    parts = [rows([2, 3], 8), rows([5], 8), rows([], 8)]
    emissions, tags = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
    chain = crf.Chain(*(np.concatenate(x) for x in zip(*(p[2] for p in parts), strict=True)))
    together = crf.negative_log_likelihood(SCORES, emissions, tags, chain)
    alone = [crf.negative_log_likelihood(SCORES, *part[:3])[0] for part in parts]
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("names", [["B-A", "B-C", "O"], ["O", "B-A", "I-A"]])
def test_decoding_finds_the_best_valid_path(names):
    """Of sentences in pieces, too: a sentence's words may stand in several rows."""
    emissions = RNG.normal(size=(3, 4, C)) * 2
    columns = {
        "label_mask": np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 1, 1]], np.float32),
        "word": np.array([[0, 1, 2, -1], [3, 4, -1, -1], [-1, 0, 1, 2]]),
        "example": np.array([0, 0, 1]),
    }
    want = []
    for part in (emissions[[0, 0, 0, 1, 1], [0, 1, 2, 0, 1]], emissions[2, 1:]):
        paths, values = all_scores(part)
        tags = [[names[i] for i in path] for path in paths]
        ok = [
            all(b != "I-A" or a[2:] == "A" for a, b in itertools.pairwise(["O", *t])) for t in tags
        ]
        want.append(tags[int(np.where(ok, values, -np.inf).argmax())])
    assert decode_tags(columns, emissions, names, SCORES) == want
    # A constant added to all tags of a word changes nothing: log-probabilities do as well.
    shifted = emissions - np.logaddexp.reduce(emissions, axis=-1, keepdims=True)
    assert decode_tags(columns, shifted, names, SCORES) == want
