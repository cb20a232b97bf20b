"""The import program: what it writes is a workdir that everything else starts from."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from pretrain import evaluate, hf, predict, sharding, tasks, teacher, train, trees
from pretrain.checkpoint import load_params
from pretrain.errors import UserError
from pretrain.hf import models
from tests.hf.test_parity import GOLDEN
from tests.small_runs import CLASSES, ROOT, config
from tools.import_hf import import_checkpoint

WORDS = ["the", "a", "of", "and", *(word for words in CLASSES.values() for word in words)]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


@pytest.fixture
def checkpoint(tmp_path):
    """``(case, names)`` -> a golden checkpoint with a WordPiece tokenizer of 39 pieces."""

    def make(case: str, names: dict | None = None, pieces: list[str] = PIECES) -> pathlib.Path:
        folder = tmp_path / f"{case}-source"
        shutil.copytree(GOLDEN / case, folder)
        (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
        about = json.loads((folder / "config.json").read_text())
        about |= {"id2label": {str(i): n for i, n in names.items()}} if names else {}
        (folder / "config.json").write_text(json.dumps(about))
        return folder

    return make


def mesh():
    return sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])


def test_a_workdir_holds_what_was_loaded(checkpoint, tmp_path):
    source = checkpoint("bert-pretraining")
    (source / "1_Pooling").mkdir()
    (source / "modules.json").write_text("[]")
    found = import_checkpoint(source, tmp_path / "run")
    options, params = hf.load(source)
    restored, step = load_params(tmp_path / "run", mesh())
    assert step == 0
    old, new = trees.flatten(params), trees.flatten(restored)
    assert old.keys() == new.keys()
    for path, array in old.items():
        np.testing.assert_array_equal(new[path], array, err_msg=path)
    read, task = tasks.restore(tmp_path / "run")
    assert task.objective.model.trunk.config == options
    assert (read.objective.name, task.encoder.seq_len) == ("mlm", 20)
    assert task.encoder.tokenizer.encode("the cat") == [5, 9]
    assert str(found).splitlines() == [
        "family         bert",
        "architecture   BertForPreTraining",
        "objective      mlm",
        f"parameters     {sum(x.size for x in old.values()):,} (1,376 in embeddings)",
        "tensors used   46",
        "unused         none",
        f"tokenizer      WordPiece, {len(PIECES)} pieces for 64 embeddings",
    ]
    records = predict.predict(tmp_path / "run", ["the [MASK]"], top=2)
    assert len(next(iter(records))["masks"][0]) == 2


def test_teachers_of_other_weights_are_others(checkpoint, tmp_path):
    """Wherever they lie: what is on disk of one must not be taken for another's."""
    source = checkpoint("bert-classify", {0: "animals", 1: "cities", 2: "food"})
    import_checkpoint(source, tmp_path / "first")
    import_checkpoint(source, tmp_path / "again")
    shutil.copytree(tmp_path / "first", tmp_path / "moved")
    weights = safetensors.numpy.load_file(source / "model.safetensors")
    weights["classifier.bias"][0] += 1
    safetensors.numpy.save_file(weights, source / "model.safetensors", {"format": "pt"})
    import_checkpoint(source, tmp_path / "other")
    first, again, moved, other = (
        teacher.open_teacher(str(tmp_path / name)).fingerprint
        for name in ("first", "again", "moved", "other")
    )
    assert first == again == moved != other


def test_a_classifier_predicts_and_evaluates_with_its_labels_in_order(
    checkpoint, small_data, tmp_path
):
    names = {0: "plants", 1: "animals", 2: "numbers"}
    source = checkpoint("distilbert-classify", names)
    import_checkpoint(source, tmp_path / "run")
    text = "the cat of rome"
    (record,) = predict.predict(tmp_path / "run", [text])

    loaded = hf.read(source)
    model = models.build(loaded.family, loaded.options, loaded.head, 3)
    tokens = np.array([[2, 5, 9, 7, 1, 3]])
    batch = {"tokens": tokens, "segment_ids": np.ones_like(tokens)}
    logits = model.apply({"params": loaded.params}, batch)
    expected = jax.nn.softmax(logits[0])
    assert list(record["probabilities"]) == list(names.values())
    np.testing.assert_allclose(list(record["probabilities"].values()), expected, atol=1e-5)
    columns = {"text": "0", "label": "1"}
    scores = evaluate.evaluate(tmp_path / "run", str(small_data / "test.tsv"), columns=columns)
    assert 0.0 <= scores["accuracy"] <= 1.0
    with pytest.raises(UserError, match=r"--source: the run has no data.test or data.validation"):
        evaluate.evaluate(tmp_path / "run")


