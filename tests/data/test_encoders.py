"""What a trained model takes along: text becomes the same columns after saving and loading."""

import numpy as np
import pytest

from pretrain.data import encoders
from pretrain.data.ngrams import NgramFeatures, NgramOptions
from pretrain.data.tokenizer import train
from pretrain.data.words import WordEncoder
from pretrain.errors import UserError

TEXTS = [{"text": "a cat and a dog", "label": "b"}, {"text": "cows", "label": "a"}]
SENTENCES = [{"tokens": ["Ada", "sees", "it"], "tags": ["B-X", "O", "O"]}, {"tokens": []}]
NAMES = {"classify": ["a", "b"], "tag": ["O", "B-X", "I-X"]}


def make(kind, task):
    if kind == "tokens":
        corpus = [f"{a} {b} {c}" for a in "abcdef" for b in ("cat", "dog", "cow") for c in "ghijk"]
        return encoders.TokenEncoder(train(corpus, vocab_size=279), task, NAMES[task], 24)
    if kind == "words":
        examples = TEXTS if task == "classify" else SENTENCES
        about = dict(seq_len=8, num_words=9, min_count=1, word_length=5)
        return WordEncoder.fit(examples, task, NAMES[task], **about)
    ngrams = NgramFeatures(NgramOptions(2**10)) if task == "classify" else None
    if ngrams is not None:
        ngrams.fit([e["text"] for e in TEXTS], np.array([1, 0]), 2)
    encoder = encoders.FeatureEncoder(
        task, NAMES[task], num_features=2**10, window=1, ngrams=ngrams
    )
    encoder.seq_len = 7
    return encoder


@pytest.mark.parametrize("task", ["classify", "tag"])
@pytest.mark.parametrize("kind", ["tokens", "features", "words"])
def test_a_loaded_encoder_makes_the_same_columns(kind, task, tmp_path):
    examples = TEXTS if task == "classify" else SENTENCES
    encoder = make(kind, task)
    encoder.save(tmp_path)
    loaded = encoders.load(tmp_path)
    assert type(loaded) is type(encoder)
    assert (loaded.task, loaded.label_names, loaded.seq_len) == (
        (task, NAMES[task], encoder.seq_len)
    )
    want, got = encoder.encode(examples, "x"), loaded.encode(examples, "x")
    assert want.keys() == got.keys() and want["labels"].any()
    for name, column in want.items():
        np.testing.assert_array_equal(got[name], column, err_msg=name)


@pytest.mark.parametrize("kind", ["tokens", "features", "words"])
def test_errors_name_the_key(kind):
    with pytest.raises(UserError, match=r"data\.test: example 0 has the label 'c'"):
        make(kind, "classify").encode([{"text": "a", "label": "c"}], "data.test")
    with pytest.raises(UserError, match=r"data\.test: example 0 has the tag 'B-Y'"):
        make(kind, "tag").encode([{"tokens": ["a"], "tags": ["B-Y"]}], "data.test")


def test_unlabelled_texts_are_encoded_for_prediction():
    columns = make("tokens", "classify").encode([{"text": "a cat"}], "text")
    assert columns["labels"].tolist() == [-1] and columns["tokens"].shape == (1, 24)


def test_a_folder_without_encoder_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"no encoder\.json found; expected the workdir"):
        encoders.load(tmp_path)
