"""Labelled examples as fixed-length rows, and rows' predictions back as documents and words.

Nothing labelled is lost to a length limit. A document longer than a row becomes several windows
that cover every token; its class is the mean over windows (`merge_windows`). A sentence longer
than a row becomes overlapping windows cut between words, and each word's tag is read exactly once,
where the word stands farthest from a cut (`words_from_predictions`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from pretrain.data.reading import Located
from pretrain.errors import UserError

Example = Mapping[str, Any]
Columns = dict[str, np.ndarray]


class Encoder(Protocol):
    """The part of `pretrain.data.tokenizer.AnyTokenizer` that encoding needs."""

    pad_id: int
    cls_id: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...

    def encode_words(self, words: list[str]) -> list[list[int]]: ...


# --------------------------------------------------------------------------------- label names


def label_names(examples: Iterable[Example], task: str) -> list[str]:
    """The classes of a labelled source, in the order of their ids.

    Args:
        examples: of the training split.
        task: "classify" or "tag".

    Returns:
        Sorted class names; for "tag" `O`, then `B-X` and `I-X` of every entity type, sorted by
        type, whether or not both occur.
    """
    if task == "classify":
        return sorted({example["label"] for example in examples})
    if task == "tag":
        tags = {tag for example in examples for tag in example["tags"]}
        types = sorted({tag.partition("-")[2] for tag in tags - {"O"}})
        return ["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]
    raise ValueError(f"task {task!r} has no labels: expected 'classify' or 'tag'")


def class_ids(examples: Sequence[Example], names: Sequence[str], key: str) -> np.ndarray:
    """The class of every example, int32 [n]; -1 where an example carries none.

    Raises:
        UserError: on a label that is not among `names`.
    """
    ids = {name: i for i, name in enumerate(names)}
    labels = [example.get("label") for example in examples]
    for i, label in enumerate(labels):
        if label is not None and label not in ids:
            raise _unknown(f"{_place(examples, i, key)} has the label {label!r}", names)
    return np.array([-1 if label is None else ids[label] for label in labels], np.int32)


def tag_ids(examples: Sequence[Example], names: Sequence[str], key: str) -> list[np.ndarray]:
    """The tags of every sentence, int32 [number of words]; all 0 where it carries none.

    Raises:
        UserError: on a tag that is not among `names`, or where tags and tokens are not as many.
    """
    ids = {name: i for i, name in enumerate(names)}
    encoded = []
    for i, example in enumerate(examples):
        words, tags = example["tokens"], example.get("tags")
        if tags is None:
            encoded.append(np.zeros(len(words), np.int32))
            continue
        if len(tags) != len(words):
            raise UserError(
                f"{_place(examples, i, key)} has {len(words)} tokens and {len(tags)} tags; "
                "every token needs one tag"
            )
        for place, tag in enumerate(tags):
            if tag not in ids:
                raise _unknown(f"{_place(examples, i, key, place)} has the tag {tag!r}", names)
        encoded.append(np.array([ids[tag] for tag in tags], np.int32))
    return encoded


def _place(examples: Sequence[Example], i: int, key: str, word: int = 0) -> str:
    """Example `i` for messages, by file and line where it comes from a file."""
    example = examples[i]
    where = f"{example.where(word)}: " if isinstance(example, Located) else ""
    return f"{where}{key}: example {i}"


def _unknown(finding: str, names: Sequence[str]) -> UserError:
    known = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
    return UserError(
        f"{finding}, which the training data does not have; the {len(names)} known ones are {known}"
    )


# ------------------------------------------------------------------------------------- encoding


def row_lengths(examples: Sequence[Example], tokenizer: Encoder) -> np.ndarray:
    """How long a row each example needs to stay whole, special tokens included: int64 [n]."""
    if examples and "tokens" in examples[0]:
        sizes = [sum(map(len, words)) for words in _sentence_pieces(examples, tokenizer)]
    else:
        sizes = [len(ids) for ids in tokenizer.encode_batch([e["text"] for e in examples])]
    return np.array(sizes, np.int64) + len(tokenizer.prefix) + len(tokenizer.suffix)


def fit_length(lengths: Iterable[int], limit: int, multiple: int = 16) -> int:
    """The shortest row that holds every length: a multiple of `multiple`, at most `limit`."""
    longest = max(lengths, default=1)
    return min(limit, -(-int(longest) // multiple) * multiple)


def encode_classification(
    examples: Sequence[Example],
    tokenizer: Encoder,
    *,
    seq_len: int,
    label_names: Sequence[str],
    key: str = "data.train",
) -> Columns:
    """Encodes {"text", "label"} examples as rows `prefix pieces suffix`, as `[CLS] pieces [SEP]`.

    A document of more pieces than a row has room for becomes the fewest windows that cover it, all
    full, evenly spaced, so that they overlap where it does not divide.

    Args:
        examples: `label` may be missing or None for prediction.
        tokenizer: gives the pieces, and the special tokens around them.
        seq_len: S, the length of every row.
        label_names: class names, the index is the id.
        key: the config key of this split, for messages.

    Returns:
        tokens [n, S] int32, segment_ids [n, S] int32 (1 real, 0 padding), labels [n] int32 (-1
        unknown), weights [n] float32 (1 / number of windows of the document), example [n] int32.

    Raises:
        UserError: on an unknown label, or a seq_len without room for text.
    """
    room = _room(tokenizer, seq_len)
    labels = class_ids(examples, label_names, key)
    windows, example, weights = [], [], []
    for i, pieces in enumerate(tokenizer.encode_batch([e["text"] for e in examples])):
        count = max(1, -(-len(pieces) // room))
        spare = max(0, len(pieces) - room)
        starts = [w * spare // max(1, count - 1) for w in range(count)]
        windows += [pieces[start : start + room] for start in starts]
        example += [i] * count
        weights += [1 / count] * count
    example = np.array(example, np.int32)
    return {
        **_rows(windows, tokenizer, seq_len),
        "labels": labels[example],
        "weights": np.array(weights, np.float32),
        "example": example,
    }


def encode_tags(
    examples: Sequence[Example],
    tokenizer: Encoder,
    *,
    seq_len: int,
    label_names: Sequence[str],
    key: str = "data.train",
) -> Columns:
    """Encodes {"tokens", "tags"} examples as rows `prefix pieces suffix`, a tag per word.

    A word's label stands on its first piece. A sentence of more pieces than a row has room for
    becomes windows of whole words, each starting half a window after the one before; a word's label
    counts only in the window where it is farthest from a cut. A single word of more pieces than
    that loses its last ones, never its label.

    Args: those of `encode_classification`; `tags` (IOB2) may be missing or None for prediction.

    Returns:
        tokens [n, S] int32, segment_ids [n, S] int32 (1 real, 0 padding), labels [n, S] int32,
        label_mask [n, S] float32 (1 once per word), word [n, S] int32 (index of the word in its
        sentence where label_mask is 1, else -1), sentence_end [n, S] bool (true on a sentence's
        last word), weights [n] float32 (1), example [n] int32.

    Raises:
        UserError: on an unknown tag, tags that are not as many as tokens, or a seq_len without
            room for text.
    """
    room = _room(tokenizer, seq_len)
    tags = tag_ids(examples, label_names, key)
    windows, example = [], []
    row_parts, column_parts, word_parts, label_parts = [], [], [], []
    for i, words in enumerate(_sentence_pieces(examples, tokenizer)):
        words = [pieces[:room] for pieces in words]
        edges = np.cumsum([0, *map(len, words)])
        for start, stop, read in _word_windows(edges, room):
            row_parts.append(np.full(len(read), len(windows)))
            column_parts.append(len(tokenizer.prefix) + edges[read] - edges[start])
            word_parts.append(read)
            label_parts.append(tags[i][read])
            windows.append([piece for pieces in words[start:stop] for piece in pieces])
            example.append(i)

    columns = _rows(windows, tokenizer, seq_len)
    shape = columns["tokens"].shape
    labels, label_mask = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    word, sentence_end = np.full(shape, -1, np.int32), np.zeros(shape, bool)
    if windows:
        where = np.concatenate(row_parts), np.concatenate(column_parts)
        labels[where], label_mask[where] = np.concatenate(label_parts), 1
        word[where] = np.concatenate(word_parts)
        lengths = np.array([len(sentence["tokens"]) for sentence in examples])
        sentence_end[where] = word[where] == lengths[np.array(example)[where[0]]] - 1
    return {
        **columns,
        "labels": labels,
        "label_mask": label_mask,
        "word": word,
        "sentence_end": sentence_end,
        "weights": np.ones(len(windows), np.float32),
        "example": np.array(example, np.int32),
    }


def _room(tokenizer: Encoder, seq_len: int) -> int:
    """Pieces of text that a row holds."""
    special = len(tokenizer.prefix) + len(tokenizer.suffix)
    if seq_len <= special:
        raise UserError(
            f"train.seq_len = {seq_len} has no room for text beside the {special} special tokens "
            f"of a row; expected {special + 1} or more"
        )
    return seq_len - special


def _sentence_pieces(examples: Sequence[Example], tokenizer: Encoder) -> list[list[list[int]]]:
    """Per sentence and word its pieces; each distinct word is tokenized once."""
    distinct = list(dict.fromkeys(word for example in examples for word in example["tokens"]))
    pieces = dict(zip(distinct, tokenizer.encode_words(distinct), strict=True))
    return [[pieces[word] for word in example["tokens"]] for example in examples]


def _word_windows(edges: np.ndarray, room: int) -> list[tuple[int, int, np.ndarray]]:
    """Cuts a sentence into windows of whole words.

    Args:
        edges: [words + 1] the piece where each word begins, and the number of pieces; no word is
            longer than `room`.
        room: pieces a window holds.

    Returns:
        (first word, one past the last word, words whose label is read here) of each window.
    """
    begins, ends, count = edges[:-1], edges[1:], len(edges) - 1
    if edges[-1] <= room:
        return [(0, count, np.arange(count))]
    bounds, start, stop = [], 0, 0
    while stop < count:
        stop = int(np.searchsorted(ends, begins[start] + room, side="right"))
        if stop == count:  # Fill the last window from the left: more context at no cost.
            start = int(np.searchsorted(begins, ends[-1] - room, side="left"))
        bounds.append((start, stop))
        half = int(np.searchsorted(begins, begins[start] + max(1, room // 2), side="left"))
        start = min(half, stop)

    # Pieces to the nearer cut, negative outside of the window; a sentence's own ends are no cuts.
    distance = np.empty((len(bounds), count), np.int64)
    for row, (start, stop) in zip(distance, bounds, strict=True):
        left = begins - begins[start] if start else begins + room
        right = ends[stop - 1] - ends if stop < count else ends[-1] - ends + room
        row[:] = np.minimum(left, right)
    best = distance.argmax(axis=0)
    windows = [(start, stop, np.flatnonzero(best == w)) for w, (start, stop) in enumerate(bounds)]
    return [window for window in windows if window[2].size]


def _rows(windows: list[list[int]], tokenizer: Encoder, seq_len: int) -> Columns:
    tokens = np.full((len(windows), seq_len), tokenizer.pad_id, np.int32)
    segment_ids = np.zeros((len(windows), seq_len), np.int32)
    for row, pieces in enumerate(windows):
        # No row is empty: a model must have a position to read an empty text from.
        ids = [*tokenizer.prefix, *pieces, *tokenizer.suffix] or [tokenizer.cls_id]
        tokens[row, : len(ids)] = ids
        segment_ids[row, : len(ids)] = 1
    return {"tokens": tokens, "segment_ids": segment_ids}


# ----------------------------------------------------------------------------- rows to examples


def merge_windows(log_probs: np.ndarray, example: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean class log-probabilities of each document over its windows.

    Args:
        log_probs: [n, C] per row.
        example: [n] the rows' documents.
        weights: [n] the rows' weights; rows of weight 0 (padding of the last batch) are ignored.

    Returns:
        [max(example) + 1, C] float64.
    """
    example, weights = np.asarray(example), np.asarray(weights, np.float64)
    sums = np.zeros((int(example.max(initial=-1)) + 1, log_probs.shape[1]))
    np.add.at(sums, example, weights[:, None] * log_probs)
    return sums / np.bincount(example, weights)[:, None]


