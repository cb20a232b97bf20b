"""Augmented texts: what words are replaced by, how often, and what is written."""

import math
import re

import numpy as np
import pytest

from pretrain import tasks
from pretrain.checkpoint import load_params
from pretrain.errors import UserError
from pretrain.files import read_jsonl
from pretrain.predict import predict
from tests import tiny
from tools import augment

SEQ = "tiny,seq=32"


@pytest.fixture(scope="module")
def augmenter(small_run):
    return augment.Augmenter(small_run("bert", SEQ), 3)


def test_candidates_are_the_likeliest_words_or_the_nearest(augmenter, small_run):
    workdir = small_run("bert", SEQ)
    pieces = tasks.restore(workdir)[1].encoder.tokenizer
    words = ["the", "cat", "sees", "Grace", "near", "the", "elm"]
    cut = pieces.encode_words(words)
    found = augmenter.candidates(words)
    single = [i for i, ids in enumerate(cut) if len(ids) == 1]
    several = [i for i, ids in enumerate(cut) if len(ids) > 1]
    assert single and several
    for i in single:
        text = " ".join([*words[:i], "[MASK]", *words[i + 1 :]])
        (record,) = predict(workdir, [text], top=pieces.vocab_size)
        likely = [guess["piece"].lstrip("\u2581") for guess in record["masks"][0]
                  if guess["piece"][0] == "\u2581" and guess["piece"][1:].isalnum()]  # fmt: skip
        assert found[i] == [word for word in likely if word != words[i]][:3]
    table = load_params(workdir, tiny.mesh())[0]["trunk"]["word"]["embedding"]
    table = np.asarray(table)
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    for i in several:
        near = np.argsort(-(table @ table[cut[i]].mean(0)))
        near = [pieces.pieces[n] for n in near if pieces.pieces[n][0] == "\u2581"]
        assert found[i] == [p[1:] for p in near if p[1:].isalnum() and p[1:] != words[i]][:3]


def test_a_word_is_no_candidate_for_itself_in_another_case(augmenter, monkeypatch):
    """A tokenizer without cases gives both the same piece."""
    kind = type(augmenter.pieces)
    encode = kind.encode_words
    monkeypatch.setattr(kind, "encode_words", lambda self, x: encode(self, [w.lower() for w in x]))
    words = ["cat", "sees", "the", "elm"]
    assert augmenter.candidates([w.title() for w in words]) == augmenter.candidates(words)


def test_words_behind_the_row_keep_what_needs_no_place(augmenter):
    found = augmenter.candidates(["the"] * 60)
    assert len(found) == 60 and all(found[:30]) and not any(found[30:])
    assert augmenter.candidates([]) == []


def test_each_word_is_replaced_with_the_given_probability():
    rng = np.random.default_rng(0)
    candidates = [["x", "y"], [], ["z"]]
    made = [augment.replaced("a b c", candidates, 0.4, rng).split(" ") for _ in range(2000)]
    assert all(copy[1] == "b" for copy in made)
    count = sum(copy[0] != "a" for copy in made)
    assert abs(count - 800) < 5 * math.sqrt(2000 * 0.4 * 0.6)
    x = sum(copy[0] == "x" for copy in made)
    assert abs(x - count / 2) < 5 * math.sqrt(count / 4)


def test_what_stands_between_words_stays():
    """Candidates are of the words and marks: "don't" is three, and the parts join again."""
    text, rng = "I don't  know -- (really)!\n", np.random.default_rng(0)
    words = ["I", "don", "'", "t", "know", "-", "-", "(", "really", ")", "!"]
    others = [[word.upper()] if word.isalpha() else [] for word in words]
    assert augment.replaced(text, others, 0.0, rng) == text
    assert augment.replaced(text, others, 1.0, rng) == "I DON'T  KNOW -- (REALLY)!\n"


def run(flags_of, **values):
    augment.flags = flags_of(values)
    augment.main()


@pytest.fixture
def flags_of(monkeypatch):
    """The module's flags as plain values."""
    import types

    defaults = dict(text="0", label="1", copies=2, candidates=3, share=0.5, seed=0)

    def make(values):
        class Values(types.SimpleNamespace):
            def __getitem__(self, name):
                return types.SimpleNamespace(value=getattr(self, name))

        return types.SimpleNamespace(FLAGS=Values(**(defaults | values)))

    monkeypatch.setattr(augment, "flags", augment.flags)
    return make


def test_texts_and_their_labels_are_written(flags_of, small_run, small_data, tmp_path, capsys):
    """Without a label the copies alone: what they are copies of is in the labelled data."""
    source, workdir = tmp_path / "few.tsv", small_run("bert", SEQ)
    lines = (small_data / "train.tsv").read_text().splitlines()[:4]
    given = [line.replace(" ", ", ", 1).split("\t") for line in lines]
    source.write_text("".join(f"{text}\t{label}\n" for text, label in given))
    output = tmp_path / "more.jsonl"
    run(flags_of, workdir=str(workdir), input=str(source), output=str(output))
    records = read_jsonl(output)
    assert 4 < len(records) <= 12 and f"{len(records)} texts" in capsys.readouterr().out
    pairs = [[record["text"], record["label"]] for record in records]
    assert [pair for pair in pairs if pair in given] == given
    shapes = {(re.sub(r"\w+", "w", text), label) for text, label in pairs}
    assert shapes == {(re.sub(r"\w+", "w", text), label) for text, label in given}
    with pytest.raises(UserError, match=r"--output: .* exists"):
        run(flags_of, workdir=str(workdir), input=str(source), output=str(output))
    output = tmp_path / "copies.jsonl"
    run(flags_of, workdir=str(workdir), input=str(source), output=str(output), label="")
    copies = [{"text": text} for text, label in pairs if [text, label] not in given]
    assert read_jsonl(output) == copies


def test_only_a_masked_language_model_can(small_run):
    with pytest.raises(UserError, match="'classify', expected a masked language model"):
        augment.Augmenter(small_run("linear", "lr"), 3)
