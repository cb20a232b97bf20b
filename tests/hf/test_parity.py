"""Every model in `tests/golden` computes what the `transformers` library computed."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain import hf
from pretrain.hf import models
from pretrain.models.transformer import layer_outputs

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CASES = sorted(path.name for path in GOLDEN.iterdir() if (path / "golden.npz").is_file())
DECODERS = ("bart", "t5", "transfo-xl")  # tested with their models
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def run(loaded: hf.reading.Loaded, given: dict[str, np.ndarray]):
    """Logits (None without a head), the last hidden states, and intermediates."""
    model = models.build(loaded.family, loaded.options, loaded.head, len(loaded.label_names))
    params = {name: part for name, part in loaded.params.items()}
    tokens = jnp.asarray(given["input_ids"], jnp.int32)
    inputs = {"segment_ids": jnp.asarray(given["attention_mask"], jnp.int32)}
    if "token_type_ids" in given:
        inputs["token_types"] = jnp.asarray(given["token_type_ids"], jnp.int32)
    if loaded.head in ("classification_head", "tagging_head"):
        call = ({"tokens": tokens, **inputs},), {}
    else:
        call = (tokens,), inputs

    def forward(params):
        out, told = model.apply({"params": params}, *call[0], **call[1], mutable="intermediates")
        if loaded.head in ("lm_head", "pair_head"):
            return model.apply({"params": params}, out, method="logits"), told["intermediates"]
        return out, told["intermediates"]

    return jax.jit(forward)(params)


@pytest.mark.parametrize("case", [c for c in CASES if not c.startswith(DECODERS)])
def test_hidden_states_and_logits_equal_those_of_transformers(case):
    check(GOLDEN / case)


def check(folder: pathlib.Path) -> None:
    """Our model of a folder against the outputs in it."""
    golden = dict(np.load(folder / "golden.npz"))
    loaded = hf.read(folder)
    found, told = run(loaded, golden)
    real = golden["attention_mask"].astype(bool)
    assert not real.all(), "the case has no padding"

    expected = golden["hidden_states"]
    embedded = told["trunk"]["embedded"][0]
    layers = layer_outputs(told["trunk"])
    assert len(expected) == len(layers) + 1
    np.testing.assert_allclose(embedded[real], expected[0][real], atol=TOLERANCE, rtol=0)
    for ours, theirs in zip(layers[:-1], expected[1:-1], strict=True):
        np.testing.assert_allclose(ours[real], theirs[real], atol=TOLERANCE, rtol=0)

    if loaded.head:
        logits = golden["logits"]
        rows = real if logits.ndim > 1 and logits.shape[:2] == real.shape else slice(None)
        np.testing.assert_allclose(found[rows], logits[rows], atol=TOLERANCE, rtol=0)
    else:
        np.testing.assert_allclose(found[real], expected[-1][real], atol=TOLERANCE, rtol=0)