def words_from_predictions(
    columns: Mapping[str, np.ndarray], predicted_ids: np.ndarray, label_names: Sequence[str]
) -> list[list[str]]:
    """The tags of every sentence from predictions on its rows, one tag per word in order.

    Args:
        columns: label_mask, word and example of `encode_tags` or `encode_tag_features`.
        predicted_ids: [n, S] label ids. `columns["labels"]` here gives the gold tags back.
        label_names: tag names, the index is the id.
    """
    ids, edges = by_sentence(columns, np.asarray(predicted_ids))
    return _split_names(ids, edges, label_names)


def decode_tags(
    columns: Mapping[str, np.ndarray],
    log_probs: np.ndarray,
    label_names: Sequence[str],
    crf: Mapping[str, np.ndarray] | None = None,
) -> list[list[str]]:
    """The most probable valid IOB2 tags of every sentence, one per word in order.

    Viterbi search over sequences in which I-X follows B-X or I-X. A classifier that decides each
    word alone often has the inside of an entity right and its first word as O; this joins them.

    Args:
        columns: label_mask, word and example of `encode_tags` or `encode_tag_features`.
        log_probs: [n, S, C] log-probabilities, or logits.
        label_names: [C] tag names, the index is the id; "O" is among them.
        crf: scores of a conditional random field, `pretrain.models.crf`: none are 0.
    """
    forbidden = -1e9
    crf = crf or {"transitions": 0.0, "start": 0.0, "end": 0.0}
    kinds = [name[2:] for name in label_names]
    inside = np.array([name.startswith("I-") for name in label_names])
    same = np.array([[a == b for b in kinds] for a in kinds])
    transition = np.where(inside & ~same, forbidden, crf["transitions"])  # [from, to]; O is "".

    flat, edges = by_sentence(columns, np.asarray(log_probs))
    lengths = np.diff(edges)
    order = np.argsort(-lengths, kind="stable")  # Longest first: those still going are a prefix.
    order = order[: np.count_nonzero(lengths)]
    starts, lengths = edges[order], lengths[order]
    going = [np.count_nonzero(lengths > t) for t in range(lengths.max(initial=0))]

    score = np.where(inside, forbidden, crf["start"]) + flat[starts]
    best_before = np.zeros(flat.shape, np.int64)
    for t, n in enumerate(going[1:], start=1):
        paths = score[:n, :, None] + transition
        best_before[starts[:n] + t] = paths.argmax(axis=1)
        score[:n] = paths.max(axis=1) + flat[starts[:n] + t]
    current, ids = (score + crf["end"]).argmax(axis=1), np.empty(len(flat), np.int64)
    for t, n in reversed(list(enumerate(going))):
        here = starts[:n] + t
        ids[here] = current[:n]
        current[:n] = best_before[here, current[:n]]
    return _split_names(ids, edges, label_names)


