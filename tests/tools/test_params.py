"""The table of parameters and operations."""

import json
import subprocess
import sys

import jax
import pytest

from configs import bert, llama, mobilebert, t5, transformer_xl
from pretrain import blank, state
from pretrain import config as configs
from tests import small_runs
from tools import params


def run(*flags):
    return subprocess.run(
        [sys.executable, "-m", "tools.params", *flags],
        cwd=small_runs.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_one_model_module_by_module():
    done = run("--config=configs/bert.py:base,published", "--json")
    assert done.returncode == 0, done.stderr
    (about,) = json.loads(done.stdout)
    assert about["model"] == "configs/bert.py:base,published"
    assert about["objective"] == "mlm" and about["seq_len"] == 128
    assert about["embedding"] == (30522 + 512 + 2) * 768
    assert about["total"] - about["embedding"] == about["non_embedding"]
    modules = about["modules"]
    assert sum(module["parameters"] for module in modules.values()) == about["total"]
    assert modules["trunk/word"] == {
        "parameters": 30522 * 768,
        "arrays": {"embedding": [30522, 768]},
    }
    assert modules["trunk/layers/ffn/in"]["arrays"]["kernel"] == [12, 768, 3072]
    # Forward and backward: 12 width^2 a layer, the pairs of positions twice, and the head on the
    # 19 of 128 positions that are masked.
    layers = 12 * (2 * 12 * 768**2 + 4 * 128 * 768)
    head = 2 * (768**2 + 768 * 30522) * 19 / 128
    assert about["flops_per_token"] == pytest.approx(3 * (layers + head))


def test_an_override_changes_the_count():
    done = run("--config=configs/gpt.py:tiny", "--config.tokenizer.vocab_size=1000")
    assert done.returncode == 0, done.stderr
    header, row, blank, *modules = done.stdout.splitlines()
    assert header.split() == ["model", *params.COLUMNS] and not blank
    total = 2 * (12 * 128**2 + 13 * 128) + 2 * 128 + (1000 + 2048) * 128
    assert row.split()[:2] == ["configs/gpt.py:tiny", f"{total:,}"]
    assert any(line.split()[:2] == ["trunk/word", "128,000"] for line in modules)


def test_an_output_matrix_counts_as_embedding():
    width, vocab = 128, llama.VOCAB
    about = params.describe(llama.get_config("tiny,published"))
    assert about["modules"]["lm_head"]["arrays"] == {"kernel": (width, vocab)}
    assert about["embedding"] == 2 * vocab * width
    # Two layers: queries and outputs, keys and values of half the heads, the gated block, norms.
    layer = 3 * width**2 + 3 * width * 384 + 2 * width
    assert about["non_embedding"] == 2 * layer + width


def untied(config):
    config.model.tied = False
    return config


@pytest.mark.parametrize(
    "config",
    [
        bert.get_config("micro,modern"),
        llama.get_config("tiny"),
        untied(bert.get_config("micro")),
        untied(transformer_xl.get_config("tiny")),
        mobilebert.get_config("micro"),
        t5.get_config("tiny"),
    ],
    ids=lambda config: config.label,
)
def test_counts_are_those_that_runs_report(config):
    """Embeddings by the names of arrays and, here, by those of their dimensions.

    T5's tables of relative positions, 32 buckets of 2 heads in each stack, name none for the rows.
    """
    boxed = jax.eval_shape(blank.objective(config).init, jax.random.key(0))["params"]
    counts = state.count_params(params.nn.unbox(boxed))
    about = params.describe(config)
    assert (counts["total"], counts["other"]) == (about["total"], about["non_embedding"])
    tables = {"vocab", "positions", "types", "buckets"}
    expected = sum(
        box.value.size
        for box in jax.tree.leaves(boxed, is_leaf=lambda x: hasattr(x, "names"))
        if tables & set(box.names) and box.value.ndim > 1
    )
    assert counts["embedding"] == expected + (2 * 32 * 2 if "T5" in config.label else 0)


def test_all_variants_of_all_files_are_listed():
    listed = dict(params.shipped())
    assert {"bert:l12-h768", "gpt:175b", "linear:ner", "ladder:7b"} <= listed.keys()
    assert listed["bert:base"].model.vocab_size == bert.UNCASED
    assert listed["gpt:125m"].model.vocab_size == 50257
    assert not any(name.startswith("quickstart") for name in listed)


def test_the_table_is_aligned(monkeypatch, capsys):
    chosen = [("bert:micro", bert.get_config("micro")), ("llama:tiny", llama.get_config())]
    monkeypatch.setattr(params, "shipped", lambda: chosen)
    monkeypatch.setattr(params, "_ALL", type("Flag", (), {"value": True}))
    monkeypatch.setattr(params, "_JSON", type("Flag", (), {"value": False}))
    params.flags.FLAGS.mark_as_parsed()
    params.run()
    header, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["bert:micro", "llama:tiny"]
    assert {len(line) for line in rows} == {len(header)}


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--all", "--config=configs/bert.py:base"], "--all: found with --config"),
        (["--config=configs/bert.py:huge"], "config variant: found 'huge', expected one of"),
    ],
)
def test_wrong_flags_are_clear_errors(flags, said):
    done = run(*flags)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 and said in done.stderr


def test_a_file_without_sizes_is_a_recipe():
    """classify.py and ner.py train the encoders of bert.py."""
    names = {name.split(":")[0] for name, _ in params.shipped()}
    assert not names & {"classify", "ner"}
    assert params.describe(configs.load(str(params.FOLDER / "ner.py")))["objective"] == "tag"
