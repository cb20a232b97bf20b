"""Runs that imitate a finished run: what they learn from it, and which teachers are refused."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from configs import distill as recipes
from pretrain import config as configs
from pretrain import evaluate, inherit, sharding, tasks, teacher, train
from pretrain.checkpoint import load_params
from pretrain.errors import UserError
from pretrain.files import read_jsonl
from pretrain.objectives.distill import EXTRA
from pretrain.trees import flatten
from tests import small_runs, tiny
from tests.objectives.test_distill import NAMES
from tools.export_hf import export

SEQ = "tiny,seq=32"


def imitation(data, workdir, name, arg="", **changes):
    """A small config with a teacher; ``changes`` beginning with ``_`` are keys of ``distill``."""
    changes = {k.replace("_", "distill__", 1) if k[0] == "_" else k: v for k, v in changes.items()}
    return small_runs.config(name, data, arg, distill__teacher=str(workdir), **changes)


def attached(config):
    read = configs.Reader(config)
    mesh = tiny.mesh()
    return teacher.attach(tasks.build(read), read, mesh)


def test_a_run_learns_from_states_and_outputs(small_run, small_data, tmp_path):
    """The projection is saved, and is no part of the model."""
    source = small_run("bert", SEQ)
    options = dict(_logits=1.0, _hidden=1.0, _layers="1", _projection="shared", _task=0.5)
    config = imitation(small_data, source, "bert", SEQ, model__hidden_size=8, **options)
    result = train.train(config, tmp_path / "run")
    logged = [r for r in read_jsonl(tmp_path / "run/metrics.jsonl") if "train/loss" in r]
    first, last = logged[0], logged[-1]
    assert last["train/distill/hidden"] < 0.9 * first["train/distill/hidden"]
    for record in logged:
        parts = 0.5 * record["train/task_loss"]
        parts += record["train/distill/logits"] + record["train/distill/hidden"]
        assert record["train/loss"] == pytest.approx(parts, rel=1e-4)
    params, _ = load_params(tmp_path / "run", tiny.mesh())
    assert params[EXTRA]["projection"]["kernel"].shape == (1, 8, 16)
    alone = small_runs.config("bert", small_data, SEQ, model__hidden_size=8)
    alone = tasks.build(configs.Reader(alone))
    counts = jax.eval_shape(alone.objective.init, jax.random.key(0))["params"]
    assert result["params"]["total"] == sum(x.size for x in jax.tree.leaves(counts))
    assert result["teacher"] == str(source)
    assert evaluate.evaluate(tmp_path / "run")["loss"] == pytest.approx(
        result["scores"]["validation"]["loss"], abs=1e-5
    )
    assert export(tmp_path / "run", tmp_path / "exported") == "BertForMaskedLM"


@pytest.mark.parametrize("name, arg", [("classify", "tiny"), ("linear", "lr")])
def test_class_probabilities_are_those_of_the_teacher(name, arg, small_run, small_data):
    """Whatever the student reads: pieces of another tokenizer, or hashed words."""
    source = small_run("classify", "tiny")
    changes = {} if name == "linear" else {"tokenizer__vocab_size": 295}
    task, params = attached(imitation(small_data, source, name, arg, _logits=1.0, **changes))
    assert not params and task.learner.teacher is None
    records = list(evaluate_records(source, task.splits["train"].examples))
    columns = task.splits["train"].dataset[np.arange(len(task.splits["train"].dataset))]
    counts = columns["weights"] > 0
    names = task.encoder.label_names
    for example, row in zip(
        columns["example"][counts], columns["teacher_log_probs"][counts], strict=True
    ):
        want = [records[example]["probabilities"][n] for n in names]
        np.testing.assert_allclose(special.softmax(row), want, atol=1e-5)


def evaluate_records(workdir, examples):
    """What the teacher says of examples, as its predictions give it."""
    from pretrain.predict import predict

    return predict(workdir, [example["text"] for example in examples])


BILSTM = dict(train__budget="200 steps", train__log_every="100 steps")


@pytest.mark.parametrize(
    ("name", "arg", "changes"), [("linear", "lr", {}), ("bilstm", "classify", BILSTM)]
)
def test_a_small_student_of_a_teacher_alone(name, arg, changes, small_run, small_data, tmp_path):
    """No gold label is seen: the minimum of the divergence agrees with the teacher's labels."""
    source = small_run("classify", "tiny", optimizer__lr=1e-2)
    config = imitation(small_data, source, name, arg, _logits=1.0, _task=0.0, **changes)
    train.train(config, tmp_path / "run")
    examples = attached(config)[0].splits["train"].examples
    ours, theirs = (
        [r["prediction"] for r in evaluate_records(folder, examples)]
        for folder in (tmp_path / "run", source)
    )
    assert np.mean([a == b for a, b in zip(ours, theirs, strict=True)]) > 0.9


