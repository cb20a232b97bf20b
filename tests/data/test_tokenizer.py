"""The tokenizer against round trips, reference algorithms and its own file."""

import os
import random
import subprocess
import sys
import unicodedata
from collections.abc import Iterator

import numpy as np
import pytest

from pretrain.data import tokenizer as tokenizers
from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import UserError

FREQUENT = ["the", "house", "river", "walking", "unseen"]


def corpus(count: int = 400) -> list[str]:
    """Sentences of invented words, a few of them frequent."""
    rng = random.Random(1)
    syllables = ["ka", "lo", "mi", "tern", "sho", "bre", "nu", "dal", "pi", "gost"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(300)]
    words += 20 * FREQUENT
    return [" ".join(rng.choices(words, k=rng.randint(3, 30))) + "." for _ in range(count)]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def trained(request) -> Tokenizer:
    return tokenizers.train(corpus(), vocab_size=340, model_type=request.param)


@pytest.fixture(scope="module")
def exact() -> Tokenizer:
    return tokenizers.train(corpus(), vocab_size=330, normalization="identity")


class Texts:
    """A source that counts how often it is read."""

    name = "texts"

    def __init__(self, texts: list[str]):
        self.texts = texts
        self.reads = 0

    def __iter__(self) -> Iterator[dict]:
        self.reads += 1
        return iter({"text": text} for text in self.texts)

    def fingerprint(self) -> str:
        return str(hash(tuple(self.texts)))


def test_special_ids(trained):
    assert trained.pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = [trained.pad_id, trained.unk_id, trained.cls_id, trained.sep_id, trained.mask_id]
    assert ids == [0, 1, 2, 3, 4]
    assert (trained.vocab_size, trained.special_ids) == (340, (0, 1, 2, 3, 4))
    assert (trained.prefix, trained.suffix, trained.mask_token) == ((2,), (3,), "[MASK]")


def test_no_text_encodes_to_special_tokens(trained, exact):
    for text in ("[MASK] [CLS]x[SEP] [PAD] [UNK]", "\x00 \ufffd \U0001f600 ☃ 中文", "<s></s><unk>"):
        assert min(trained.encode(text)) >= 5
        assert min(exact.encode(text)) >= 5


def test_normalized_text_survives(trained):
    """What comes back is NFKC of the text with its white space collapsed, computed here."""
    for text in (
        "  The  ﬁne\tcat\nﬁnds 中文 ① and ™ !",
        "naïve \uff46\uff55\uff4c\uff4c\u3000width",
        "emoji \U0001f600\u2603",
    ):
        expected = " ".join(unicodedata.normalize("NFKC", text).split())
        assert trained.decode(trained.encode(text)) == expected


def test_identity_is_lossless(exact):
    rng = random.Random(0)
    alphabet = "ab\n\t\r  .:[]<>0xAﬁé\u0301\u00a0\u200b\u3000中\U0001f600\x00"
    for _ in range(300):
        text = "".join(rng.choices(alphabet, k=rng.randint(0, 30)))
        assert exact.decode(exact.encode(text)) == text


def test_half_a_surrogate_pair_does_not_raise(trained):
    assert trained.encode("cat \ud83d") == trained.encode("cat ?")


def test_encode_batch_is_encode_of_each(trained):
    texts = [*corpus(50), "", "☃"]
    expected = [trained.encode(text) for text in texts]
    assert trained.encode_batch(texts) == expected
    assert trained.encode_batch(texts, num_threads=3) == expected


def test_encode_words(trained):
    words = ["unseen", "house.", "中", "\u200b", "mishotern"]
    ids = trained.encode_words(words)
    assert ids[3] == [trained.unk_id]  # nothing is left of a zero-width space
    for i in (0, 1, 2, 4):
        assert starts_word(trained, ids[i]) == [True] + [False] * (len(ids[i]) - 1)
        assert trained.decode(ids[i]) == words[i]


def starts_word(tokenizer, ids):
    return [tokenizer.pieces[i].startswith("\u2581") for i in ids]


def test_every_word_begins_with_a_piece_of_its_own(trained):
    for text in corpus(50):
        assert sum(starts_word(trained, trained.encode(text))) == len(text.split())


def test_word_start(trained):
    ids = [2, *trained.encode("unseen mishotern 中"), 3]
    starts = [i < 5 or trained.pieces[i].startswith("\u2581") for i in ids]
    assert trained.word_start[ids].tolist() == starts and sum(starts) == 5


def test_learns_the_frequent_words(trained):
    assert all(len(trained.encode(word)) == 1 for word in FREQUENT)


def test_training_is_deterministic():
    for model_type in tokenizers.MODEL_TYPES:
        models = [
            tokenizers.train(corpus(), vocab_size=340, model_type=model_type, max_sentences=200)
            for _ in range(3)
        ]
        assert len({model.fingerprint for model in models}) == 1
    assert models[0].fingerprint != tokenizers.train(corpus(), vocab_size=330).fingerprint


