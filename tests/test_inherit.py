"""What a run takes from another: its model section, its weights, its tokenizer."""

import json
import types

import jax
import numpy as np
import pytest

from pretrain import config as configs
from pretrain import inherit, optim, schema, surgery, tasks, train, trees
from pretrain.checkpoint import load_params
from pretrain.data import encoders
from pretrain.errors import UserError
from pretrain.surgery import FRESH
from tests import small_runs, tiny

SEQ = "tiny,seq=32"
TEACHER = {"model__num_layers": 3, "evals__every": "100%"}


def params_of(workdir):
    return trees.flatten(jax.device_get(load_params(workdir, tiny.mesh())[0]))


@pytest.fixture(scope="module")
def teacher(small_run):
    return small_run("bert", SEQ, **TEACHER)


def workdir_of(folder, model):
    """A folder that looks like a finished run of a model section."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model": model}))
    (folder / "result.json").write_text("{}")
    return str(folder)


def trained(config, small_data, workdir, capsys, name="bert", arg=SEQ):
    """What a run started with, by path, and printed: it takes one step at a learning rate of 0."""
    config = dict(config) | {"optimizer__lr": 0.0, "train__budget": "1 steps"}
    train.train(small_runs.config(name, small_data, arg, **config), workdir)
    return params_of(workdir), capsys.readouterr().out


def started(config, small_data, workdir, capsys):
    """The parameters that a run would start with, by path, what it printed, and its task."""
    config = train.resolve(small_runs.config("bert", small_data, SEQ, **config))
    task = tasks.build(configs.Reader(config))
    optimizer, key = optim.create(**config.optimizer), jax.random.key(0)
    operation = surgery.parse(**config.surgery)
    start = train.start(
        task, optimizer, tiny.mesh(data=8), key, config.init_from, workdir, operation
    )
    params = trees.flatten(jax.device_get(start[0].params))
    return params, capsys.readouterr().out, task


# The model section


def test_the_source_may_be_of_another_family(tmp_path, caplog):
    """classify.py says "transformer": the whole section becomes the source's."""
    source = {"name": "mobilebert", **schema.MODELS["mobilebert"], "num_layers": 7, "dropout": 0.4}
    config = configs.base(objective="classify")
    config.init_from = workdir_of(tmp_path / "a", source)
    config.model.dropout = 0.25
    got = inherit.resolve(config)
    assert got.model.to_dict() == source | {"dropout": 0.25}
    assert not caplog.records
    config.model.hidden_size = 999
    inherit.resolve(config)
    assert "the source's values replace model.hidden_size" in caplog.text
    configs.check(got)


def test_keys_that_the_source_does_not_know_have_their_default(tmp_path):
    source = {"name": "transformer", **schema.MODELS["transformer"]}
    del source["norm"]
    config = configs.base()
    config.init_from = workdir_of(tmp_path / "a", source | {"newer": 1})
    config.model.norm = "rms"
    assert inherit.resolve(config).model.to_dict() == source | {"norm": "layer"}


def test_layers_and_resize_change_the_sources_model(tmp_path, caplog):
    source = {"name": "transformer", **schema.MODELS["transformer"]}
    source |= {"num_layers": 12, "hidden_size": 768, "max_positions": 64, "vocab_size": 30522}
    config = configs.base()
    config.init_from = workdir_of(tmp_path / "a", source)
    config.surgery.layers = "0,2,4,7,9,11"
    assert inherit.resolve(config).model.to_dict() == source | {"num_layers": 6}
    two = {"name": "encoder_decoder", **schema.MODELS["encoder_decoder"], "num_decoder_layers": 9}
    both = configs.base()
    both.init_from, both.surgery.layers = workdir_of(tmp_path / "b", two), "0,1,2"
    want = two | {"num_layers": 3, "num_decoder_layers": 3}
    assert inherit.resolve(both).model.to_dict() == want
    config.surgery.resize = "positions,vocab"
    config.model.max_positions = 1024
    own = {"num_layers": 6, "max_positions": 1024, "vocab_size": 0}
    assert inherit.resolve(config).model.to_dict() == source | own
    assert not caplog.records


@pytest.mark.parametrize("key", ["tile", "keep_model"])
def test_a_config_can_keep_its_own_model(key, tmp_path, caplog):
    source = {"name": "transformer", **schema.MODELS["transformer"], "activation": "relu"}
    config = configs.base()
    config.init_from = workdir_of(tmp_path / "a", source | {"dropout": 0.4})
    config.surgery[key] = True
    config.model.hidden_size = 192
    with caplog.at_level("INFO", "pretrain.inherit"):
        got = inherit.resolve(config)
    assert got.model.to_dict() == config.model.to_dict()
    assert [r.getMessage() for r in caplog.records] == [
        "config.init_from: its model is another: activation: 'relu' there, 'gelu' here; "
        "hidden_size: 128 there, 192 here"
    ]


