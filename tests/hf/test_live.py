"""Against `transformers` itself, where it is installed: docs/huggingface.md says how."""

import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from pretrain import hf
from tests.hf import test_encoder_decoder, test_parity
from tests.hf.test_parity import CASES, GOLDEN, highest_precision  # noqa: F401  (a fixture)
from tools import make_golden

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ImportError)
TOLERANCE = 1e-5  # of two machines that run the same program


def outputs(folder, architecture: str, ignored, given) -> dict[str, np.ndarray]:
    """Of the model in a folder, by its class of transformers, which finds every parameter."""
    kind = getattr(transformers, architecture)
    model, told = kind.from_pretrained(folder, output_loading_info=True)
    assert [x for x in told["missing_keys"] if not any(re.search(p, x) for p in ignored)] == []
    return make_golden.outputs(model.eval(), given)


def test_every_golden_is_a_case():
    assert sorted(make_golden.CASES) == CASES


@pytest.mark.parametrize("case", CASES)
def test_goldens_are_what_transformers_computes(case, tmp_path):
    """Of the model in memory; what ``from_pretrained`` makes of its file may differ."""
    make_golden.write(case, tmp_path)
    golden, again = (dict(np.load(f / case / "golden.npz")) for f in (GOLDEN, tmp_path))
    assert again.keys() == golden.keys()
    for name, expected in golden.items():
        np.testing.assert_allclose(again[name], expected, atol=TOLERANCE, rtol=0, err_msg=name)
    stored, made = (load_file(f / case / "model.safetensors") for f in (GOLDEN, tmp_path))
    assert made.keys() == stored.keys()
    for name, expected in stored.items():
        np.testing.assert_array_equal(made[name], expected, err_msg=name)
    assert hf.read(tmp_path / case).options == hf.read(GOLDEN / case).options
    if case.startswith(("bart", "t5")):
        test_encoder_decoder.check(tmp_path / case)
    elif not case.startswith("transfo-xl"):  # compared in tests/models, with the same goldens
        test_parity.check(tmp_path / case)


@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_the_same_with_what_was_written(case, tmp_path):
    golden = dict(np.load(GOLDEN / case / "golden.npz"))
    loaded = hf.read(GOLDEN / case)
    if loaded.family.model_type == "transfo-xl":
        make_golden.repair_type_as()
    written = hf.save(
        tmp_path / "out", loaded.options, loaded.params, head=loaded.head,
        label_names=loaded.label_names, special_ids={"pad_token_id": 0},
    )  # fmt: skip
    found = outputs(tmp_path / "out", written, loaded.family.ignored, golden)
    compared = found.keys() & golden.keys()
    assert compared == {
        x for x in golden if re.fullmatch("logits|pooler_output|[a-z_]*hidden_states", x)
    } - {"next_hidden_states"}
    for name in compared:
        np.testing.assert_allclose(found[name], golden[name], atol=TOLERANCE, rtol=0, err_msg=name)
