"""TensorFlow Datasets without TensorFlow: mocked, prepared offline, and not prepared at all."""

import json
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from pretrain.data.sources import open_source
from pretrain.errors import UserError

SENTENCES = [
    (["EU", "rejects", "German", "call"], ["B-ORG", "O", "B-MISC", "O"]),
    ([], []),
    (["Peter", "Blackburn"], ["B-PER", "I-PER"]),
]


class Sentences(tfds.core.GeneratorBasedBuilder):
    """Sentences as `ConllDatasetBuilder` makes them: class ids for tags, an empty example."""

    VERSION = tfds.core.Version("1.2.3")

    def _info(self):
        names = ["O", "B-ORG", "B-MISC", "B-PER", "I-PER"]
        features = {
            "tokens": tfds.features.Sequence(tfds.features.Text()),
            "ner": tfds.features.Sequence(tfds.features.ClassLabel(names=names)),
            "topic": tfds.features.ClassLabel(names=["news", "sport"]),
            "body": tfds.features.Text(),
            "rating": np.int64,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index, (tokens, tags) in enumerate(SENTENCES):
            topic = ["news", "sport", -1][index]
            body = " ".join(tokens) + " é"
            yield (
                index,
                {"tokens": tokens, "ner": tags, "topic": topic, "body": body, "rating": index},
            )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of `Sentences`, prepared without a network or TensorFlow."""
    builder = Sentences(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
    builder.download_and_prepare()
    assert "tensorflow" not in sys.modules
    return str(builder.data_path)


def test_tags_are_names_and_empty_examples_are_dropped(prepared):
    source = open_source(f"tfds:{prepared}:train", task="tag", tags="ner")
    read = sorted((example["tokens"], example["tags"]) for example in source)
    assert read == sorted(pair for pair in SENTENCES if pair[0])
    json.dumps(list(source))  # plain Python values


def test_text_and_labels(prepared):
    lm = open_source(f"tfds:{prepared}:train", task="lm", text="body")
    assert {"text": "Peter Blackburn é"} in list(lm)
    source = open_source(f"tfds:{prepared}:train", task="classify", text="body", label="rating")
    assert sorted(example["label"] for example in source) == ["0", "1", "2"]
    unlabelled = open_source(f"tfds:{prepared}:train", task="classify", text="body", label="topic")
    with pytest.raises(UserError, match=r"data\.train=tfds:.*example \d: .*-1"):
        list(unlabelled)


def test_fingerprint_and_slices(prepared):
    spec = f"tfds:{prepared}:train"
    source = open_source(spec, task="lm", text="body")
    assert source.fingerprint() == open_source(spec, task="lm", text="body").fingerprint()
    assert source.fingerprint() != open_source(spec, task="tag", tags="ner").fingerprint()
    halves = [list(open_source(spec + cut, task="lm", text="body")) for cut in ("[:50%]", "[50%:]")]
    key = str
    assert sorted(halves[0] + halves[1], key=key) == sorted(source, key=key)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{prepared}:dev", "no split 'dev'; expected one of train"),
        ("{prepared}:train", "no column 'text'; found .*'body'.*: set data.text"),
        ("{prepared}", "expected tfds:NAME:SPLIT|no split"),
        ("/nowhere/at/all:train", "cannot be opened"),
        ("no_such_dataset_xyz:train", "knows no 'no_such_dataset_xyz'"),
    ],
)
def test_bad_specs(prepared, spec, message):
    with pytest.raises(UserError, match=message) as caught:
        open_source("tfds:" + spec.format(prepared=prepared), task="lm")
    assert "data.train=tfds:" in str(caught.value)


@pytest.mark.parametrize(("name", "task"), [("imdb_reviews", "lm"), ("conll2003", "tag")])
def test_an_unprepared_dataset_says_how_to_prepare_it(tmp_path, monkeypatch, name, task):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    monkeypatch.setattr(
        tfds.core.utils.file_utils, "list_data_dirs", lambda *_, **__: [str(tmp_path)]
    )
    source = open_source(f"tfds:{name}:train", task=task, tags="ner")
    with pytest.raises(UserError, match=rf"tfds\.builder\('{name}', file_format='array_record'\)"):
        list(source)


def test_mocked_reviews():
    with tfds.testing.mock_data(num_examples=5):
        examples = list(open_source("tfds:imdb_reviews:train", task="classify"))
    assert len(examples) == 5
    assert {example["label"] for example in examples} == {"neg", "pos"}
    assert all(isinstance(example["text"], str) for example in examples)
