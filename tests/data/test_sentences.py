"""Where sentences begin, in pieces that are spelt out here."""

import types

import numpy as np
import pytest

from pretrain.data import tokenizer as tokenizers
from pretrain.data.sentences import Sentences
from tests import small_runs


@pytest.mark.parametrize(
    "text",  # "|" between pieces, "/" where a sentence begins
    [
        "The| cat|./ It| sleeps|./ No",
        "It| is| 3|.|14|./ Really|?!/ Yes",
        'He| said| "|go|."/ She| went| (|home|.)/ Then',
        "A| heading|\n/A| line|.|\n|\n/Next| line",
        "\u4f60\u597d|\u3002/\u4e16\u754c|\uff01/\u5b83",
        "v|1.|2|!a",
        'Go|.|"/ She',
    ],
)
def test_begun(text):
    pieces = text.replace("/", "|/").split("|")
    begun = [piece.startswith("/") for piece in pieces]
    texts = [piece.removeprefix("/") for piece in pieces]
    start = np.array([piece.startswith((" ", "\n")) for piece in texts])
    table = Sentences.of(types.SimpleNamespace(texts=texts, word_start=start))
    ids = np.arange(len(texts))
    assert table.begun(ids).tolist() == begun
    assert table.begun(np.stack([ids, ids]))[1].tolist() == begun
    assert table.ended(ids)[:-1][table.begun(ids)[1:]].all()


def test_begun_without_white_space():
    """WordPiece's pieces do not tell it."""
    tokenizer = tokenizers.load(small_runs.TOKENIZERS / "bert_uncased")
    table = Sentences.of(tokenizer)
    for text, begins in (
        ("the cat . the tree", ["the"]),
        ("the cat . . . the tree ! ? the water", ["the", "the"]),
        ("the ( cat . ) the tree ? ) the cat", ["the", "the"]),
        ("the 3 . 1 cat . 3 the", ["3"]),
    ):
        ids = np.array(tokenizer.encode(text))
        assert tokenizer.unk_id not in ids, text
        assert [tokenizer.pieces[i] for i in ids[table.begun(ids)]] == begins, text
