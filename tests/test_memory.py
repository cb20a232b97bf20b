"""Memory that is carried across batches: through steps, micro-batches, devices, and checkpoints."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from configs import transformer_xl
from pretrain import blank, evaluators, schema, sharding, state, tasks
from pretrain import train as training
from pretrain.checkpoint import Checkpointer
from pretrain.data.loader import Columns, train_batches
from pretrain.data.store import Stats
from pretrain.errors import UserError
from pretrain.models.families import language_model
from pretrain.models.transformer_xl import TransformerXLConfig
from pretrain.objectives.recurrent import RecurrentLM
from tests import small_runs, tiny

ROWS, LENGTH, BATCH = 48, 12, 8
OPTIONS = TransformerXLConfig(
    **schema.MODELS["transformer_xl"]
    | tiny.SHAPE
    | {"dropout": 0.0, "mem_len": 2 * LENGTH, "cutoffs": ""}
)


def objective(held_out=None, **changes) -> RecurrentLM:
    options = dataclasses.replace(OPTIONS, **changes)
    first, second = (language_model("transformer_xl", x) for x in (options, held_out or options))
    return RecurrentLM(first, 7, second)


class Stream(Columns):
    """A random text in rows, as a token store gives a stream."""

    stream = True

    def __init__(self, length=LENGTH, documents=9):
        rng = np.random.default_rng(0)
        tokens = rng.integers(5, tiny.VOCAB, ROWS * LENGTH).astype(np.int32)
        begins = np.zeros(len(tokens), np.int32)
        begins[[0, *rng.choice(np.arange(1, len(tokens)), documents - 1, replace=False)]] = 1
        tokens[begins > 0] = 2
        begins = begins.reshape(-1, length)
        following = np.roll(tokens.reshape(-1, length)[:, 0], -1)
        super().__init__(
            {
                "tokens": tokens.reshape(-1, length),
                "segment_ids": 1 + np.cumsum(begins, axis=1, dtype=np.int32),
                "positions": np.zeros((len(begins), length), np.int32),
                "next_token": np.where(np.roll(begins[:, 0], -1), -1, following).astype(np.int32),
            }
        )
        self.stats = Stats(len(begins), tokens.size, documents, 4 * tokens.size, 1.0)


@functools.cache
def initial(rows=BATCH):
    start = state.sharded_init(objective(), tiny.adamw(), tiny.mesh(), jax.random.key(0), rows)
    rng = np.random.default_rng(1)
    noise = [rng.normal(0, 0.2, x.shape).astype(x.dtype) for x in jax.tree.leaves(start.params)]
    params = jax.tree.unflatten(jax.tree.structure(start.params), noise)
    return jax.device_get(start.replace(params=params))


def batches_of(dataset, rows=BATCH, start=0, stop=4):
    return list(train_batches(dataset, batch_size=rows, seed=2, start_step=start, num_steps=stop))


def run(made, batches, start, mesh=None, accumulate=1, lr=1e-2):
    """The state behind the batches, and the metrics of each step."""
    mesh = mesh or tiny.mesh()
    step = state.compile_train_step(made, tiny.adamw(), mesh, accumulate, state.shapes(batches[0]))
    rows = len(batches[0]["tokens"])
    layout = jax.tree.map(lambda x: x.sharding, state.abstract(made, tiny.adamw(), mesh, rows))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    now = (jax.random.key(1), np.float32(0.3), np.float32(lr))
    now = jax.device_put(now, replicated)
    # A copy: a step consumes its state.
    live = jax.device_put(jax.tree.map(np.array, start), layout)
    told = []
    for batch in batches:
        live, metrics = step.run(live, sharding.to_global(batch, mesh), *now)
        told.append({k: np.array(v, np.float64) for k, v in jax.device_get(metrics).items()})
    return live, told


@functools.cache
def reference():
    live, told = run(objective(), batches_of(Stream()), initial())
    return jax.device_get(live), told


def test_segments_with_memory_are_one_long_segment():
    """Steps that change nothing, on rows of a length and on rows three times as long."""
    dataset, whole = Stream(documents=5), Stream(3 * LENGTH, documents=5)
    indices = np.array([1, 4, 6, 9, 10, 11, 0, 15])  # the first documents go on, or begin
    assert (whole[indices]["segment_ids"][:, 0] == 2).any()
    cut = [dataset[3 * indices + part] for part in range(3)]
    live, told = run(objective(), cut, initial(), lr=0.0)
    _, (want,) = run(objective(), [whole[indices]], initial(), lr=0.0)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(sum(x[name] for x in told), want[name], rtol=1e-5)
    forgetful = [run(objective(), [batch], initial(), lr=0.0)[1][0] for batch in cut]
    assert abs(sum(x["loss"][0] for x in forgetful) - want["loss"][0]) > 0.05
    assert live.memory["states"].shape == (BATCH, 2, 2 * LENGTH, 16)


def test_memory_ends_with_its_document():
    """A document that begins with its row has the loss that it has without memory."""
    dataset = Stream()
    after = np.flatnonzero(dataset.columns["segment_ids"][:, 0] == 2)
    assert after[0] == 0
    columns = {name: column.copy() for name, column in dataset.columns.items()}
    columns["segment_ids"][5:] += columns["segment_ids"][5:, :1] == 1
    made, rows = objective(), np.arange(5, 5 + BATCH)
    batch = {name: column[rows] for name, column in columns.items()}
    before = {name: column[rows - 1] for name, column in columns.items()}
    _, (_, with_memory) = run(made, [before, batch], initial(), lr=0.0)
    _, (without,) = run(made, [batch], initial(), lr=0.0)
    np.testing.assert_allclose(with_memory["loss"], without["loss"], rtol=1e-6)


@pytest.mark.parametrize("sizes, accumulate", [({"data": 8}, 1), ({"fsdp": 2}, 4)])
def test_steps_do_not_depend_on_layout(sizes, accumulate):
    """Each micro-batch and each device has its rows' memory."""
    live, told = run(objective(), batches_of(Stream()), initial(), tiny.mesh(**sizes), accumulate)
    want, wanted = reference()
    for got, expected in zip(told, wanted, strict=True):
        np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), live.memory, want.memory)
    assert live.memory["states"].sharding == sharding.batch_sharding(tiny.mesh(**sizes))