@pytest.mark.parametrize(
    ("name", "arg"), [("classify", "tiny"), ("linear", "lr"), ("bilstm", "classify")]
)
def test_texts_without_labels_are_labelled_by_the_teacher(name, arg, small_run, small_data):
    """Students with words of their own know those of the further texts too."""
    source = small_run("classify", "tiny")
    extra = small_data / "unlabelled.jsonl"
    words = ("zebra", "gnu", "yak")  # in none of the labelled texts
    extra.write_text("".join(json.dumps({"text": f"{word} {word}"}) + "\n" for word in words))
    config = imitation(small_data, source, name, arg, _logits=1.0, _transfer=str(extra))
    task, _ = attached(config)
    split = task.splits["train"]
    columns = split.dataset[np.arange(len(split.dataset))]
    further = columns["gold"] == 0
    assert further.sum() == 3 and split.about["transfer_examples"] == 3
    assert split.about["examples"] == 60, "labelled ones: its place in a comparison"
    assert np.isfinite(columns["teacher_log_probs"]).all()
    rows = columns["features" if name == "linear" else "tokens"][further].reshape(3, -1)
    assert len(np.unique(rows, axis=0)) == 3  # nothing would be left of unknown words
    extra.write_text('{"body": "a text"}\n')
    with pytest.raises(UserError, match=r"distill\.transfer_text"):
        attached(config)


def test_of_more_rows_a_batch_gets_a_smaller_share_of_the_penalty(small_run, small_data):
    """The whole set gets all of it, however many rows there are."""
    source = small_run("classify", "tiny")
    options = dict(_logits=1.0, _transfer=str(small_data / "corpus.txt"), objective__C=1.0)
    task, _ = attached(
        imitation(small_data, source, "classify", "tiny", train__batch_size=7, **options)
    )
    gold = task.splits["train"].dataset.columns["gold"]
    assert len(gold) > gold.sum() + 100
    assert task.objective.share == 7 / gold.sum(), "of a run without a teacher"
    assert task.learner.student.share == 7 / len(gold)
    task, _ = attached(imitation(small_data, source, "linear", "lr", **options))
    assert task.learner.student.share == 1.0


def test_layers_of_the_teacher(small_data, tmp_path):
    """Of four, for a student of two: by default the last one of each half."""
    short = {"model__num_layers": 4, "train__budget": "1 steps", "evals__every": "100%"}
    train.train(small_runs.config("bert", small_data, SEQ, **short), tmp_path)
    for named, layers in (("", (1, 3)), ("3,1", (2, 0))):
        options = dict(_hidden=1.0, _layers=named, model__num_layers=2)
        task, _ = attached(imitation(small_data, tmp_path, "bert", SEQ, **options))
        assert task.learner.layers == layers
        assert task.learner.relation_layer == 3, "the last one"


def test_tags_are_compared_word_by_word(small_run, small_data):
    """The teacher's tokenizer cuts words in other places than the student's."""
    source = small_run("ner", "tiny")
    config = imitation(small_data, source, "ner", "tiny", _logits=1.0, tokenizer__vocab_size=295)
    task, _ = attached(config)
    part = task.splits["train"]
    columns = part.dataset[np.arange(len(part.dataset))]
    own = teacher.open_teacher(str(source))
    read = own.task.encoder.encode(part.examples, "x")
    batch = {k: read[k] for k in ("tokens", "segment_ids")}
    logits = own.objective.forward(own.params(tiny.mesh()), batch)
    log_probs = special.log_softmax(np.asarray(logits), -1)

    def words(columns, values):
        found = {}
        for row, place in zip(*np.nonzero(columns["label_mask"]), strict=True):
            found[columns["example"][row], columns["word"][row, place]] = values[row, place]
        return found

    ours, theirs = words(columns, columns["teacher_log_probs"]), words(read, log_probs)
    assert ours.keys() == theirs.keys() and len(ours) > 300
    for key, row in ours.items():
        np.testing.assert_allclose(row, theirs[key], atol=1e-4)


