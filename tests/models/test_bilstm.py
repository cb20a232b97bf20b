"""The BiLSTM against a plain loop over words, and what it must not see."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.errors import UserError
from pretrain.models.bilstm import BiLSTM, BiLSTMConfig, CharacterEncoder
from pretrain.models.heads import Classifier

RNG = np.random.default_rng(0)


def config(**changes):
    fields = dict(vocab_size=12, embedding_size=6, num_layers=1, hidden_size=8)
    return BiLSTMConfig(**fields | dict(characters="none", character_size=4, dropout=0.5) | changes)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def run(cell, xs):
    """Hidden states of one direction, ``[n, D]``, gate by gate."""
    c = h = np.zeros(cell["hi"]["bias"].shape)
    states = []
    for x in xs:
        i, f, g, o = (
            x @ cell[f"i{gate}"]["kernel"] + h @ hidden["kernel"] + hidden["bias"]
            for gate, hidden in ((gate, cell[f"h{gate}"]) for gate in "ifgo")
        )
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.array(states)


def both(params, name, xs):
    """Hidden states of both directions, side by side."""
    forward, backward = (params[f"{name}_{way}"] for way in ("forward", "backward"))
    return np.concatenate([run(forward, xs), run(backward, xs[::-1])[::-1]], -1)


def initialised(model, *args):
    """Parameters away from zero, as after training."""
    params = nn.unbox(model.init(jax.random.key(0), *args))["params"]
    return jax.tree.map(
        lambda x: np.asarray(x) + RNG.normal(size=x.shape).astype(np.float32) * 0.3, params
    )


def test_states_are_those_of_a_plain_loop_and_padding_is_not_read():
    model = BiLSTM(config(num_layers=2))
    tokens = RNG.integers(2, 12, (2, 5)).astype(np.int32)
    segment_ids = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
    params = initialised(model, tokens)
    got = model.apply({"params": params}, tokens, segment_ids=segment_ids)
    for row, length in enumerate((3, 5)):
        x = params["word_embedding"]["embedding"][tokens[row, :length]]
        for layer in range(2):
            x = both(params, f"lstm_{layer}", x)
        np.testing.assert_allclose(got[row, :length], x, atol=1e-5)


def test_lstm_of_characters_is_that_of_the_word_alone():
    model = CharacterEncoder(config(characters="lstm"))
    ids = np.array([[3, 4, 5, 0, 0], [6, 0, 0, 0, 0], [0, 0, 0, 0, 0]], np.uint8)
    params = initialised(model, ids)
    got = model.apply({"params": params}, ids)
    for row, length in enumerate((3, 1)):
        states = both(params, "lstm", params["table"]["embedding"][ids[row, :length]])
        want = np.concatenate([states[-1, :2], states[0, 2:]])
        np.testing.assert_allclose(got[row], want, atol=1e-5)
    assert np.isfinite(got[2]).all()


def test_cnn_of_characters_is_a_maximum_over_windows_of_three():
    model = CharacterEncoder(config(characters="cnn"))
    ids = np.array([[3, 4, 5, 0, 0], [6, 0, 0, 0, 0]], np.uint8)
    params = initialised(model, ids)
    got = model.apply({"params": params}, ids)
    for row, length in enumerate((3, 1)):
        x = params["table"]["embedding"][ids[row, :length]]
        x = np.pad(x, ((1, 1), (0, 0)))
        windows = np.array([x[i : i + 3].ravel() for i in range(length)])
        want = np.tanh(windows @ params["filters"]["kernel"] + params["filters"]["bias"]).max(0)
        np.testing.assert_allclose(got[row], want, atol=1e-5)


def test_a_classifier_reads_characters_of_the_batch():
    model = Classifier(BiLSTM(config(characters="cnn")), 3, "mean", 0.0)
    batch = {name: jnp.asarray(x) for name, x in model.example().items()}
    params = initialised(model, batch)
    spelled = {**batch, "characters": jnp.full((1, 8, 3), 5, jnp.uint8)}
    other = {**batch, "characters": jnp.full((1, 8, 3), 7, jnp.uint8)}
    first, second = (model.apply({"params": params}, b) for b in (spelled, other))
    assert first.shape == (1, 3) and np.abs(first - second).max() > 1e-3
    noisy = model.apply(
        {"params": params}, spelled, deterministic=False, rngs={"dropout": jax.random.key(1)}
    )
    assert np.abs(first - noisy).max() > 1e-3


def test_flops_are_those_of_the_gates():
    assert BiLSTM(config()).forward_flops(7) == 7 * 2 * (2 * 4 * 4 * (6 + 4))
    deep = config(num_layers=2, characters="cnn")
    assert BiLSTM(deep).forward_flops(1) == 2 * 2 * 4 * 4 * ((6 + 4 + 4) + (8 + 4))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"characters": "rnn"}, "model.characters: found 'rnn', expected one of none, cnn, lstm"),
        ({"hidden_size": 7}, "model.hidden_size: found 7, expected an even number"),
        ({"vocab_size": 1}, "model.vocab_size: found 1, expected at least 2"),
    ],
)
def test_senseless_options_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        config(**changes)
