import itertools

import numpy as np
import pytest

from pretrain.data import labels
from pretrain.data.tokenizer import train
from pretrain.errors import UserError
from pretrain.metrics import spans


class LetterTokenizer:
    """One piece per character: id 5 + its code, so rows can be read back by eye."""

    pad_id, cls_id, sep_id = 0, 2, 3
    prefix, suffix = (2,), (3,)

    def encode_batch(self, texts):
        return [[5 + ord(c) for c in text] for text in texts]

    encode_words = encode_batch


TOKENIZER = LetterTokenizer()
CLS, SEP = TOKENIZER.cls_id, TOKENIZER.sep_id


def letters(row):
    return "".join(chr(i - 5) for i in row if i >= 5)


def random_sentences(count, seed, longest_word=6, longest_sentence=40):
    rng = np.random.default_rng(seed)
    names = np.array(["O", "B-A", "I-A", "B-B", "I-B"])
    sentences = []
    for _ in range(count):
        size = int(rng.integers(0, longest_sentence))
        words = ["".join(rng.choice(list("abcdefg"), rng.integers(1, longest_word + 1)))
                 for _ in range(size)]  # fmt: skip
        sentences.append({"tokens": words, "tags": rng.choice(names, size).tolist()})
    return sentences


TAGS = ["O", "B-A", "I-A", "B-B", "I-B"]


# label names


def test_label_names_of_classes_are_sorted():
    examples = [{"text": "", "label": name} for name in ["pos", "neg", "pos", "mixed"]]
    assert labels.label_names(examples, "classify") == ["mixed", "neg", "pos"]


def test_label_names_of_tags_hold_both_prefixes_of_every_type():
    examples = [
        {"tokens": ["a", "b"], "tags": ["B-PER", "O"]},
        {"tokens": ["a"], "tags": ["I-LOC"]},
        {"tokens": ["a"], "tags": ["B-a-b"]},
    ]
    expected = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER", "B-a-b", "I-a-b"]
    assert labels.label_names(examples, "tag") == expected


def test_label_names_refuse_another_task():
    with pytest.raises(ValueError, match="lm"):
        labels.label_names([], "lm")


# classification


def classify(texts, seq_len, label="x"):
    examples = [{"text": text, "label": label} for text in texts]
    return labels.encode_classification(
        examples, TOKENIZER, seq_len=seq_len, label_names=["w", "x"]
    )


def test_short_documents_are_one_row():
    columns = classify(["ab", "", "abcd"], seq_len=6)
    a, b, c, d = (5 + ord(letter) for letter in "abcd")
    assert columns["tokens"].tolist() == [
        [CLS, a, b, SEP, 0, 0],
        [CLS, SEP, 0, 0, 0, 0],
        [CLS, a, b, c, d, SEP],
    ]
    assert columns["segment_ids"].sum(axis=1).tolist() == [4, 2, 6]
    assert columns["labels"].tolist() == [1, 1, 1]
    assert columns["weights"].tolist() == [1, 1, 1]
    assert columns["example"].tolist() == [0, 1, 2]
    types = {name: column.dtype for name, column in columns.items()}
    assert types.pop("weights") == np.float32
    assert set(types.values()) == {np.dtype(np.int32)}