def test_likeliest_pieces_come_from_disk(small_run, small_data):
    """In the order of the rows; made once."""
    source = small_run("gpt", SEQ)
    config = imitation(small_data, source, "gpt", SEQ, _logits=1.0, _top_k=3, _temperature=2.0)
    task, params = attached(config)
    assert not params and task.learner.teacher is None
    rows = task.splits["train"].dataset[np.array([5, 2])]
    own = teacher.open_teacher(str(source))
    params = own.params(tiny.mesh())
    hidden = own.objective.forward(params, rows)
    logits = own.objective.model.apply({"params": params}, hidden, method="logits")
    want = np.sort(special.log_softmax(np.asarray(logits) / 2.0, -1), -1)[..., :-4:-1]
    np.testing.assert_allclose(rows["teacher_log_probs"], want, atol=1e-4)
    found = np.take_along_axis(
        special.log_softmax(np.asarray(logits) / 2.0, -1), rows["teacher_ids"], -1
    )
    np.testing.assert_allclose(found, want, atol=1e-4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher.Teacher, "params", None)
        attached(config)
        for key, value in (("_top_k", 2), ("_temperature", 1.0)):
            other = dict(_logits=1.0, _top_k=3, _temperature=2.0) | {key: value}
            with pytest.raises(TypeError):  # made anew
                attached(imitation(small_data, source, "gpt", SEQ, **other))


OTHER = str(small_runs.TOKENIZERS / "bert_uncased")

REFUSED = [
    ("bert", SEQ, {}, "no term that it could teach"),
    ("bert", SEQ, dict(_hidden=1.0, model__hidden_size=8), "distill.projection: found '' with a"),
    ("bert", SEQ, dict(_attention=1.0, model__num_heads=1), "model.num_heads: found 1, expected"),
    ("bert", SEQ, dict(_hidden=1.0, _layers="3"), "layers: found 3, expected 1 layers of the t"),
    ("bert", SEQ, dict(_hidden=1.0, _layers="a"), "layers: found 'a', expected a layer of the"),
    ("bert", SEQ, dict(_logits=1.0, model__vocab_size=400), "a teacher of 300 pieces, expected"),
    ("bert", SEQ, dict(_logits=1.0, _top_k=2), "top_k: found 2, expected 0: of language models"),
    ("bert", SEQ, dict(_logits=1.0, tokenizer__path=OTHER), "has another tokenizer than"),
    ("gpt", SEQ, dict(_logits=1.0, _top_k=2, tokenizer__path=OTHER), "has another tokenizer than"),
    ("bert", SEQ, dict(_hidden=1.0, _cosine=1.0, _progressive=0.5), "with cosine, embeddings or"),
    ("bert", SEQ, dict(_hidden=1.0, _task=0.0, _progressive=0.5), "with task 0 and logits 0, expe"),
    ("bert", SEQ, dict(_logits=1.0, _progressive=0.5), "progressive: found 0.5, which nothing rea"),
    ("bert", SEQ, dict(_relations=1.0, _relation_pairs="query"), "relation_pairs: found 'query'"),
    ("bert", SEQ, dict(_relations=1.0, _relation_heads=3), "relation_heads: 3 does not divide"),
    ("bert", SEQ, dict(_hidden=1.0, _projection="x"), "projection: found 'x', expected '', sh"),
    ("bert", SEQ, dict(_logits=1.0, _projection="layer"), "projection: found 'layer', which nothi"),
    ("bert", SEQ, dict(_hidden=1.0, _temperature=2.0), "found 2.0, which nothing reads without l"),
    ("bert", SEQ, dict(_logits=1.0, _relation_heads=2), "found 2, which nothing reads without rel"),
    ("bert", SEQ, dict(_relations=1.0, _layers="1,1"), "layers: found '1,1', which nothing reads"),
    ("bert", SEQ, dict(_mean=1.0, _standardise=True), "standardise: found True, which nothing re"),
    ("bert", SEQ, dict(_logits=1.0, _transfer="x"), "transfer: found 'x' with objective.name 'm"),
    ("bert", SEQ, dict(_logits=1.0, _transfer_text="x"), "transfer_text: found 'x', which nothing"),
    ("classify", "tiny", dict(_logits=1.0, _all_positions=True), "all_positions: found true, exp"),
    ("gpt", SEQ, dict(_logits=1.0), "with objective.name 'causal' and a teacher with 'mlm'"),
    ("classify", "tiny", dict(_hidden=1.0), "trained for 'mlm', expected objective.name 'class"),
    ("linear", "lr", dict(_hidden=1.0), "with config.model.name 'linear', which has none to comp"),
    ("bilstm", "classify", dict(_cosine=1.0), "with config.model.name 'bilstm', which has none"),
]


