"""From a config to data, model and objective; and one clear error for everything wrong with it."""

import json

import numpy as np
import pytest

from pretrain import blank, tasks
from pretrain import config as configs
from pretrain.data import encoders
from pretrain.data.loader import Columns
from pretrain.data.static_masks import StaticMasks
from pretrain.errors import UserError
from pretrain.models.linear import HashedLinear
from tests import small_runs


def build(name, data, arg="", **changes):
    return tasks.build(configs.Reader(small_runs.config(name, data, arg, **changes)))


def test_language_model_rows(small_data):
    task = build("bert", small_data, "tiny,seq=32")
    store = task.splits["train"].dataset
    rows = store[np.arange(len(store))]
    assert rows["tokens"].shape[1] == task.encoder.seq_len == 32
    assert task.tokens_per_row == pytest.approx((rows["segment_ids"] > 0).sum() / len(store))
    assert task.objective.model.trunk.config.vocab_size == task.encoder.tokenizer.vocab_size == 300
    assert task.splits["train"].about["unigram_entropy"] > 1
    assert set(task.splits) == {"train", "validation"}


def test_tokens_of_a_row_are_counted_over_all_rows(small_data, monkeypatch):
    """Exactly of a store, under static masks too, else of a sample; rows get longer and longer."""
    lengths = np.arange(4000) * 32 // 4000
    segment_ids = (np.arange(32)[None] < lengths[:, None]).astype(np.int32)
    split = tasks.Split(Columns({"segment_ids": segment_ids}), {})
    task = tasks.Task(None, None, {"train": split})
    assert task.tokens_per_row == pytest.approx(lengths.mean(), rel=1e-3)
    task = build("bert", small_data, "tiny,seq=32,static")
    assert isinstance(task.splits["train"].dataset, StaticMasks)
    monkeypatch.delattr(StaticMasks, "__getitem__")
    plain = build("bert", small_data, "tiny,seq=32").tokens_per_row
    assert task.tokens_per_row == plain


def test_rows_of_a_checkpoints_tokenizer(small_data):
    """A folder as tokenizer.path: RoBERTa's for rows of packed documents and of one text."""
    path = {"tokenizer__path": str(small_runs.TOKENIZERS / "roberta")}
    task = build("bert", small_data, "tiny,seq=32", **path)
    pieces, store = task.encoder.tokenizer, task.splits["train"].dataset
    rows = store[np.arange(len(store))]
    starts = (rows["positions"] == 0) & (rows["segment_ids"] > 0)
    assert set(rows["tokens"][starts]) == {pieces.cls_id} == {0}
    assert set(rows["tokens"][rows["segment_ids"] == 0]) == {pieces.pad_id} == {1}
    assert task.objective.special_ids == (0, 1, 2, 3, 4)
    row = build("classify", small_data, **path).splits["train"].dataset[np.arange(1)]
    real = row["tokens"][row["segment_ids"] > 0]
    assert (real[0], real[-1]) == (0, 2)


def test_classification_rows_are_as_long_as_needed(small_data):
    task = build("classify", small_data, train__seq_len=64)
    longest = max(
        len(task.encoder.tokenizer.encode(line.split("\t")[0])) + 2
        for split in ("train", "test")
        for line in (small_data / f"{split}.tsv").read_text().splitlines()
    )
    assert 32 < longest <= task.encoder.seq_len < longest + 16
    assert task.encoder.label_names == ["animals", "numbers", "plants"]
    assert task.splits["train"].about["examples"] == 60 and len(task.splits["test"].examples) == 30
    short = build("classify", small_data, train__seq_len=24)
    assert short.encoder.seq_len == 24, "longer texts have several windows"
    assert len(short.splits["train"].dataset) > 60


def test_samples_are_nested_and_of_the_seed(small_data):
    def texts(**changes):
        found = build("classify", small_data, **changes).splits
        return [[e["text"] for e in found[s].examples] for s in ("train", "validation", "test")]

    few, _, _ = texts(data__limit=6)
    more, held_out, test = texts(data__limit=12, data__validation_limit=9)
    other, held_out_too, _ = texts(data__limit=12, data__validation_limit=9, seed=1)
    assert len(set(few)) == 6 and set(few) < set(more) and len(more) == 12
    assert set(more) != set(other), "another seed, another sample"
    assert held_out == held_out_too and len(held_out) == 9, "the held-out one is everyone's"
    assert len(test) == 30


def test_a_sample_that_lacks_a_class_has_its_label(small_data):
    task = build("classify", small_data, data__limit=2)
    assert len(task.encoder.label_names) == 3
    assert len(build("linear", small_data, "lr", data__limit=2).encoder.label_names) == 3


