"""Hashed n-grams of words and characters with weights, for linear models of documents.

Features are ids in [1, num_features), found by hashing (Weinberger et al. 2009), so that there is
no vocabulary to keep; id 0 is padding. Hashes depend on nothing but the text: they agree between
processes and machines.
"""

import dataclasses
import json
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import numpy as np
from etils import epath

from pretrain.data.hashing import GOLDEN, mix
from pretrain.data.words import WORD
from pretrain.errors import UserError

_CHARACTER = np.uint64(1 << 40)  # above all code points and CRCs: "a" the letter, not the word
_AT_A_TIME = 2000  # texts: character n-grams are many before equal ones are counted together

WEIGHTINGS = ("tfidf", "naive_bayes", "mean")


def combine(first: np.ndarray, second: np.ndarray | np.uint64) -> np.ndarray:
    """A hash of an ordered pair of hashes."""
    return mix(first * np.uint64(GOLDEN) + second)


def crc(text: str) -> int:
    """Of a text that may hold lone surrogates, as scraped ones do."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def buckets(hashes: np.ndarray, num_features: int) -> np.ndarray:
    """Ids in [1, num_features), int64."""
    if num_features < 2:
        raise UserError(
            f"config.model.num_features: found {num_features}, expected 2 or more, id 0 is padding"
        )
    return (1 + hashes % np.uint64(num_features - 1)).astype(np.int64)


def distinct(words: Iterable[str]) -> tuple[list[str], np.ndarray]:
    """The distinct words, and the place of each given one among them, int64."""
    index: dict[str, int] = {}
    places = [index.setdefault(word, len(index)) for word in words]
    return list(index), np.array(places, np.int64)


class Sparse(NamedTuple):
    """Rows of a sparse matrix, one after another (CSR)."""

    sizes: np.ndarray  # [n] int64 features of each row
    ids: np.ndarray  # [all] int64, ascending in a row, without repetition
    values: np.ndarray  # [all] float32, or [all, C] where each class has its own


@dataclasses.dataclass(frozen=True)
class NgramOptions:
    """Which n-grams of a text count, and what each weighs.

    Attributes:
      num_features: ids lie in [1, num_features).
      ngrams: shortest and longest n-gram of words, in words; (0, 0): none. A word is a run of
        letters, digits and underscores, or one punctuation mark.
      char_ngrams: shortest and longest n-gram of characters; (0, 0): none. They lie within what
        stands between spaces, with one space on either side (scikit-learn's `char_wb`).
      lowercase: ignore case.
      weighting: "tfidf": term frequency times ln((1 + documents) / (1 + document frequency)) + 1,
        each text scaled to norm 1, as in scikit-learn's TfidfVectorizer; "naive_bayes": for each
        class the log-count ratio of n-grams that occur (Wang & Manning 2012); "mean": counts that
        sum to 1 (fastText; Joulin et al. 2016).
      sublinear_tf: of TF-IDF: the term frequency tf is 1 + ln tf.
      smoothing: of naive Bayes: added to the count of each n-gram in each class.
    """

    num_features: int = 2**18
    ngrams: tuple[int, int] = (1, 2)
    char_ngrams: tuple[int, int] = (0, 0)
    lowercase: bool = True
    weighting: str = "tfidf"
    sublinear_tf: bool = True
    smoothing: float = 1.0

    def __post_init__(self):
        for name, (low, high) in {"ngrams": self.ngrams, "char_ngrams": self.char_ngrams}.items():
            if not (1 <= low <= high or low == high == 0):
                raise UserError(
                    f"config.model.min_{name}: found lengths from {low} to {high} "
                    f"({name}), expected them from 1 on and in order, or no longest one at all"
                )
        if not self.ngrams[1] and not self.char_ngrams[1]:
            raise UserError("config.model.ngrams: found 0 with char_ngrams 0, expected one of them")
        if self.weighting not in WEIGHTINGS:
            raise UserError(
                f"config.model.weighting: found {self.weighting!r}, "
                f"expected one of {', '.join(WEIGHTINGS)}"
            )


class NgramFeatures:
    """Weighted n-grams, hashed. Those that no fitted text holds are dropped."""

    def __init__(self, options: NgramOptions):
        self.options = options
        # [num_features], for naive Bayes [num_features, C]; 0 where nothing was seen.
        self.weights: np.ndarray | None = None

    def fit(self, texts: Sequence[str], labels: np.ndarray, num_classes: int) -> Self:
        """Learns the weights.

        ``labels [n]`` in [0, num_classes) of the first ``n`` texts are for naive Bayes, which
        learns from these alone.
        """
        if self.options.weighting == "naive_bayes":
            texts = texts[: len(labels)]
        rows, ids, _ = self._count(texts)
        size = self.options.num_features
        frequency = np.bincount(ids, minlength=size)
        seen = frequency > 0
        if self.options.weighting == "naive_bayes":
            places = labels[rows] * size + ids
            counts = np.bincount(places, minlength=num_classes * size).reshape(num_classes, size)
            weights = log_count_ratios(counts, seen, self.options.smoothing)
        elif self.options.weighting == "tfidf":
            weights = np.where(seen, np.log((1 + len(texts)) / (1 + frequency)) + 1, 0)
        else:
            weights = seen
        self.weights = weights.astype(np.float32)
        return self

    def transform(self, texts: Sequence[str]) -> Sparse:
        """The features of each text."""
        if self.weights is None:
            raise ValueError("fit or load the features first")
        rows, ids, counts = self._count(texts)
        known = self.weights[ids] != 0
        known = known if known.ndim == 1 else known.any(1)
        rows, ids, counts = rows[known], ids[known], counts[known]
        values = self.weights[ids]
        if self.options.weighting == "tfidf":
            values = values * (1 + np.log(counts) if self.options.sublinear_tf else counts)
            values = values / np.sqrt(np.bincount(rows, values**2, minlength=len(texts)))[rows]
        elif self.options.weighting == "mean":
            values = counts / np.bincount(rows, counts, minlength=len(texts))[rows]
        sizes = np.bincount(rows, minlength=len(texts))
        return Sparse(sizes, ids, values.astype(np.float32))

    def _count(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(text, feature id, count) of every feature, sorted by text and id."""
        parts = []
        for start in range(0, max(len(texts), 1), _AT_A_TIME):
            some = texts[start : start + _AT_A_TIME]
            some = [text.lower() for text in some] if self.options.lowercase else some
            keys = np.concatenate([*self._words(some), *self._characters(some)])
            keys, counts = np.unique(keys, return_counts=True)
            rows, ids = np.divmod(keys, self.options.num_features)
            parts.append((rows + start, ids, counts))
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    def _words(self, texts: Sequence[str]) -> list[np.ndarray]:
        """``text * num_features + id`` of all n-grams of words, by length."""
        shortest, longest = self.options.ngrams
        if not longest:
            return []
        split = [WORD.findall(text) for text in texts]
        text = np.repeat(np.arange(len(texts)), [len(words) for words in split])
        words, places = distinct(word for words in split for word in words)
        hashes = mix(np.array([crc(word) for word in words], np.uint64))[places]
        found, ngram = [], hashes
        for n in range(1, longest + 1):
            if n > 1:  # Every n-gram is the one of n - 1 words there and the word that follows.
                ngram = combine(ngram[:-1], hashes[n - 1 :])
            if n >= shortest:
                within = text[: len(ngram)] == text[n - 1 :]
                found.append(self._keys(text[: len(ngram)][within], ngram[within]))
        return found

    def _characters(self, texts: Sequence[str]) -> list[np.ndarray]:
        """``text * num_features + id`` of all n-grams of characters."""
        shortest, longest = self.options.char_ngrams
        if not longest:
            return []
        split = [text.split() for text in texts]
        words, places = distinct(word for words in split for word in words)
        sizes = np.array([len(word) + 2 for word in words], np.int64)
        word = np.repeat(np.arange(len(words)), sizes)
        codes = "".join(f" {word} " for word in words).encode("utf-32-le", "surrogatepass")
        hashes = mix(np.frombuffer(codes, np.uint32).astype(np.uint64) + _CHARACTER)
        owners, found, ngram = [], [], hashes
        for n in range(1, longest + 1):
            ngram = combine(ngram[:-1], hashes[n - 1 :]) if n > 1 else ngram
            owner = word[: len(ngram)]
            within = owner == word[n - 1 :]
            if n < shortest:  # A word that is shorter counts as a whole, once.
                within &= sizes[owner] == n
            owners.append(owner[within])
            found.append(ngram[within])
        owner, ngram = np.concatenate(owners), np.concatenate(found)
        ngram = ngram[np.argsort(owner, kind="stable")]
        ends = np.cumsum(np.bincount(owner, minlength=len(words)))

        counts = np.diff(ends, prepend=0)[places]  # n-grams of each word of the texts
        text = np.repeat(np.arange(len(texts)), [len(words) for words in split])
        first = np.repeat(ends[places] - np.cumsum(counts), counts)
        return [self._keys(np.repeat(text, counts), ngram[first + np.arange(len(first))])]

    def _keys(self, text: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        return text * self.options.num_features + buckets(hashes, self.options.num_features)

    def save(self, path: epath.PathLike) -> None:
        """Writes options and weights to one .npz file."""
        if self.weights is None:
            raise ValueError("fit the features first")
        options = json.dumps(dataclasses.asdict(self.options))
        with epath.Path(path).open("wb") as file:
            np.savez_compressed(file, options=options, weights=self.weights)

    @classmethod
    def load(cls, path: epath.PathLike) -> Self:
        """Reads what `save` wrote."""
        with epath.Path(path).open("rb") as file, np.load(file, allow_pickle=False) as saved:
            options = json.loads(str(saved["options"]))
            ranges = {name: tuple(options[name]) for name in ("ngrams", "char_ngrams")}
            features = cls(NgramOptions(**options | ranges))
            features.weights = saved["weights"]
        return features


def log_count_ratios(counts: np.ndarray, seen: np.ndarray, smoothing: float) -> np.ndarray:
    """``log (p / |p|) / (q / |q|)`` of each class against the rest (Wang & Manning 2012).

    Args:
        counts: [C, V] documents of each class that hold an n-gram.
        seen: [V] n-grams that there are; of the others the ratio is 0.
        smoothing: added to each count of a class, and of all the others together.

    Returns:
        [V, C] float64.
    """
    inside = np.where(seen, counts + smoothing, 0)
    outside = np.where(seen, counts.sum(0) - counts + smoothing, 0)
    shares = (x / x.sum(1, keepdims=True) for x in (inside, outside))
    inside, outside = (np.log(np.where(seen, x, 1)) for x in shares)
    return (inside - outside).T