LINEAR = {"name": "linear", **schema.MODELS["linear"]}


@pytest.mark.parametrize(
    ("files", "changes", "said"),
    [
        ({}, {}, r"init_from: no config\.json in '.*/a'; expected the workdir of a training run"),
        ({"config.json": {"model_type": "bert"}}, {}, r"init_from: .*/a is a Hugging Face check.*"
            r"python -m tools\.import_hf .*/a WORKDIR makes of it"),
        ({"config.json": {"model": {}}}, {}, r"init_from: .*/a has not finished; run it again"),
        ({"config.json": {"model": LINEAR}, "result.json": {}}, {}, "init_from: .*/a holds a linea"
            r"r model, expected one for a config with model\.name 'transformer'"),
        ({}, {"init_from": "", "surgery.tile": True}, "init_from: found '' with config.surgery"),
        ({}, {"surgery.rules": "a"}, "surgery.rules: found 'a', expected 'regex -> new path'"),
    ],
)  # fmt: skip
def test_bad_sources(files, changes, said, tmp_path):
    (tmp_path / "a").mkdir()
    for name, content in files.items():
        (tmp_path / "a" / name).write_text(json.dumps(content))
    config = configs.base()
    config.init_from = str(tmp_path / "a")
    for key, value in changes.items():
        configs.set_key(config, key, value)
    with pytest.raises(UserError, match=said) as caught:
        inherit.resolve(config)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_table_has_nothing_to_resize(tmp_path):
    config = configs.base("linear", "classify")
    config.init_from = workdir_of(tmp_path / "a", LINEAR)
    config.surgery.resize = "vocab"
    with pytest.raises(UserError, match=r"surgery\.resize: found 'vocab', which a linear model"):
        inherit.resolve(config)


# Whole runs


def test_a_student_has_layers_of_its_teacher(teacher, small_data, tmp_path, capsys):
    """`init_from` and `surgery.layers` are enough: the rest of the model is the teacher's."""
    changes = {"init_from": str(teacher), "surgery__layers": "0,2", "model__num_layers": 2}
    got, printed = trained(changes, small_data, tmp_path / "b", capsys)
    want = params_of(teacher)
    assert got.keys() == want.keys()
    for path, array in want.items():
        taken = array[[0, 2]] if path.startswith("trunk/layers/") else array
        np.testing.assert_array_equal(got[path], taken, err_msg=path)
    total = sum(array.size for array in got.values())
    assert (
        f"from {teacher} at step 12:\n  loaded {len(got)} arrays, {total:,} of {total:,}" in printed
    )
    assert "  layers of trunk: 0, 2 of 3; left: 1" in printed
    assert "fresh" not in printed and "left 1" not in printed
    told = (tmp_path / "b" / inherit.REPORT).read_text().splitlines()
    assert [line.split()[1] for line in told[2:]] == list(got)


def test_rules_in_a_run(teacher, small_data, tmp_path, capsys):
    """A classifier that leaves out one table and takes one dense layer for another."""
    rules = "lm_head/transform/(.*) -> pooler/dense/\\1; lm_head/.* -> skip; trunk/type/.* -> fresh"
    changes = {"init_from": str(teacher), "surgery__rules": rules, "objective__pool": "pooler"}
    got, printed = trained(changes, small_data, tmp_path / "b", capsys, "classify", "")
    want = params_of(teacher)
    for path, array in got.items():
        if path.startswith("pooler/"):
            np.testing.assert_array_equal(
                array, want[path.replace("pooler/dense", "lm_head/transform")]
            )
        elif path.startswith("trunk/") and "type" not in path:
            np.testing.assert_array_equal(array, want[path], err_msg=path)
    assert (got["trunk/type/embedding"] != want["trunk/type/embedding"]).all()
    assert (
        "  fresh 3: classification_head/bias, classification_head/kernel, trunk/type/embedding\n"
        "  left 1: trunk/type/embedding\n"
        "  skipped 3: lm_head/bias, lm_head/norm/bias, lm_head/norm/scale\n"
    ) in printed
    assert "renamed 2: pooler/dense/bias from lm_head/transform/bias, pooler/dense/k" in printed


def test_a_larger_model_is_tiled(teacher, small_data, tmp_path, capsys):
    shape = {"model__hidden_size": 24, "model__num_heads": 3, "model__num_layers": 4}
    changes = {"init_from": str(teacher), "surgery__tile": True, **shape}
    got, printed, _ = started(changes, small_data, tmp_path / "b", capsys)
    want = params_of(teacher)
    np.testing.assert_array_equal(
        got["trunk/word/embedding"][:, 4:20], want["trunk/word/embedding"]
    )
    small = want["trunk/layers/attention/query/kernel"]
    large = got["trunk/layers/attention/query/kernel"]  # [4, 24, 3, 8] of [3, 16, 2, 8]
    np.testing.assert_array_equal(large[:, 4:20], small[[0, 1, 2, 2]][:, :, [0, 1, 0]])
    assert "layers of trunk: 0, 1, 2, 2 of 3; left: none" in printed
    assert "fresh" not in printed