@pytest.mark.parametrize("arg", ["lr", "svm", "ner"])
def test_linear_tasks(small_data, arg):
    task = build("linear", small_data, arg)
    assert isinstance(task.objective.model, HashedLinear)
    assert task.objective.share == 1.0, "each batch is the whole training set"
    dataset = task.splits["train"].dataset
    rows = dataset[np.arange(len(dataset))]
    assert task.tokens_per_row == pytest.approx((rows["values"] > 0).sum() / len(dataset))


def test_a_task_is_restored_without_its_data(small_data, tmp_path):
    for name, arg in (("ner", ""), ("linear", "svm"), ("gpt", "tiny,seq=32")):
        config = small_runs.config(name, small_data, arg)
        task = tasks.build(configs.Reader(config))
        task.encoder.save(tmp_path)
        if "attention" in config.model:  # it may have been trained on a TPU
            config.model.attention = "splash"
        (tmp_path / tasks.CONFIG).write_text(json.dumps(config.to_dict()))
        _, restored = tasks.restore(tmp_path)
        assert restored.objective.model == task.objective.model
        assert restored.encoder.label_names == task.encoder.label_names
        assert restored.encoder.seq_len == task.encoder.seq_len
    with pytest.raises(UserError, match=r"--workdir: no config\.json in"):
        tasks.restore(tmp_path / "nothing")
    (tmp_path / encoders.ABOUT).unlink()
    with pytest.raises(UserError, match=r"no encoder\.json found"):
        tasks.restore(tmp_path)