@pytest.mark.parametrize("length", [1, 5, 6, 7, 11, 12, 13, 60, 61, 97])
def test_windows_cover_every_token_with_the_fewest_full_rows(length):
    text = "".join(chr(200 + i) for i in range(length))  # every token differs
    columns = classify(["abc", text, "def"], seq_len=8)
    rows = [letters(row) for row in columns["tokens"][columns["example"] == 1]]
    assert set("".join(rows)) == set(text)
    assert all(row in text for row in rows)
    assert len(rows) == -(-length // 6)
    assert len(rows) == 1 or {len(row) for row in rows} == {6}
    weights = np.bincount(columns["example"], columns["weights"])
    assert weights == pytest.approx([1, 1, 1])
    assert columns["labels"].tolist() == [1] * (len(rows) + 2)


def test_missing_labels_are_minus_one():
    columns = labels.encode_classification(
        [{"text": "a", "label": None}, {"text": "b"}, {"text": "c", "label": "x"}],
        TOKENIZER,
        seq_len=4,
        label_names=["x"],
    )
    assert columns["labels"].tolist() == [-1, -1, 0]


def test_unknown_class_is_named():
    with pytest.raises(UserError) as error:
        labels.encode_classification(
            [{"text": "a", "label": "w"}, {"text": "a", "label": "odd"}],
            TOKENIZER,
            seq_len=8,
            label_names=["w", "x"],
            key="data.test",
        )
    message = str(error.value)
    assert all(part in message for part in ("data.test", "example 1", "'odd'", "'w', 'x'"))


def test_row_without_room_is_refused():
    with pytest.raises(UserError, match=r"seq_len = 2 .* the 2 special tokens .* 3 or more"):
        classify(["a"], seq_len=2)


def test_merge_windows_is_the_mean_over_windows():
    rng = np.random.default_rng(0)
    columns = classify(["a" * 3, "b" * 20, "c" * 7], seq_len=8)
    log_probs = rng.normal(size=(len(columns["example"]), 4)).astype(np.float32)
    expected = [log_probs[columns["example"] == i].mean(axis=0) for i in range(3)]
    merged = labels.merge_windows(log_probs, columns["example"], columns["weights"])
    assert merged == pytest.approx(np.array(expected), abs=1e-6)
    # A repeated row of weight 0, as at the end of the last evaluation batch, changes nothing.
    padded = labels.merge_windows(
        np.concatenate([log_probs, log_probs[:1] + 9]),
        np.append(columns["example"], columns["example"][0]),
        np.append(columns["weights"], 0),
    )
    assert padded == pytest.approx(merged)


# tags


def tag(sentences, seq_len, **kwargs):
    return labels.encode_tags(sentences, TOKENIZER, seq_len=seq_len, label_names=TAGS, **kwargs)


def test_labels_stand_on_the_first_piece_of_each_word():
    columns = tag([{"tokens": ["ab", "c", "def"], "tags": ["B-A", "I-A", "B-B"]}], seq_len=10)
    assert letters(columns["tokens"][0]) == "abcdef"
    assert columns["tokens"][0, [0, 7]].tolist() == [CLS, SEP]
    assert columns["segment_ids"][0].tolist() == [1] * 8 + [0] * 2
    assert columns["labels"][0].tolist() == [0, 1, 0, 2, 3, 0, 0, 0, 0, 0]
    assert columns["label_mask"][0].tolist() == [0, 1, 0, 1, 1, 0, 0, 0, 0, 0]
    assert columns["word"][0].tolist() == [-1, 0, -1, 1, 2, -1, -1, -1, -1, -1]
    assert columns["weights"].tolist() == [1]
    floats = {name for name, column in columns.items() if column.dtype == np.float32}
    assert floats == {"label_mask", "weights"}
    assert columns["sentence_end"][0].tolist() == [False] * 4 + [True] + [False] * 5
    assert all(columns[name].dtype == np.int32 for name in set(columns) - floats - {"sentence_end"})


@pytest.mark.parametrize("seq_len", [8, 9, 16, 33, 200])
def test_every_word_is_read_once_and_round_trips(seq_len):
    sentences = random_sentences(60, seed=seq_len)
    columns = tag(sentences, seq_len)
    gold = labels.words_from_predictions(columns, columns["labels"], TAGS)
    assert gold == [sentence["tags"] for sentence in sentences]
    assert columns["label_mask"].sum() == sum(len(s["tokens"]) for s in sentences)
    # At each place that is read stands the whole word, uncut.
    for row, place in zip(*np.nonzero(columns["label_mask"]), strict=True):
        word = sentences[columns["example"][row]]["tokens"][columns["word"][row, place]]
        assert letters(columns["tokens"][row, place : place + len(word)]) == word


def margin(window, begin, end, length):
    """Pieces between a word and the nearer cut of a window; a sentence's own ends are no cuts."""
    start, stop = window
    left = begin - start if start else np.inf
    right = stop - end if stop < length else np.inf
    return min(left, right)


@pytest.mark.parametrize("seq_len", [8, 14, 31])
def test_every_word_is_read_where_it_is_farthest_from_a_cut(seq_len):
    sentences = random_sentences(30, seed=1)
    columns = tag(sentences, seq_len)
    for i, sentence in enumerate(sentences):
        text = "".join(sentence["tokens"])
        ends = np.cumsum([len(word) for word in sentence["tokens"]])
        rows = np.flatnonzero(columns["example"] == i)
        # A second path: find each window by its letters among all places where words begin.
        windows = {}
        for row in rows:
            piece = letters(columns["tokens"][row])
            word = columns["word"][row].max()
            place = np.flatnonzero(columns["word"][row] == word)[0] - 1
            start = ends[word] - len(sentence["tokens"][word]) - place
            assert text[start : start + len(piece)] == piece
            assert len(piece) <= seq_len - 2
            assert start in (0, *ends)
            assert start + len(piece) in ends
            windows[row] = start, start + len(piece)

        for row in rows:
            for word in columns["word"][row][columns["word"][row] >= 0]:
                begin, end = ends[word] - len(sentence["tokens"][word]), ends[word]
                margins = {r: margin(w, begin, end, len(text)) for r, w in windows.items()}
                assert margins[row] == max(margins.values())


def test_long_sentences_keep_context_on_both_sides():
    sentences = [{"tokens": list("abcdefghij") * 20, "tags": ["O"] * 200}]
    columns = tag(sentences, seq_len=42)  # windows of 40 pieces, steps of 20
    place = np.nonzero(columns["label_mask"])[1] - 1
    rows = np.nonzero(columns["label_mask"])[0]
    inner = (rows > 0) & (rows < rows.max())
    assert place[inner].min() >= 9
    assert place[inner].max() <= 30


def test_a_word_longer_than_a_row_keeps_its_label():
    sentences = [{"tokens": ["a", "b" * 50, "c"], "tags": ["B-A", "B-B", "I-B"]}]
    columns = tag(sentences, seq_len=8)
    assert labels.words_from_predictions(columns, columns["labels"], TAGS) == [
        ["B-A", "B-B", "I-B"]
    ]
    assert "b" * 6 in [letters(row) for row in columns["tokens"]]


def test_empty_sentences_keep_their_place():
    sentences = [
        {"tokens": [], "tags": []},
        {"tokens": ["a"], "tags": ["B-A"]},
        {"tokens": [], "tags": []},
    ]
    columns = tag(sentences, seq_len=8)
    assert labels.words_from_predictions(columns, columns["labels"], TAGS) == [[], ["B-A"], []]


def test_predictions_are_read_in_word_order_whatever_the_row_order():
    sentences = random_sentences(20, seed=3)
    columns = tag(sentences, seq_len=12)
    predicted = np.random.default_rng(0).integers(0, 5, columns["tokens"].shape)
    expected = labels.words_from_predictions(columns, predicted, TAGS)
    order = np.random.default_rng(1).permutation(len(predicted))
    shuffled = {name: column[order] for name, column in columns.items()}
    assert labels.words_from_predictions(shuffled, predicted[order], TAGS) == expected
    assert [len(tags) for tags in expected] == [len(s["tokens"]) for s in sentences]


@pytest.mark.parametrize("seq_len", [5, 8])
def test_decoding_finds_the_best_valid_tags(seq_len):
    rng = np.random.default_rng(seq_len)
    sentences = [{"tokens": ["ab"] * n, "tags": ["O"] * n} for n in (2, 0, 4, 1, 3, 4, 0)]
    columns = tag(sentences, seq_len)
    log_probs = rng.normal(size=(*columns["tokens"].shape, len(TAGS))).astype(np.float32)
    decoded = labels.decode_tags(columns, log_probs, TAGS)

    def valid(tags):
        before = ["O", *tags]
        return all(
            tag[0] != "I" or (old[0] != "O" and old[2:] == tag[2:])
            for old, tag in zip(before, tags, strict=False)
        )

    for i, sentence in enumerate(sentences):
        scores = np.zeros((len(sentence["tokens"]), len(TAGS)))
        for row, place in zip(*np.nonzero(columns["label_mask"]), strict=True):
            if columns["example"][row] == i:
                scores[columns["word"][row, place]] = log_probs[row, place]
        best = max(
            (path for path in itertools.product(TAGS, repeat=len(scores)) if valid(path)),
            key=lambda path, s=scores: sum(s[w, TAGS.index(tag)] for w, tag in enumerate(path)),
        )
        assert decoded[i] == list(best)


def test_decoding_leaves_valid_predictions_alone():
    sentences = random_sentences(20, seed=4)
    for sentence in sentences:  # repair: every I- that continues nothing becomes B-
        for kind, start, _ in spans(sentence["tags"]):
            sentence["tags"][start] = f"B-{kind}"
    columns = tag(sentences, seq_len=16)
    log_probs = np.log(np.where(np.eye(5)[columns["labels"]], 0.6, 0.1))
    assert labels.decode_tags(columns, log_probs, TAGS) == [s["tags"] for s in sentences]


def test_missing_tags_still_mark_the_words_to_read():
    columns = tag([{"tokens": ["ab", "c"]}, {"tokens": ["d"], "tags": None}], seq_len=8)
    assert columns["label_mask"].sum() == 3
    assert not columns["labels"].any()


def test_unknown_tag_is_named():
    with pytest.raises(UserError) as error:
        tag([{"tokens": ["a"], "tags": ["B-odd"]}], seq_len=8, key="data.validation")
    message = str(error.value)
    assert all(part in message for part in ("data.validation", "example 0", "'B-odd'", "'I-B'"))


def test_unequal_tags_are_refused():
    with pytest.raises(UserError, match=r"data\.train: example 1 has 2 tokens and 1 tags"):
        tag([{"tokens": [], "tags": []}, {"tokens": ["a", "b"], "tags": ["O"]}], seq_len=8)


# lengths


@pytest.mark.parametrize("task", ["classify", "tag"])
def test_rows_of_the_fitted_length_keep_examples_whole(task):
    sentences = random_sentences(20, seed=5)
    texts = [{"text": "".join(s["tokens"]), "label": "x"} for s in sentences]
    examples = sentences if task == "tag" else texts
    lengths = labels.row_lengths(examples, TOKENIZER)
    assert lengths.tolist() == [2 + len(t["text"]) for t in texts]
    seq_len = labels.fit_length(lengths, 1000)
    if task == "tag":
        columns = tag(sentences, seq_len)
    else:
        columns = labels.encode_classification(texts, TOKENIZER, seq_len=seq_len, label_names=["x"])
    assert columns["example"].tolist() == list(range(20))


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"),
    [([3, 17], 128, 32), ([16, 2], 128, 16), ([500], 128, 128), ([30], 31, 31), ([], 128, 16)],
)
def test_fit_length(lengths, limit, expected):
    assert labels.fit_length(lengths, limit) == expected