@pytest.mark.parametrize("name, arg, changes, said", REFUSED)
def test_a_teacher_that_does_not_fit_is_refused(name, arg, changes, said, small_run, small_data):
    source = small_run("bert", SEQ)
    with pytest.raises(UserError, match=said) as error:
        attached(imitation(small_data, source, name, arg, **changes))
    assert "\n" not in str(error.value) and "distill" in str(error.value)


def test_a_teacher_without_states_is_refused(small_run, small_data):
    source = small_run("linear", "lr")
    config = imitation(small_data, source, "classify", "tiny", _hidden=1.0)
    with pytest.raises(UserError, match=r"the teacher's model\.name 'linear', which has none"):
        attached(config)


def test_terms_without_a_teacher_are_refused(small_data):
    config = small_runs.config("bert", small_data, SEQ, distill__hidden=1.0)
    with pytest.raises(UserError, match=r"distill\.teacher: found '' with config\.distill\.hidden"):
        attached(config)


def test_a_random_field_is_refused(small_run, small_data):
    config = imitation(small_data, small_run("ner", "tiny"), "ner", "tiny,crf", _logits=1.0)
    with pytest.raises(UserError, match=r"distill\.logits: found 1.0 with objective\.crf"):
        attached(config)


def test_other_labels_are_refused(small_run, small_data, tmp_path):
    source = small_run("classify", "tiny")
    lines = (small_data / "train.tsv").read_text().replace("\tplants", "\tshrubs")
    (tmp_path / "train.tsv").write_text(lines)
    config = imitation(
        small_data, source, "linear", "lr", _logits=1.0, data__train=str(tmp_path / "train.tsv"),
        data__validation="", data__test="",
    )  # fmt: skip
    with pytest.raises(UserError, match="has the labels animals, numbers, plants, expected those"):
        attached(config)


def test_no_finished_run_is_no_teacher(small_data, tmp_path):
    with pytest.raises(
        UserError, match=r"config\.distill\.teacher: .* is no finished training run"
    ):
        attached(imitation(small_data, tmp_path, "linear", "lr", _logits=1.0))


@pytest.mark.parametrize("arg", [*sorted(recipes.RECIPES), "mobilebert,nsp"])
def test_recipes_have_all_that_they_need(arg, small_run, small_data):
    """Each builds with a teacher, and its loss is a number of each of its terms."""
    recipe = arg.partition(",")[0]
    labelled = recipe in recipes.LABELLED
    source = small_run("classify", "tiny") if labelled else small_run("bert", SEQ)
    path, full = str(small_runs.ROOT / "configs/distill.py"), f"{arg},teacher={source},seq=32"
    own = configs.flatten(configs.load(path, full))
    changes = small_runs.overrides("classify" if labelled else "bert", SEQ, small_data)
    changes = {k: v for k, v in changes.items() if k in own and not k.startswith("tokenizer.")}
    if recipe == "distilbert":
        changes["surgery.layers"] = "0"
    elif recipe == "mobilebert":
        changes |= {"model.bottleneck_size": 8, "model.embedding_size": 8}
    elif recipe == "minilm":
        changes["model.hidden_size"] = 8
    elif recipe.startswith("tinybert-"):  # with the texts of the augmentation
        changes["distill.transfer"] = str(small_data / "corpus.txt")
    config = inherit.resolve(configs.load(path, full, changes))
    task, taught = attached(config)
    split = task.splits["train"]
    assert ("transfer" in split.about) == bool(config.distill.transfer)
    batch = jax.tree.map(jnp.asarray, split.dataset[np.arange(4)])
    batch |= {"weights": jnp.ones(4)} if labelled else {}

    def loss(key):
        learner = task.learner.bind(taught, jnp.float32(0.5))
        params = nn.unbox(learner.init(key)["params"])
        return learner.loss(params, learner.corrupt(batch, key), key)[2]

    metrics = jax.jit(loss)(jax.random.key(0))
    assert all(np.isfinite(value[0]) for value in metrics.values())
    assert ("pair_loss" in metrics) == arg.endswith(",nsp")
    if not (config.distill.task or config.distill.logits):
        assert not config.checkpoint.best, "the labels' score says nothing of what is learned"
    weighted = [k for k, v in recipes.RECIPES[recipe].items() if v and k in NAMES]
    assert {name.partition("/")[2] for name in metrics if "/" in name} == set(weighted)


