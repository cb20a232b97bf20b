"""Words as ids and characters."""

import numpy as np

from pretrain.data.words import KNOWN, PAD, UNKNOWN, WordEncoder

EXAMPLES = [
    {"tokens": ["The", "cat", "saw", "the", "dog"], "tags": ["O", "B-X", "O", "O", "B-X"]},
    {"tokens": ["the", "zoo", "\ud800"], "tags": ["O", "B-X", "O"]},
    {"tokens": []},
]
NAMES = ["O", "B-X", "I-X"]


def fit(task="tag", examples=EXAMPLES, **changes):
    about = dict(seq_len=6, num_words=10, min_count=1, word_length=4) | changes
    return WordEncoder.fit(examples, task, NAMES if task == "tag" else ["a", "b"], **about)


def test_the_most_frequent_words_are_known_whatever_their_case():
    assert fit().words[0] == "the" and len(fit().words) == 6
    assert fit(num_words=1).words == ["the"] == fit(min_count=2).words
    assert fit(min_count=4).words == []


def test_rows_hold_ids_and_characters_of_words():
    encoder = fit(min_count=2)
    columns = encoder.encode(EXAMPLES, "x")
    the = KNOWN + 0
    assert columns["tokens"].tolist() == [
        [the, UNKNOWN, UNKNOWN, the, UNKNOWN, PAD],
        [the, UNKNOWN, UNKNOWN, PAD, PAD, PAD],
        [UNKNOWN, PAD, PAD, PAD, PAD, PAD],  # no row is empty
    ]
    assert columns["segment_ids"].sum(1).tolist() == [5, 3, 1]
    assert columns["labels"][0].tolist() == [0, 1, 0, 0, 1, 0]
    ids = {c: KNOWN + i for i, c in enumerate(encoder.characters)}
    spelled = columns["characters"]
    assert spelled.shape == (3, 6, 4) and spelled.dtype == np.uint8
    assert spelled[0, 0].tolist() == [ids["T"], ids["h"], ids["e"], PAD]
    assert spelled[0, 3].tolist() == [ids["t"], ids["h"], ids["e"], PAD]
    assert not spelled[2].any() and not spelled[0, 5].any()


def test_unseen_words_are_spelled_and_cut_at_their_length():
    encoder = fit()
    columns = encoder.encode([{"tokens": ["toothache", "\u00e9"]}], "x")
    assert columns["tokens"][0, :2].tolist() == [UNKNOWN, UNKNOWN]
    ids = {c: KNOWN + i for i, c in enumerate(encoder.characters)}
    spelled = columns["characters"][0]
    assert spelled[0].tolist() == [ids["t"], ids["o"], ids["o"], ids["t"]]
    assert spelled[1].tolist() == [UNKNOWN, PAD, PAD, PAD]


def test_long_sentences_become_windows_that_read_each_word_once():
    sentence = {"tokens": [f"w{i}" for i in range(20)], "tags": ["O"] * 20}
    columns = fit(examples=[sentence]).encode([sentence], "x")
    read = columns["word"][columns["label_mask"] > 0]
    assert sorted(read.tolist()) == list(range(20)) and len(columns["tokens"]) > 3
    ends = columns["sentence_end"]
    assert ends.sum() == 1 and columns["word"][ends].tolist() == [19]


def test_texts_are_split_into_words_and_marks():
    examples = [{"text": "Good film, good!", "label": "a"}, {"text": "", "label": "b"}]
    encoder = fit("classify", examples, word_length=0)
    columns = encoder.encode(examples, "x")
    assert "characters" not in columns and encoder.characters == ""
    assert encoder.words[0] == "good" and sorted(encoder.words) == ["!", ",", "film", "good"]
    first, film, comma = columns["tokens"][0, :3]
    assert first == KNOWN == columns["tokens"][0, 3] and len({first, film, comma}) == 3
    assert columns["tokens"][1].tolist() == [UNKNOWN, *[PAD] * 5]
