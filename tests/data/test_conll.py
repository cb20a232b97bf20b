"""Column files and tag schemes, compared with seqeval's reading of the same tags."""

import itertools

import pytest
from seqeval.metrics.sequence_labeling import get_entities

from pretrain.data.conll import sentences
from pretrain.data.reading import to_iob2
from pretrain.errors import UserError


def read(text: str):
    return list(sentences(enumerate(text.split("\n"), start=1), "file"))


def test_blank_lines_documents_and_separators():
    text = "-DOCSTART- -X- O O\n\nEU NNP B-NP I-ORG\n\t\nNew York\tB-LOC\n \n\nlast\tO"
    assert read(text) == [
        {"tokens": ["EU"], "tags": ["B-ORG"]},
        {"tokens": ["New York"], "tags": ["B-LOC"]},
        {"tokens": ["last"], "tags": ["O"]},
    ]


def test_comments_and_hashtags():
    text = "# id 5 domain=en\n#nlproc B-X\n#\tO\n# newdoc\n\xa0\tO\n\tO"
    (sentence,) = read(text)
    assert sentence["tokens"] == ["#nlproc", "#", "\xa0", ""]
    assert sentence["tags"] == ["B-X", "O", "O", "O"]


@pytest.mark.parametrize("line", ["word", "word PER", "word B-", "O", "word\tx\tX-PER"])
def test_broken_lines(line):
    with pytest.raises(UserError, match="file:2: found"):
        read(f"a O\n{line}\n")


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        ("IOB1", "I-PER I-PER O I-LOC B-LOC I-LOC I-PER"),
        ("IOB2", "B-PER I-PER O B-LOC B-LOC I-LOC B-PER"),
        ("IOBES", "B-PER E-PER O S-LOC B-LOC E-LOC S-PER"),
        ("BILOU", "B-PER L-PER O U-LOC B-LOC L-LOC U-PER"),
    ],
)
def test_every_scheme_becomes_iob2(scheme, tags):
    expected = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-LOC", "B-PER"]
    assert to_iob2(tags.split(), scheme) == expected


def test_types_may_hold_hyphens():
    assert to_iob2(["I-creative-work", "I-creative-work"], "") == [
        "B-creative-work",
        "I-creative-work",
    ]


def test_entities_equal_seqevals_for_every_short_sequence():
    tags = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in "XY")]
    for sequence in itertools.product(tags, repeat=3):
        converted = to_iob2(list(sequence), "")
        assert get_entities(converted) == get_entities(list(sequence))
        assert {tag[0] for tag in converted} <= set("OBI")
