"""Sparse hashed features for linear models: n-grams of documents, local features of words.

Features are ids in [1, num_features), found by hashing (Weinberger et al. 2009), so that there is
no vocabulary to keep; id 0 is padding. Hashes depend on nothing but the text: they agree between
processes and machines.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from etils import epath

from pretrain.data.hashing import GOLDEN, mix
from pretrain.data.labels import class_ids, tag_ids
from pretrain.errors import UserError

Example = Mapping[str, Any]
Columns = dict[str, np.ndarray]

# Words and single punctuation marks: "!" and "?" carry sentiment, and so do one-letter words.
_WORD = re.compile(r"\w+|[^\w\s]")


def _combine(first: np.ndarray, second: np.ndarray | np.uint64) -> np.ndarray:
    """A hash of an ordered pair of hashes."""
    return mix(first * np.uint64(GOLDEN) + second)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # Scraped text may hold lone surrogates.


def _hashes(texts: Iterable[str]) -> np.ndarray:
    return mix(np.array([zlib.crc32(_bytes(text)) for text in texts], np.uint64))


def _buckets(hashes: np.ndarray, num_features: int) -> np.ndarray:
    if num_features < 2:
        raise UserError(f"num_features = {num_features}: expected 2 or more, id 0 is padding")
    return (1 + hashes % np.uint64(num_features - 1)).astype(np.int64)


def _look_up(words: Sequence[str], describe: Callable[[Iterable[str]], np.ndarray]) -> np.ndarray:
    """`describe` of every word, computed once for each distinct one."""
    index: dict[str, int] = {}
    places = [index.setdefault(word, len(index)) for word in words]
    return describe(index)[np.array(places, np.int64)]


# ------------------------------------------------------------------------------------ documents


class NgramFeatures:
    """TF-IDF weighted word n-grams, hashed and l2-normalised.

    A word is a run of letters, digits and underscores, or one punctuation mark. Values are those
    of scikit-learn's TfidfVectorizer with the same words, up to collisions: term frequency tf, or
    1 + ln tf with `sublinear_tf`, times ln((1 + documents) / (1 + document frequency)) + 1, and
    each text scaled to norm 1. N-grams that no fitted text holds are dropped.

    Args:
        num_features: ids lie in [1, num_features).
        ngrams: shortest and longest n-gram, in words.
        lowercase: ignore case.
        sublinear_tf: damp repetitions.

    Raises:
        UserError: on lengths of n-grams that make no sense.
    """

    def __init__(
        self,
        num_features: int = 2**18,
        ngrams: tuple[int, int] = (1, 2),
        lowercase: bool = True,
        sublinear_tf: bool = True,
    ):
        if not 1 <= ngrams[0] <= ngrams[1]:
            raise UserError(f"ngrams = {ngrams}: expected (shortest, longest), from 1 word on")
        self.num_features = num_features
        self.ngrams = ngrams
        self.lowercase = lowercase
        self.sublinear_tf = sublinear_tf
        self.idf: np.ndarray | None = None  # [num_features], 0 where nothing was seen

    def fit(self, texts: Sequence[str]) -> Self:
        """Learns the inverse document frequency of every feature."""
        _, ids, _ = self._count(texts)
        frequency = np.bincount(ids, minlength=self.num_features)
        idf = np.log((1 + len(texts)) / (1 + frequency)) + 1
        self.idf = np.where(frequency > 0, idf, 0).astype(np.float32)
        return self

    def transform(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Features of texts.

        Returns:
            features [n, K] int32, ascending ids without repetition, then 0; values [n, K] float32.
            K is the largest number of features of a text, rounded up to a multiple of 64.
        """
        if self.idf is None:
            raise ValueError("fit or load the features first")
        rows, ids, counts = self._count(texts)
        known = self.idf[ids] > 0
        rows, ids, counts = rows[known], ids[known], counts[known]
        values = (1 + np.log(counts) if self.sublinear_tf else counts) * self.idf[ids]
        norms = np.sqrt(np.bincount(rows, values**2, minlength=len(texts)))
        values = values / norms[rows]

        sizes = np.bincount(rows, minlength=len(texts))
        width = max(1, -(-int(sizes.max(initial=1)) // 64)) * 64
        places = np.arange(len(rows)) - (np.cumsum(sizes) - sizes)[rows]
        padded_ids = np.zeros((len(texts), width), np.int32)
        padded_values = np.zeros((len(texts), width), np.float32)
        padded_ids[rows, places], padded_values[rows, places] = ids, values
        return padded_ids, padded_values

    def _count(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(text, feature id, count) of every feature, sorted by text and id."""
        split = [_WORD.findall(text.lower() if self.lowercase else text) for text in texts]
        text = np.repeat(np.arange(len(texts)), [len(words) for words in split])
        hashes = _look_up([word for words in split for word in words], _hashes)

        shortest, longest = self.ngrams
        found, ngram = [], hashes
        for n in range(1, longest + 1):
            if n > 1:  # Every n-gram is the one of n - 1 words there and the word that follows.
                ngram = _combine(ngram[:-1], hashes[n - 1 :])
            if n >= shortest:
                within = text[: len(ngram)] == text[n - 1 :]
                ids = _buckets(ngram[within], self.num_features)
                found.append(text[: len(ngram)][within] * self.num_features + ids)
        keys, counts = np.unique(np.concatenate(found), return_counts=True)
        return keys // self.num_features, keys % self.num_features, counts

    def save(self, path: epath.PathLike) -> None:
        """Writes settings and document frequencies to one .npz file."""
        if self.idf is None:
            raise ValueError("fit the features first")
        with epath.Path(path).open("wb") as file:
            np.savez_compressed(
                file,
                num_features=self.num_features,
                ngrams=self.ngrams,
                lowercase=self.lowercase,
                sublinear_tf=self.sublinear_tf,
                idf=self.idf,
            )

    @classmethod
    def load(cls, path: epath.PathLike) -> Self:
        """Reads what `save` wrote."""
        with epath.Path(path).open("rb") as file, np.load(file, allow_pickle=False) as saved:
            features = cls(
                num_features=int(saved["num_features"]),
                ngrams=tuple(saved["ngrams"].tolist()),
                lowercase=bool(saved["lowercase"]),
                sublinear_tf=bool(saved["sublinear_tf"]),
            )
            features.idf = saved["idf"]
        return features


def encode_classification_features(
    examples: Sequence[Example],
    features: NgramFeatures,
    *,
    label_names: Sequence[str],
    key: str = "data.train",
) -> Columns:
    """Encodes {"text", "label"} examples for a linear classifier, one row each.

    Returns:
        features [n, K] int32, values [n, K] float32, labels [n] int32 (-1 unknown), weights [n]
        float32 (1), example [n] int32.

    Raises:
        UserError: on a label that is not among `label_names`.
    """
    labels = class_ids(examples, label_names, key)
    ids, values = features.transform([example["text"] for example in examples])
    return {
        "features": ids,
        "values": values,
        "labels": labels,
        "weights": np.ones(len(labels), np.float32),
        "example": np.arange(len(labels), dtype=np.int32),
    }


# ---------------------------------------------------------------------------------------- words

_EDGE = " "  # Stands beyond both ends of a sentence.
_AFFIXES = range(1, 5)  # Lengths of prefixes and suffixes.
_CONTEXT = 6  # So many of a word's own features, the first, also describe its neighbours.


def _own_features(word: str) -> list[str]:
    """What a word shows by itself; always as many strings, empty where there is nothing."""
    lower = word.lower()
    shape = "".join(
        "X" if c.isupper() else "x" if c.isalpha() else "0" if c.isdigit() else c for c in word
    )
    return [
        lower,
        word,
        shape,
        re.sub(r"(.)\1+", r"\1", shape),
        *(lower[-n:] if len(word) >= n else "" for n in reversed(_AFFIXES)),
        *(lower[:n] if len(word) >= n else "" for n in reversed(_AFFIXES)),
        "capital" * word[:1].isupper(),
        "capitals" * word.isupper(),
        "digit" * any(c.isdigit() for c in word),
        "hyphen" * ("-" in word),
        "mark" * (not any(c.isalnum() for c in word)),
    ]


def _own_hashes(words: Iterable[str]) -> np.ndarray:
    """Hashes of each word's own features, uint64 [words, templates]; 0 where there is nothing."""
    rows = [[zlib.crc32(_bytes(text)) for text in _own_features(word)] for word in words]
    templates = np.arange(len(_own_features("")), dtype=np.uint64)
    codes = np.array(rows, np.uint64).reshape(-1, len(templates))  # 0 is the code of no text.
    return np.where(codes > 0, _combine(codes, templates), 0)


def _features_of_sentences(
    sentences: Sequence[Sequence[str]], num_features: int, window: int
) -> np.ndarray:
    """Local features of each word of each sentence, as classical NER systems use them.

    Of the word: itself, lower-cased, its shape ("McDonald-2" is "XxXxxxxx-0") with and without
    repetitions, prefixes and suffixes of 1 to 4 letters, capital, all capitals, digit, hyphen, no
    letter or digit. Of each neighbour up to `window` words away: all of these up to the suffixes of
    3 letters, by position. And its two pairs with the words beside it.

    Returns:
        [words of all sentences, K] int32 in [1, num_features), 0 where a feature is absent; K
        depends on `window` alone.
    """
    edge = [_EDGE] * window
    padded = [word for words in sentences for word in (*edge, *words, *edge)]
    sentence = np.repeat(np.arange(len(sentences)), [len(words) for words in sentences])
    centre = np.arange(len(sentence)) + window * (2 * sentence + 1)
    own = _look_up(padded, _own_hashes)

    groups = [own[centre]]
    for offset in range(-window, window + 1):
        if offset:
            near = own[centre + offset, :_CONTEXT]
            groups.append(np.where(near > 0, _combine(near, np.uint64(window + offset)), 0))
    lower = own[:, :1]
    if window:
        groups += [_combine(lower[centre + i - 1], lower[centre + i]) for i in (0, 1)]
    hashes = np.concatenate(groups, axis=1)
    return np.where(hashes > 0, _buckets(hashes, num_features), 0).astype(np.int32)


def encode_tag_features(
    examples: Sequence[Example],
    *,
    num_features: int,
    label_names: Sequence[str],
    seq_len: int,
    window: int = 2,
    key: str = "data.train",
) -> Columns:
    """Encodes {"tokens", "tags"} examples for a linear token classifier.

    Rows hold `seq_len` words, sentence after sentence without a gap, so that next to no work goes
    into padding. Nothing is lost where a row ends: features are made first, and look across.

    Args:
        examples: `tags` (IOB2) may be missing or None for prediction.
        num_features: ids lie in [1, num_features).
        label_names: tag names, the index is the id.
        seq_len: S, words of a row.
        window: how many neighbours to each side describe a word.
        key: the config key of this split, for messages.

    Returns:
        features [n, S, K] int32, values [n, S, K] float32 (1; 0 for padding), labels [n, S] int32,
        label_mask [n, S] float32 (1 for each word), word [n, S] int32 and example [n, S] int32 (the
        word's place in its sentence, and the sentence; -1 for padding), weights [n] float32 (1).

    Raises:
        UserError: on an unknown tag, or tags that are not as many as tokens.
    """
    tags = tag_ids(examples, label_names, key)
    sentences = [example["tokens"] for example in examples]
    lengths = np.array([len(words) for words in sentences], np.int64)
    places = np.maximum(lengths, 1)  # A sentence without words keeps one, to be counted.
    starts = np.cumsum(places) - places
    num_rows = -(-int(places.sum()) // seq_len)

    ids = _features_of_sentences(sentences, num_features, window)
    word_index = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    where = np.repeat(starts, lengths) + word_index
    features = np.zeros((num_rows * seq_len, ids.shape[1]), np.int32)
    labels = np.zeros(num_rows * seq_len, np.int32)
    word, example = np.full((2, num_rows * seq_len), -1, np.int32)
    features[where], word[where] = ids, word_index
    labels[where] = np.concatenate(tags) if tags else 0
    example[: places.sum()] = np.repeat(np.arange(len(examples)), places)
    columns = {
        "features": features,
        "values": (features > 0).astype(np.float32),
        "labels": labels,
        "label_mask": (word >= 0).astype(np.float32),
        "word": word,
        "example": example,
    }
    rows = {name: x.reshape(num_rows, seq_len, *x.shape[1:]) for name, x in columns.items()}
    return {**rows, "weights": np.ones(num_rows, np.float32)}