def test_training_is_the_same_in_another_process():
    program = (
        "from tests.data.test_tokenizer import corpus; from pretrain.data import tokenizer;"
        "print(tokenizer.train(corpus(), vocab_size=340).fingerprint)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == tokenizers.train(corpus(), vocab_size=340).fingerprint
    assert done.stderr == ""  # SentencePiece's own log stays quiet


def test_sample_is_uniform_and_fixed():
    sentences = [str(i) for i in range(1000)]
    sample = tokenizers._sample(sentences, 200)
    assert sample == tokenizers._sample(sentences, 200)
    values = [int(value) for value in sample]
    assert len(set(values)) == 200
    # Mean of 200 draws from 0..999: standard error about 18.
    assert abs(np.mean(values) - 499.5) < 80
    assert tokenizers._sample(sentences, 5000) == [value.encode() for value in sentences]


def test_long_documents_are_trained_on():
    """SentencePiece leaves out sentences over its limit; the words of one huge line must count."""
    line = " ".join(corpus(2000)) + " " + "zyxwv " * 2000 + "q" * 9000
    long = tokenizers.train([line], vocab_size=330)
    assert len(long.encode("zyxwv")) == 1
    assert "\u2581zyxwv" in long.pieces
    wide = tokenizers.train(["\U00020000\U00020001" * 3000, *corpus()], vocab_size=330)
    assert "\U00020000" in "".join(wide.pieces)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_vocab_size_too_large_names_the_limit(model_type):
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size: 9000 .* at most (\d+)") as error:
        tokenizers.train(corpus(), vocab_size=9000, model_type=model_type)
    limit = int(str(error.value).split()[-1])
    assert tokenizers.train(corpus(), vocab_size=limit, model_type=model_type).vocab_size == limit
    with pytest.raises(UserError):
        tokenizers.train(corpus(), vocab_size=limit + 1, model_type=model_type)


def test_vocab_size_too_small_names_the_limit():
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size: 100 .* at least \d+") as error:
        tokenizers.train(corpus(), vocab_size=100)
    limit = int(str(error.value).split()[-1])
    assert tokenizers.train(corpus(), vocab_size=limit, model_type="bpe").vocab_size == limit


def test_bad_settings():
    with pytest.raises(UserError, match=r"tokenizer\.type: 'wordpiece'.*unigram, bpe"):
        tokenizers.train(corpus(), vocab_size=340, model_type="wordpiece")
    with pytest.raises(UserError, match=r"tokenizer\.normalization: 'nfd'"):
        tokenizers.train(corpus(), vocab_size=340, normalization="nfd")
    for empty in ([], ["", " \n "]):
        with pytest.raises(UserError, match=r"tokenizer: found no text"):
            tokenizers.train(empty, vocab_size=340)


def test_save_and_load(trained, tmp_path):
    trained.save(tmp_path / "a.model")
    loaded = Tokenizer.load(tmp_path / "a.model")
    assert loaded.fingerprint == trained.fingerprint
    assert loaded.pieces == trained.pieces
    with pytest.raises(UserError, match=r"missing\.model"):
        Tokenizer.load(tmp_path / "missing.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"bad\.model"):
        Tokenizer.load(tmp_path / "bad.model")


def test_foreign_model_is_refused(tmp_path):
    """A SentencePiece model with other special tokens would silently shift every id."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, vocab_size=60, minloglevel=2
    )
    (tmp_path / "foreign.model").write_bytes(model.getvalue())
    with pytest.raises(UserError, match=r"foreign\.model.*<unk>.*expected \[PAD\]"):
        Tokenizer.load(tmp_path / "foreign.model")


def test_cached_trains_once_and_says_so(tmp_path, caplog):
    caplog.set_level("INFO", "pretrain")
    source = Texts(corpus())
    first = tokenizers.cached(source, vocab_size=340, cache_dir=tmp_path)
    again = tokenizers.cached(source, vocab_size=340, cache_dir=tmp_path)
    assert source.reads == 1
    (line,) = caplog.messages
    assert line.startswith("training a unigram tokenizer of 340 pieces on texts, once, into ")
    assert line.endswith(str(next((tmp_path / "tokenizers").iterdir())))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint == tokenizers.train(corpus(), vocab_size=340).fingerprint
    other = tokenizers.cached(source, vocab_size=330, model_type="bpe", cache_dir=tmp_path)
    assert (source.reads, other.vocab_size) == (2, 330)
    tokenizers.cached(Texts(corpus(300)), vocab_size=340, cache_dir=tmp_path)
    assert len(list((tmp_path / "tokenizers").iterdir())) == 3


def test_texts_of_every_task():
    examples = [{"text": "a b"}, {"text": "c", "label": "x"}, {"tokens": ["d", "e"], "tags": []}]
    assert list(tokenizers.texts_of(examples)) == ["a b", "c", "d e"]