def test_tinybert_goes_from_text_to_layers_to_labels(small_run, small_data, tmp_path):
    """Each run starts from the one before; projections go along while they are in use."""
    text, labels = small_run("bert", SEQ), small_run("classify", "tiny")
    recipe, params = str(small_runs.ROOT / "configs/distill.py"), {}
    for name, arg, changes in (
        ("general", f"tinybert,teacher={text}", {"model.hidden_size": 8}),
        ("layers", f"tinybert-layers,teacher={labels},student={tmp_path / 'general'}", {}),
        ("outputs", f"tinybert-outputs,teacher={labels},student={tmp_path / 'layers'}", {}),
    ):
        kind = "bert" if name == "general" else "classify"
        given = small_runs.overrides(kind, SEQ, small_data) | {"train.budget": "2 steps"}
        given = {key: value for key, value in given.items() if not key.startswith("tokenizer.")}
        given |= {"optimizer.lr": 1e-2 if name == "general" else 0.0, "evals.every": "100%"}
        given["seed"] = len(params)  # another beginning
        train.train(configs.load(recipe, f"{arg},seq=32", given | changes), tmp_path / name)
        params[name] = flatten(load_params(tmp_path / name, tiny.mesh())[0])
    learned = {name for name in params["layers"] if name.startswith(EXTRA)}
    assert learned == {f"{EXTRA}/projection/kernel", f"{EXTRA}/projection/bias"}
    assert params["outputs"].keys() == params["layers"].keys() - learned
    for before, after in (("general", "layers"), ("layers", "outputs")):
        for path in params[before].keys() & params[after].keys():
            np.testing.assert_array_equal(params[after][path], params[before][path], err_msg=path)
    assert f"left    {EXTRA}/projection/kernel" in (tmp_path / "outputs/surgery.txt").read_text()
    last = read_jsonl(tmp_path / "outputs/metrics.jsonl")
    assert any("train/distill/logits" in record for record in last)


@pytest.mark.parametrize(
    ("arg", "said"),
    [
        ("minilm,nsp", "argument 'nsp': found it with 'minilm', expected none"),
        ("minilm,task=ner", "argument 'task': found 'ner' with 'minilm', expected none"),
        ("labels,task=mlm", "variant: found 'mlm', expected one of classify, ner"),
    ],
)
def test_arguments_that_a_recipe_does_not_read_are_refused(arg, said):
    with pytest.raises(UserError, match=said):
        configs.load(str(small_runs.ROOT / "configs/distill.py"), arg)


def test_a_sharded_student_and_teacher_give_the_same_step(small_run, small_data, tmp_path):
    source, losses = small_run("bert", SEQ), []
    for name, sizes in (("whole", {}), ("sharded", {"data": 2, "fsdp": 2, "tensor": 2})):
        config = imitation(
            small_data, source, "bert", SEQ, _hidden=1.0, _logits=1.0, train__budget="2 steps"
        )
        mesh = tiny.mesh(**sizes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sharding, "make_mesh", lambda *_, mesh=mesh: mesh)
            train.train(config, tmp_path / name)
        records = read_jsonl(tmp_path / name / "metrics.jsonl")
        losses.append([r["train/loss"] for r in records if "train/loss" in r])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