# subsampling


def labelled(sizes):
    names = [name for name, size in sizes.items() for _ in range(size)]
    return [{"text": "", "label": name} for name in names]


@pytest.mark.parametrize("stratify_key", [None, "label"])
def test_samples_are_nested_and_repeat_by_seed(stratify_key):
    examples = labelled({"a": 300, "b": 80, "c": 20})
    large = labels.subsample(examples, 200, 7, stratify_key)
    assert len(set(large)) == 200
    for n in (1, 50, 199):
        assert labels.subsample(examples, n, 7, stratify_key) == large[:n]
    assert labels.subsample(examples, 200, 8, stratify_key) != large
    assert sorted(labels.subsample(examples, 400, 7, stratify_key)) == list(range(400))


@pytest.mark.parametrize("seed", range(5))
def test_stratified_samples_hold_every_class_in_proportion(seed):
    sizes = {"a": 3000, "b": 800, "c": 197, "rare": 3}
    examples = labelled(sizes)
    sample = labels.subsample(examples, 4, seed, "label")
    assert {examples[i]["label"] for i in sample} == set(sizes)
    sample = labels.subsample(examples, 400, seed, "label")
    counts = {name: sum(examples[i]["label"] == name for i in sample) for name in sizes}
    for name, size in sizes.items():
        assert abs(counts[name] - size / 10) <= 2


@pytest.mark.parametrize("n", [0, -1, 6])
def test_impossible_samples_are_refused(n):
    with pytest.raises(UserError, match=rf"data\.limit: found {n}, expected 1 to 5"):
        labels.subsample(labelled({"a": 5}), n, 0)


def test_encoding_agrees_with_the_real_tokenizer():
    texts = ["the quick brown fox jumps over the lazy dog", "pack my box with jugs"] * 40
    tokenizer = train(texts, vocab_size=290)
    columns = labels.encode_classification(
        [{"text": text, "label": "x"} for text in texts],
        tokenizer,
        seq_len=64,
        label_names=["x"],
    )
    lengths = columns["segment_ids"].sum(axis=1)
    decoded = [
        tokenizer.decode(row[1 : n - 1].tolist())
        for row, n in zip(columns["tokens"], lengths, strict=True)
    ]
    assert decoded == texts
    sentences = [{"tokens": text.split(), "tags": ["B-A"] * len(text.split())} for text in texts]
    columns = labels.encode_tags(sentences, tokenizer, seq_len=12, label_names=TAGS)
    starts = columns["tokens"][columns["label_mask"] > 0]
    assert all(tokenizer.pieces[i].startswith("\u2581") for i in starts)
