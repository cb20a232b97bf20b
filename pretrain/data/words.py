"""Words and their characters, for networks that read whole words."""

import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from pretrain.data import labels
from pretrain.files import write_json

Columns = dict[str, np.ndarray]
PAD, UNKNOWN, KNOWN = 0, 1, 2  # ids of words and of characters; known ones from 2 on
MAX_CHARACTERS = 256 - KNOWN  # so that a character is a byte
# Words and single punctuation marks: "!" and "?" carry sentiment, and so do one-letter words.
WORD = re.compile(r"\w+|[^\w\s]")


class WordIndex:
    """Numbers the distinct words it meets: what `pretrain.data.labels` needs of a tokenizer."""

    pad_id, cls_id = PAD, UNKNOWN
    prefix = suffix = ()

    def __init__(self):
        self.words: dict[str, int] = {}

    def encode_words(self, words: Iterable[str]) -> list[list[int]]:
        """Each word is one piece."""
        return [[self.words.setdefault(word, KNOWN + len(self.words))] for word in words]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Words and punctuation marks."""
        ids = self.words
        return [[ids.setdefault(w, KNOWN + len(ids)) for w in WORD.findall(t)] for t in texts]


class WordEncoder:
    """Rows of lower-cased words, each also as its characters, in their case.

    Attributes:
      task: "classify" or "tag".
      label_names: the index is the id.
      seq_len: length of a row, in words.
      words: known ones, the id is `KNOWN` + the index.
      characters: known ones, likewise.
      word_length: characters of a word that are read, the first ones; 0: none.
    """

    kind = "words"
    tokenizer = None

    def __init__(
        self,
        task: str,
        label_names: Sequence[str],
        *,
        seq_len: int,
        words: Sequence[str],
        characters: str,
        word_length: int,
    ):
        self.task, self.label_names, self.seq_len = task, list(label_names), seq_len
        self.words, self.characters, self.word_length = list(words), characters, word_length

    @classmethod
    def fit(
        cls,
        examples: Sequence[Mapping[str, Any]],
        task: str,
        label_names: Sequence[str],
        *,
        seq_len: int,
        num_words: int,
        min_count: int,
        word_length: int,
    ) -> Self:
        """Knows the most frequent words that occur ``min_count`` times, ``num_words`` at most."""
        split = (
            example["tokens"] if task == "tag" else WORD.findall(example["text"])
            for example in examples
        )
        counts = Counter(word for words in split for word in words)
        words, characters = Counter(), Counter()
        for word, count in counts.items():
            words[word.lower()] += count
            characters.update({c: count for c in set(word)} if word_length else {})
        known = [word for word, count in words.most_common(num_words) if count >= min_count]
        letters = "".join(c for c, _ in characters.most_common(MAX_CHARACTERS))
        about = {"words": known, "characters": letters, "word_length": word_length}
        return cls(task, label_names, seq_len=seq_len, **about)

    def encode(self, examples: Sequence[Mapping[str, Any]], key: str) -> Columns:
        """Columns of `pretrain.data.labels`, and ``characters [n, S, W]`` uint8 if they are read.

        ``key`` is the config key named in errors.
        """
        index = WordIndex()
        encode = {"classify": labels.encode_classification, "tag": labels.encode_tags}[self.task]
        columns = encode(
            examples, index, seq_len=self.seq_len, label_names=self.label_names, key=key
        )
        places, known = columns["tokens"], {w: KNOWN + i for i, w in enumerate(self.words)}
        ids = [known.get(word.lower(), UNKNOWN) for word in index.words]
        columns["tokens"] = np.array([PAD, UNKNOWN, *ids], np.int32)[places]
        if self.word_length:
            columns["characters"] = self._characters(list(index.words))[places]
        return columns

    def _characters(self, words: list[str]) -> np.ndarray:
        """[KNOWN + words, W] uint8; nothing for padding and for no word."""
        known = {c: KNOWN + i for i, c in enumerate(self.characters)}
        table = np.zeros((KNOWN + len(words), self.word_length), np.uint8)
        for row, word in enumerate(words, KNOWN):
            ids = [known.get(c, UNKNOWN) for c in word[: self.word_length]]
            table[row, : len(ids)] = ids
        return table

    def save(self, workdir: pathlib.Path) -> None:
        """Writes ``encoder.json``."""
        names = ("kind", "task", "label_names", "seq_len", "words", "characters", "word_length")
        write_json(workdir / "encoder.json", {name: getattr(self, name) for name in names})
