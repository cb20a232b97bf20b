"""What is written here, loaded by the `transformers` library. Runs where it is installed."""

import re

import numpy as np
import pytest

from pretrain import hf
from tests.hf.test_parity import CASES, GOLDEN
from tools import make_golden

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ImportError)


def outputs(folder, architecture: str, ignored, given) -> dict[str, np.ndarray]:
    """Of the model in a folder, by its class of transformers, which finds every parameter."""
    kind = getattr(transformers, architecture)
    model, told = kind.from_pretrained(folder, output_loading_info=True)
    assert [x for x in told["missing_keys"] if not any(re.search(p, x) for p in ignored)] == []
    return make_golden.outputs(model.eval(), given)


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
    ignored = loaded.family.ignored
    before = outputs(GOLDEN / case, loaded.architecture, ignored, golden)
    after = outputs(tmp_path / "out", written, ignored, golden)
    assert after.keys() == before.keys() and after
    for name, expected in before.items():
        np.testing.assert_array_equal(after[name], expected, err_msg=name)