def spread_words(columns: Mapping[str, np.ndarray], values: np.ndarray) -> np.ndarray:
    """The inverse of `by_sentence`: values [words, ...] at their words' places, [n, S, ...]."""
    count = len(values)
    places = np.full(columns["label_mask"].shape, -1)
    places[np.nonzero(columns["label_mask"])] = np.arange(count)
    order, _ = by_sentence(columns, places)
    inverse = np.empty(count, np.int64)
    inverse[order] = np.arange(count)
    spread = np.zeros((*places.shape, *values.shape[1:]), values.dtype)
    spread[np.nonzero(columns["label_mask"])] = values[inverse]
    return spread


def by_sentence(
    columns: Mapping[str, np.ndarray], values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values [n, S, ...] of all words in order, [words, ...], and sentences' edges among them."""
    rows, places = np.nonzero(columns["label_mask"])
    example, word = columns["example"], columns["word"][rows, places]
    example = example[rows] if example.ndim == 1 else example[rows, places]
    num_sentences = int(columns["example"].max(initial=-1)) + 1
    edges = np.cumsum([0, *np.bincount(example, minlength=num_sentences)])
    return values[rows, places][np.lexsort((word, example))], edges


def _split_names(ids: np.ndarray, edges: np.ndarray, names: Sequence[str]) -> list[list[str]]:
    tags = np.array(names, dtype=object)[ids].tolist()
    return [tags[start:end] for start, end in pairwise(edges.tolist())]


# ---------------------------------------------------------------------------------- subsampling


def subsample(
    examples: Sequence[Example],
    n: int,
    seed: int,
    stratify_key: str | None = None,
    key: str = "data.limit",
) -> list[int]:
    """Indices of `n` examples: the first n of one random order, so samples of a seed are nested.

    With `stratify_key` ("label") the order has one example of every class first; then each class
    advances in proportion to its size, so every sample has nearly the data's proportions.

    Raises:
        UserError: where n is not between 1 and the number of examples; it names the key of n.
    """
    if not 1 <= n <= len(examples):
        raise UserError(f"{key}: found {n}, expected 1 to {len(examples)}: all examples there are")
    order = np.random.default_rng(seed).permutation(len(examples))
    if stratify_key is None:
        return order[:n].tolist()
    classes = [examples[i][stratify_key] for i in order.tolist()]
    sizes, seen, progress = Counter(classes), Counter(), np.empty(len(order))
    for place, name in enumerate(classes):
        progress[place] = (seen[name] + 0.5) / sizes[name] if seen[name] else 0
        seen[name] += 1
    return order[np.argsort(progress, kind="stable")[:n]].tolist()