def test_a_vocabulary_can_be_another_tokenizers(teacher, small_data, tmp_path, capsys):
    """Rows go with their pieces; without resize the tokenizer stays the source's."""
    changes = {
        "init_from": str(teacher),
        "surgery__resize": "vocab,positions",
        "tokenizer__source": str(small_data / "corpus.txt"),
        "tokenizer__vocab_size": 310,
        "tokenizer__type": "bpe",
        "model__max_positions": 80,
    }
    got, printed, task = started(changes, small_data, tmp_path / "b", capsys)
    want = params_of(teacher)
    old = encoders.load(teacher).tokenizer.pieces
    new = task.encoder.tokenizer.pieces
    assert len(new) == 310 and new != old
    common = [piece for piece in new if piece in old]
    assert 261 < len(common) < 300
    for path in ("trunk/word/embedding", "lm_head/bias"):
        for piece in common:
            row = got[path][new.index(piece)]
            np.testing.assert_array_equal(row, want[path][old.index(piece)])
    np.testing.assert_array_equal(
        got["trunk/position/embedding"][:64], want["trunk/position/embedding"]
    )
    assert (
        f"trunk/word/embedding from (300, 16): {len(common)} rows loaded, {310 - len(common)} fr"
        in printed
    )
    options = task.objective.model.trunk.config
    assert (options.vocab_size, options.max_positions, options.num_layers) == (310, 80, 3)


def test_a_shape_that_differs_leaves_no_trace(teacher, small_data, tmp_path):
    config = small_runs.config(
        "bert",
        small_data,
        SEQ,
        init_from=str(teacher),
        surgery__keep_model=True,
        model__num_layers=3,
        model__max_positions=80,
    )
    said = (
        r"trunk/position/embedding is \(64, 16\) in .* at step 12, expected \(80, 16\); config\.s"
    )
    with pytest.raises(UserError, match=said):
        train.train(config, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_pieces_share_rows():
    def pieces(*names, **ids):
        special = dict.fromkeys(inherit.SPECIAL)
        return types.SimpleNamespace(pieces=list(names), **special | ids)

    old = pieces("[PAD]", "[CLS]", "the", "cat", "", pad_id=0, cls_id=1)
    new = pieces("<s>", "cat", "dog", "[PAD]", "the", "", "", cls_id=0, pad_id=4)
    assert inherit.piece_rows(new, old).tolist() == [1, 3, FRESH, 0, 2, FRESH, FRESH]


HEAD_OF = {"classify": "classification_head/kernel", "linear": "kernel"}
FASTTEXT = {"optimizer__lr": 0.1, "train__budget": "5 steps"}
HEAD = "rules 'classification_head/bias -> fresh; classification_head/kernel -> fresh' would"


@pytest.mark.parametrize(
    ("name", "arg", "changes", "hint"),
    [
        ("classify", "tiny", {}, HEAD),
        ("linear", "fasttext", FASTTEXT, "rules 'bias -> fresh; kernel -> fresh' would begin"),
        ("linear", "lr", {}, "it has nothing else to start from"),
    ],
)
def test_a_head_for_other_labels_is_refused(
    name, arg, changes, hint, small_run, small_data, tmp_path
):
    """As many classes, other names: its columns would mean something else in silence."""
    source = small_run(name, arg, **changes)
    data = (small_data / "train.tsv").read_text().replace("\tplants", "\taliens")
    (tmp_path / "other.tsv").write_text(data)
    changes |= {"init_from": str(source), "data__train": str(tmp_path / "other.tsv")}
    changes |= {"data__validation": "", "data__test": "", "checkpoint__best": ""}
    said = r"labels animals, numbers, plants, expected those of data\.train, aliens, animals, num"
    with pytest.raises(UserError, match=f"{said}.*{hint}"):
        train.train(small_runs.config(name, small_data, arg, **changes), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    if "rules" not in hint:
        return
    changes |= {"surgery__rules": hint.split("'")[1], "seed": 1}
    changes |= {"optimizer__lr": 0.0, "train__budget": "1 steps"}
    train.train(small_runs.config(name, small_data, arg, **changes), tmp_path / "b")
    ours, theirs = params_of(tmp_path / "b"), params_of(source)
    taken = {path for path, value in ours.items() if np.array_equal(value, theirs[path])}
    assert {path for path in ours if path.endswith("kernel")} - taken == {HEAD_OF[name]}
    assert {path for path in ours if path.endswith("embedding")} <= taken
