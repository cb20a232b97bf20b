"""Columns of linear models: n-grams of documents, local features of words, packed into rows.

Documents and sentences fill rows of lanes. A word is one lane of features; a document is as many
lanes as its n-grams need, whose sums the model adds. Nothing is ever cut: a row has room for the
longest, others share one, so that memory and time go with the features that there are and not
with the longest document.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pretrain.data.labels import class_ids, tag_ids
from pretrain.data.ngrams import NgramFeatures, buckets, combine, crc, distinct

Example = Mapping[str, Any]
Columns = dict[str, np.ndarray]
LANE = 16  # features of a document's lane: few, so that short documents waste little
LANES_PER_ROW = 64  # at least: most single texts fit, so predicting compiles once


def pack(sizes: np.ndarray, least: int = LANES_PER_ROW) -> tuple[np.ndarray, np.ndarray, int]:
    """Puts things of ``sizes [n]`` lanes into rows, whole: best fit, the longest first.

    Rows have ``least`` lanes, or as many as the longest needs. Equally long things are mixed (a
    file sorted by label would make rows of one label), in an order that depends on n alone.

    Returns:
        row [n] and first lane [n] int64 of each, and the number of lanes of a row.
    """
    lanes = max(least, int(sizes.max(initial=0)))
    order = np.random.default_rng(0).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    row, first = np.zeros((2, len(sizes)), np.int64)
    with_room: list[list[int]] = [[] for _ in range(lanes + 1)]  # rows by their free lanes
    count = 0
    for i, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        room = next((r for r in range(size, lanes + 1) if with_room[r]), 0)
        if room:
            row[i] = with_room[room].pop()
        else:
            row[i], room, count = count, lanes, count + 1
        first[i] = lanes - room
        with_room[room - size].append(row[i])
    return row, first, lanes


# ------------------------------------------------------------------------------------ documents


def encode_classification_features(
    examples: Sequence[Example],
    features: NgramFeatures,
    *,
    label_names: Sequence[str],
    key: str = "data.train",
) -> Columns:
    """Encodes {"text", "label"} examples for a linear classifier, several a row.

    Returns:
        features [n, L, K] int32 (0: none) and values [n, L, K] float32, or [n, L, K, C] where each
        class has its own; document [n, L] int32, the first lane of the document that a lane belongs
        to. A document's label stands at its first lane: labels [n, L] int32 (-1 unknown), weights
        [n, L] float32 (1 there, 0 elsewhere), example [n, L] int32.

    Raises:
        UserError: on a label that is not among `label_names`.
    """
    labels = class_ids(examples, label_names, key)
    sizes, ids, values = features.transform([example["text"] for example in examples])
    needed = np.maximum(1, -(-sizes // LANE))  # a text without features keeps a lane for its label
    row, first, lanes = pack(needed)
    shape = (int(row.max(initial=0)) + 1, lanes)

    place = np.arange(len(ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # in its document
    slots = np.repeat((row * lanes + first) * LANE, sizes) + place
    packed = np.zeros(np.prod(shape) * LANE, np.int32)
    packed_values = np.zeros((packed.size, *values.shape[1:]), np.float32)
    packed[slots], packed_values[slots] = ids, values

    document = np.tile(np.arange(lanes, dtype=np.int32), (shape[0], 1))
    lane = np.arange(needed.sum()) - np.repeat(np.cumsum(needed) - needed, needed)
    starts = np.repeat(first, needed)
    document[np.repeat(row, needed), starts + lane] = starts
    columns = {
        "labels": np.zeros(shape, np.int32),
        "weights": np.zeros(shape, np.float32),
        "example": np.zeros(shape, np.int32),
    }
    for name, column in {"labels": labels, "weights": 1, "example": np.arange(len(labels))}.items():
        columns[name][row, first] = column
    return {
        "features": packed.reshape(*shape, LANE),
        "values": packed_values.reshape(*shape, LANE, *values.shape[1:]),
        "document": document,
        **columns,
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
    rows = [[crc(text) for text in _own_features(word)] for word in words]
    templates = np.arange(len(_own_features("")), dtype=np.uint64)
    codes = np.array(rows, np.uint64).reshape(-1, len(templates))  # 0 is the code of no text.
    return np.where(codes > 0, combine(codes, templates), 0)


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
    known, places = distinct(padded)
    own = _own_hashes(known)[places]

    groups = [own[centre]]
    for offset in range(-window, window + 1):
        if offset:
            near = own[centre + offset, :_CONTEXT]
            groups.append(np.where(near > 0, combine(near, np.uint64(window + offset)), 0))
    lower = own[:, :1]
    if window:
        groups += [combine(lower[centre + i - 1], lower[centre + i]) for i in (0, 1)]
    hashes = np.concatenate(groups, axis=1)
    return np.where(hashes > 0, buckets(hashes, num_features), 0).astype(np.int32)


def encode_tag_features(
    examples: Sequence[Example],
    *,
    num_features: int,
    label_names: Sequence[str],
    window: int = 2,
    key: str = "data.train",
) -> Columns:
    """Encodes {"tokens", "tags"} examples for a linear token classifier, several sentences a row.

    Args:
        examples: `tags` (IOB2) may be missing or None for prediction.
        num_features: ids lie in [1, num_features).
        label_names: tag names, the index is the id.
        window: how many neighbours to each side describe a word.
        key: the config key of this split, for messages.

    Returns:
        features [n, S, K] int32, values [n, S, K] float32 (1; 0 for padding), labels [n, S] int32,
        label_mask [n, S] float32 (1 for each word), word [n, S] int32 and example [n, S] int32 (the
        word's place in its sentence, and the sentence; -1 for padding), sentence_end [n, S] bool
        (its last word), weights [n] float32 (1).

    Raises:
        UserError: on an unknown tag, or tags that are not as many as tokens.
    """
    tags = tag_ids(examples, label_names, key)
    sentences = [example["tokens"] for example in examples]
    lengths = np.array([len(words) for words in sentences], np.int64)
    places = np.maximum(lengths, 1)  # A sentence without words keeps one, to be counted.
    row, first, seq_len = pack(places)
    num_rows = int(row.max(initial=0)) + 1

    ids = _features_of_sentences(sentences, num_features, window)
    word_index = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    starts = row * seq_len + first
    where = np.repeat(starts, lengths) + word_index
    features = np.zeros((num_rows * seq_len, ids.shape[1]), np.int32)
    labels = np.zeros(num_rows * seq_len, np.int32)
    word, example = np.full((2, num_rows * seq_len), -1, np.int32)
    sentence_end = np.zeros(num_rows * seq_len, bool)
    features[where], word[where] = ids, word_index
    labels[where] = np.concatenate(tags) if tags else 0
    example[starts] = np.arange(len(examples))
    example[where] = np.repeat(np.arange(len(examples)), lengths)
    sentence_end[(starts + lengths - 1)[lengths > 0]] = True
    columns = {
        "features": features,
        "values": (features > 0).astype(np.float32),
        "labels": labels,
        "label_mask": (word >= 0).astype(np.float32),
        "word": word,
        "example": example,
        "sentence_end": sentence_end,
    }
    rows = {name: x.reshape(num_rows, seq_len, *x.shape[1:]) for name, x in columns.items()}
    return {**rows, "weights": np.ones(num_rows, np.float32)}