def test_a_resumed_run_is_bitwise_the_same(tmp_path):
    """From the step alone, and on another mesh up to rounding."""
    dataset, made = Stream(), objective()
    half, _ = run(made, batches_of(dataset, stop=2), initial())
    saver = Checkpointer(tmp_path)
    saver.save(half, {})
    saver.close()
    want, wanted = reference()
    for mesh in (tiny.mesh(), tiny.mesh(data=8)):
        reader = Checkpointer(tmp_path)
        restored, _ = reader.restore(state.abstract(made, tiny.adamw(), mesh, BATCH))
        reader.close()
        assert int(restored.step) == 2 and restored.memory["open"].any()
        rest = batches_of(dataset, start=int(restored.step))
        live, told = run(made, rest, jax.device_get(restored), mesh)
        if mesh.size == 1:
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(live), want)
        np.testing.assert_allclose(told[-1]["loss"], wanted[-1]["loss"], rtol=1e-4)


class Names:
    """The part of an encoder that evaluators read."""

    label_names = ()


@pytest.mark.parametrize("batch_size", [4, 7])
def test_evaluation_goes_over_the_text_in_rows_that_continue(batch_size):
    """As one row of all the text, but at the beginnings of stretches; no row counts twice."""
    made, dataset = objective(mem_len=ROWS * LENGTH), Stream(documents=30)
    parts = {name: column.copy() for name, column in dataset.columns.items()}
    steps = -(-ROWS // batch_size)
    for start in range(0, ROWS, steps):  # where a stretch begins, so that documents end there
        parts["segment_ids"][start] += parts["segment_ids"][start, 0] == 1
        parts["next_token"][start - 1] = -1
    dataset.columns = parts
    task = tasks.Task(made, Names(), {"test": tasks.Split(dataset, {})})
    mesh = tiny.mesh() if batch_size % 2 else tiny.mesh(data=4)
    scores = evaluators.create(task, "test", mesh, batch_size)(initial().params)

    begins = np.diff(parts["segment_ids"], axis=1, prepend=1)
    whole = {"tokens": parts["tokens"].reshape(1, -1)}
    whole["segment_ids"] = np.cumsum(begins.reshape(1, -1), axis=1, dtype=np.int32) + 1
    whole["positions"] = np.zeros_like(whole["tokens"])
    whole["next_token"] = np.array([-1], np.int32)
    whole["memory"] = made.initial_memory(1)
    found, _ = jax.jit(made.predict)(initial().params, whole)
    total, weight = (float(x) for x in found["loss"])
    assert scores["loss"] == pytest.approx(total / weight, rel=1e-5)


def test_a_sample_of_a_stream_has_stretches():
    """Two batches of four rows: four pairs of rows that follow each other."""
    split = tasks.Split(Stream(), {})
    part = evaluators.sample(tasks.Task(objective(), Names(), {"test": split}), "test", 4, 2)
    rows = [
        int(np.flatnonzero((split.dataset.columns["tokens"] == row).all(1))[0])
        for row in part.dataset[np.arange(8)]["tokens"]
    ]
    assert rows == [0, 1, 12, 13, 24, 25, 36, 37]
    assert part.dataset.stream


def test_evaluation_has_a_memory_of_its_own():
    """Longer than in training, with which each position sees just as many."""
    longer = dataclasses.replace(OPTIONS, mem_len=40, same_length=True, clamp_len=30)
    made, batch = objective(longer), batches_of(Stream())[0]
    assert made.initial_memory(3)["open"].shape == (3, 2 * LENGTH)
    memory = made.initial_memory(BATCH, held_out=True)
    params = initial().params
    metrics, memory = jax.jit(made.predict)(params, batch | {"memory": memory})
    assert memory["states"].shape == (BATCH, 2, 40, 16)
    own = objective(mem_len=40, same_length=True, clamp_len=30)
    want, _, told, _ = jax.jit(own.loss)(
        params, batch | {"memory": own.initial_memory(BATCH)}, jax.random.key(0)
    )
    np.testing.assert_allclose(metrics["loss"][0], want, rtol=1e-6)
    assert told.keys() == metrics.keys()


def test_shipped_configs_make_it():
    made = blank.objective(transformer_xl.get_config("wt103-base"))
    options, held_out = made.model.trunk.config, made.held_out.trunk.config
    assert (options.mem_len, options.same_length) == (150, False)
    assert (held_out.mem_len, held_out.clamp_len, held_out.same_length) == (640, 400, True)
    short = dataclasses.replace(options, mem_len=0)
    with pytest.raises(UserError, match=r"model\.mem_len: found 0 .* expected at least 1"):
        RecurrentLM(language_model("transformer_xl", short), 8, made.held_out)


def test_flops_count_memory():
    """Projections and pairs of 12 positions that each see 24 before the row, by hand."""
    layer = 12 * (4 * 16 * 16 + 2 * 16 * 32) + 24 * 2 * 16 * 16 + 3 * (12 * 24 + 78) * 16
    assert objective().train_flops(LENGTH) == 3 * 2 * (2 * layer + 12 * 16 * tiny.VOCAB)


def test_a_run_that_stops_goes_on(small_data, tmp_path, monkeypatch):
    """Through `pretrain.train`: the checkpoint's memory, and the order from the step on."""
    changes = {
        "model.cutoffs": "", "model.vocab_size": 0, "model.div_val": 1, "model.mem_len": 16,
        "data.train": str(small_data / "corpus.txt"), "data.validation": "", "train.seq_len": 16,
        "cache_dir": str(small_data / "cache"), "train.batch_size": 8, "train.budget": "4 steps",
        "checkpoint.every": "2 steps", "train.log_every": "1 steps",
    }  # fmt: skip
    small = {k: v for k, v in small_runs.MODEL.items() if k != "model.max_positions"}
    values = changes | small
    config = training.configs.load(
        str(small_runs.ROOT / "configs" / "transformer_xl.py"), "tiny", values
    )
    whole = training.train(config, tmp_path / "whole")

    class Enough(Exception):
        """The machine is gone."""

    save = Checkpointer.save

    def save_and_stop(self, live, meta):
        save(self, live, meta)
        if int(live.step) == 2:
            self.wait()
            raise Enough

    monkeypatch.setattr(Checkpointer, "save", save_and_stop)
    with pytest.raises(Enough):
        training.train(config, tmp_path / "cut")
    monkeypatch.undo()
    again = training.train(config, tmp_path / "cut")
    assert again["train"]["final_loss"] == whole["train"]["final_loss"]
    params = [
        nn.unbox(training.load_params(tmp_path / name, tiny.mesh())[0]) for name in ("whole", "cut")
    ]
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get(params))