GOOD = '{"text": "a cat", "label": "animals"}\n'
BROKEN = {  # file name: contents
    "broken.jsonl": GOOD + '{"text": "a do',
    "column.jsonl": GOOD + '{"txt": "a dog", "label": "animals"}\n',
    "other.jsonl": GOOD + '{"text": "a rock", "label": "minerals"}\n',
    "empty.jsonl": "\n",
    "empty.txt": " \n\n",
    "broken.conll": "a O\ncat B-X\ndog\n",
    "badtag.conll": "a O\ncat X-\n",
    "other.conll": "a O\nRex B-DOG\n\n",
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    for name, content in BROKEN.items():
        (folder / name).write_text(content)
    return folder


JSON = {"data.text": "text", "data.label": "label"}


@pytest.mark.parametrize(
    "name, changes, said",
    [
        ("bert", {"data.train": "{}/no.txt"}, r"data\.train=.*no\.txt: no such file"),
        ("bert", {"data.validation": "{}/no*.txt"}, r"data\.validation=.*: no file matches"),
        ("bert", {"data.train": "{}"}, r"data\.train=.* is a folder; name its files"),
        ("bert", {"data.train": "{}/empty.txt"}, r"data\.train.*holds no "),
        ("bert", {"data.validation": "{}/empty.txt"}, r"data\.validation.*holds no "),
        ("classify", JSON | {"data.train": "{}/broken.jsonl"}, r"broken\.jsonl:2: broken JSON"),
        (
            "classify",
            JSON | {"data.train": "{}/column.jsonl"},
            r"column\.jsonl:2: no column 'text'",
        ),
        ("classify", JSON | {"data.train": "{}/empty.jsonl"}, r"data\.train.*holds no examples"),
        ("ner", {"data.train": "{}/broken.conll"}, r"broken\.conll:3: found 'dog'"),
        ("ner", {"data.train": "{}/badtag.conll"}, r"badtag\.conll:2: .*expected a token and"),
        (
            "ner",
            {"data.test": "{}/other.conll"},
            r"data\.test: example 0 has the tag 'B-DOG', which the training data does not have",
        ),
        ("ner", {"data.train": "{}/other.jsonl"}, r"other\.jsonl:1: no column 'tokens'"),
        ("bert", {"tokenizer.vocab_size": 5000}, r"tokenizer\.vocab_size: 5000 is more than this"),
        ("bert", {"tokenizer.type": "words"}, r"tokenizer\.type: 'words' is unknown; expected one"),
        (
            "bert",
            {"tokenizer.path": str(small_runs.TOKENIZERS / "gpt2")},
            r"objective\.name: found 'mlm' with a tokenizer that has no mask token",
        ),
        ("bert", {"tokenizer.path": "{}/no.model"}, r"tokenizer\.path: .*no\.model is not a file"),
        ("bert", {"model.max_positions": 16}, r"seq_len: rows of 32 .*model\.max_positions 16"),
        ("bert", {"model.num_heads": 3}, r"model\.num_heads: 3 does not divide hidden_size 16"),
        ("bert", {"model.vocab_size": 299}, r"model\.vocab_size: found 299, expected at least"),
        ("bert", {"model.activation": "sin"}, r"model\.activation: found 'sin', expected one"),
        ("bert", {"model.dtype": "float16"}, r"model\.dtype: found 'float16', expected one of fl"),
        (
            "bert",
            {"model.remat": "some"},
            r"model\.remat: found 'some', expected one of none, dots",
        ),
        ("bert", {"model.causal": True}, r"model\.causal: found True with objective\.name 'mlm'"),
        ("bert", {"train.seq_len": 2}, r"train\.seq_len: 2 is too short"),
        (
            "bert",
            {"model.position": "rotary", "model.num_heads": 16},
            r"model\.num_heads: .* odd .*rotary",
        ),
        ("classify", {"objective.pool": "max"}, r"objective\.pool: found 'max', expected one of"),
        ("classify", {"objective.loss": "mse"}, r"objective\.loss: found 'mse', expected one of"),
        ("classify", {"data.limit": 61}, r"data\.limit: found 61, expected 1 to 60"),
        (
            "bert",
            {"init_from": "runs/a", "tokenizer.path": "a.model"},
            r"config\.tokenizer\.path: found 'a\.model' with init_from",
        ),
        (
            "bert",
            {"tokenizer.source": "{}/column.jsonl", "data.text": "body"},
            r"column\.jsonl:1: no column 'body'.*: set --text of tools\.tokenizer to one of them",
        ),
        ("bert", {"data.document": "page"}, r"data\.document=page: expected one of"),
        ("classify", {"data.label": "9"}, r"train\.tsv:1: no column '9'.*set data\.label to one"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_input_is_one_clear_error(name, changes, said, small_data, broken):
    changes = {
        key: value.format(broken) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    with pytest.raises(UserError, match=said) as caught:
        build(name, small_data, "tiny,seq=32" if name in ("bert", "gpt") else "", **changes)
    assert "\n" not in str(caught.value)


def test_a_label_unknown_at_test_time_is_told(small_data, broken):
    changes = JSON | {f"data.{split}": f"{broken}/other.jsonl" for split in ("train", "test")}
    changes["data.validation"] = ""
    assert build("classify", small_data, **changes).encoder.label_names == ["animals", "minerals"]
    (broken / "animals.jsonl").write_text(GOOD)
    with pytest.raises(UserError, match=r"data\.test: example 1 has the label 'minerals'"):
        build("linear", small_data, "lr", **changes | {"data.train": f"{broken}/animals.jsonl"})


def test_a_tokenizer_source_has_the_columns_of_the_data(small_data, tmp_path):
    """In language modelling: what labelled files are like says nothing of a file of text."""
    documents = (small_data / "corpus.txt").read_text().split("\n\n")
    for column, name in (("body", "a"), ("text", "b")):
        lines = [json.dumps({column: text}) + "\n" for text in documents]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    body = {f"data.{split}": f"{tmp_path}/a.jsonl" for split in ("train", "validation")}
    body |= {"data.text": "body", "tokenizer.source": f"{tmp_path}/a.jsonl"}
    assert build("bert", small_data, "tiny,seq=32", **body).encoder.tokenizer.vocab_size == 300
    for name, labelled in (("ner", {"data.format": "conll"}), ("classify", {"data.text": "0"})):
        labelled |= {"tokenizer.source": f"{tmp_path}/b.jsonl"}
        assert build(name, small_data, **labelled).encoder.tokenizer.vocab_size == 300


@pytest.mark.parametrize("name", ["bert", "classify"])
def test_each_source_is_opened_once(name, small_data, monkeypatch):
    opened = []
    open_source = tasks.sources.open_source
    monkeypatch.setattr(
        tasks.sources,
        "open_source",
        lambda *a, key, **k: opened.append(key) or open_source(*a, key=key, **k),
    )
    build(name, small_data, "tiny,seq=32", tokenizer__source="", data__test="")
    assert opened == ["data.train", "data.validation"]


def test_unknown_sources_are_clear_errors(small_data):
    for spec, said in (("tfsd:imdb:train", "'tfsd' is no known kind"), ("", "is empty")):
        with pytest.raises(UserError, match=said):
            build("bert", small_data, data__train=spec)


def test_a_causal_model_is_never_pooled_at_its_first_position(small_data):
    assert build("classify", small_data).objective.model.pool == "first"
    causal = {"model__causal": True}
    assert build("classify", small_data, **causal).objective.model.pool == "last"
    for pool in ("first", "pooler"):
        with pytest.raises(UserError, match=f"objective.pool: found '{pool}' with a causal model"):
            build("classify", small_data, **causal, objective__pool=pool)


def test_memory_that_no_row_gets_is_refused():
    """As an imported Transformer-XL has it, rows see zeros in its place."""
    config = configs.base(model="transformer_xl", objective="causal")
    blank.objective(config)
    config.model.mem_len = 8
    with pytest.raises(UserError, match=r"model\.mem_len: found 8 .*'causal'.* 'recurrent'"):
        blank.objective(config)
    for seen in ("zero_memory", "same_length"):
        changed = config.copy_and_resolve_references()
        changed.model[seen] = True
        blank.objective(changed)