def test_a_model_without_a_head_is_where_training_starts(checkpoint, small_data, tmp_path):
    import_checkpoint(checkpoint("bert"), tmp_path / "imported")
    with pytest.raises(UserError, match=r"objective\.name: found 'none', a model without a head"):
        tasks.restore(tmp_path / "imported")
    changes = {"objective__pool": "pooler", "train__seq_len": 16, "optimizer__lr": 0.0}
    changes |= {"model__hidden_size": 16, "tokenizer__source": ""}
    changes |= {"init_from": str(tmp_path / "imported"), "train__budget": "1 steps"}
    train.train(config("classify", small_data, **changes), tmp_path / "run")
    before = trees.flatten(load_params(tmp_path / "imported", mesh())[0])
    after = trees.flatten(load_params(tmp_path / "run", mesh())[0])
    assert sorted(after.keys() - before.keys()) == [
        "classification_head/bias",
        "classification_head/kernel",
    ]
    for path, array in before.items():
        np.testing.assert_array_equal(after[path], array, err_msg=path)


@pytest.mark.parametrize(
    ("case", "objective"),
    [("gpt2-lm", "causal"), ("electra-discriminator", "rtd"), ("bert-tag", "tag")],
)
def test_the_head_gives_the_objective(case, objective, checkpoint, tmp_path):
    names = {0: "O", 1: "B-PER", 2: "I-PER"} if objective == "tag" else None
    found = import_checkpoint(checkpoint(case, names), tmp_path / "run", seq_len=12)
    _, task = tasks.restore(tmp_path / "run")
    assert found.objective == task.objective.name == objective
    assert (task.encoder.label_names, task.encoder.seq_len) == (list((names or {}).values()), 12)


def test_an_imported_tagger_gives_the_logits_of_transformers(checkpoint, tmp_path):
    """ModernBERT's has a transform before the last layer: `objective.pooler`."""
    names = {0: "O", 1: "B-PER", 2: "I-PER"}
    import_checkpoint(checkpoint("modernbert-tag", names), tmp_path / "run")
    read, task = tasks.restore(tmp_path / "run")
    assert read.objective.pooler is True
    params, _ = load_params(tmp_path / "run", mesh())
    golden = dict(np.load(GOLDEN / "modernbert-tag" / "golden.npz"))
    batch = {"tokens": golden["input_ids"], "segment_ids": golden["attention_mask"]}
    batch = {name: array.astype(np.int32) for name, array in batch.items()}
    with jax.default_matmul_precision("highest"):
        found = task.objective.predict(params, batch)
    real = batch["segment_ids"] > 0
    expected = jax.nn.log_softmax(golden["logits"])
    np.testing.assert_allclose(found[real], expected[real], atol=1e-4)


@pytest.mark.parametrize(
    ("case", "changes", "rate"),
    [
        ("gpt2-tag", {}, 0.1),
        ("llama-tag", {"classifier_dropout": None, "hidden_dropout": 0.2}, 0.2),
        ("llama-classify", {"classifier_dropout": 0.3}, 0.0),  # whose class has none
        ("bert-tag", {"hidden_dropout_prob": 0.3}, 0.3),
        ("bert-tag", {"classifier_dropout": 0.0}, 0.0),
        ("distilbert-classify", {"seq_classif_dropout": 0.4}, 0.4),
        ("modernbert-classify", {}, 0.0),
    ],
)
def test_the_dropout_before_the_head_is_that_of_the_class(case, changes, rate, tmp_path):
    shutil.copytree(GOLDEN / case, tmp_path / "source")
    file = tmp_path / "source" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    import_checkpoint(tmp_path / "source", tmp_path / "run")
    assert tasks.read_config(tmp_path / "run").objective.head_dropout == rate


def test_a_checkpoint_without_a_tokenizer(tmp_path):
    found = import_checkpoint(GOLDEN / "bert-mlm", tmp_path / "run")
    assert "tokenizer      none; commands that need one will say so" in str(found)
    with pytest.raises(UserError, match=r"holds no tokenizer; expected tokenizer\.json"):
        tasks.restore(tmp_path / "run")


def test_the_program_fails_in_one_line(checkpoint, tmp_path):
    source = checkpoint("bert-mlm", pieces=[*PIECES, *map(str, range(40))])
    command = [sys.executable, "-m", "tools.import_hf", source, tmp_path / "run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: {source}: the tokenizer has {len(PIECES) + 40} pieces, expected at most the 64 "
        "rows of the word embedding (vocab_size)\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_workdir_is_not_written_over(tmp_path):
    (tmp_path / "run").mkdir()
    import_checkpoint(GOLDEN / "bert", tmp_path / "run")
    with pytest.raises(UserError, match=r"WORKDIR: .* exists and is not empty; expected a new"):
        import_checkpoint(GOLDEN / "bert", tmp_path / "run")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"problem_type": "regression"}, "problem_type: found 'regression' with 3 labels"),
        ({"problem_type": "multi_label_classification"}, "expected 'single_label_classification'"),
    ],
)
def test_labels_of_other_kinds_are_refused(about, message, checkpoint, tmp_path):
    source = checkpoint("bert-classify")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | about))
    with pytest.raises(UserError, match=message):
        import_checkpoint(source, tmp_path / "run")
    with pytest.raises(UserError, match="--seq_len: found 21, expected at most the model's 20"):
        import_checkpoint(source, tmp_path / "run", seq_len=21)
