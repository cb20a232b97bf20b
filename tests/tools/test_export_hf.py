"""The export program: what it writes is what was trained, or what was imported."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from pretrain import hf, sharding, tasks, trees
from pretrain.checkpoint import load_params
from pretrain.data import encoders
from pretrain.data.fast_tokenizer import FastTokenizer
from pretrain.errors import UserError
from pretrain.models.families import language_model
from pretrain.objectives.rtd import generator_params
from tests.hf.test_parity import GOLDEN
from tests.small_runs import ROOT
from tools.export_hf import export
from tools.import_hf import import_checkpoint

TEXTS = ["the cat sees Oslo", "", "Na\u00efve  caf\u00e9 \u65e5\u672c \U0001f600", "x" * 200]


def test_an_imported_checkpoint_comes_back(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(GOLDEN / "bert-classify", source)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s"]
    (source / "vocab.txt").write_text("\n".join(pieces) + "\n")
    import_checkpoint(source, tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-m", "tools.export_hf", tmp_path / "run", tmp_path / "out"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    name = "BertForSequenceClassification, with its tokenizer"
    assert done.stdout == f"wrote {tmp_path / 'out'}: {name}\n"
    before, after = (load_file(f / "model.safetensors") for f in (source, tmp_path / "out"))
    assert before.keys() == after.keys()
    for tensor, array in before.items():
        np.testing.assert_array_equal(after[tensor], array, err_msg=tensor)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert (config["pad_token_id"], config["sep_token_id"]) == (0, 3)
    assert FastTokenizer.load(tmp_path / "out").encode("cats") == [6, 7]


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("bert", "BertForMaskedLM"),
        ("bert:tiny,nsp", "BertForPreTraining"),
        ("gpt", "GPT2LMHeadModel"),
        ("ner", "BertForTokenClassification"),
    ],
)
def test_what_was_trained_here_reads_as_what_it_was(name, architecture, small_run, tmp_path):
    workdir = small_run(*name.split(":"))
    assert export(workdir, tmp_path / "out") == architecture
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
    params = trees.flatten(load_params(workdir, mesh)[0])
    loaded = hf.read(tmp_path / "out")
    assert loaded.architecture == architecture and loaded.unused == []
    found = trees.flatten(loaded.params)
    assert found.keys() == params.keys()
    for path, array in params.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)
    encoder = encoders.load(workdir)
    pieces = FastTokenizer.load(tmp_path / "out")
    assert pieces.encode_batch(TEXTS) == encoder.tokenizer.encode_batch(TEXTS)
    assert (pieces.prefix, pieces.suffix) == ((2,), (3,))
    if encoder.label_names:
        assert loaded.label_names == encoder.label_names
        assert loaded.config["classifier_dropout"] == 0.1
    assert loaded.config["pad_token_id"] == pieces.pad_id == 0


def test_special_ids_of_a_checkpoint_without_a_tokenizer_are_kept(tmp_path):
    import_checkpoint(GOLDEN / "llama-lm", tmp_path / "run")
    assert export(tmp_path / "run", tmp_path / "out") == "LlamaForCausalLM"
    before, after = (
        json.loads((folder / "config.json").read_text())
        for folder in (GOLDEN / "llama-lm", tmp_path / "out")
    )
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        assert after[name] == before[name] is not None


def test_a_checkpoint_in_place_of_a_workdir(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tools.export_hf", GOLDEN / "bert", tmp_path / "out"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: WORKDIR: {GOLDEN / 'bert'} is a Hugging Face checkpoint, expected the workdir of "
        "a run (tools.import_hf makes one of it)\n"
    )


def test_what_transformers_has_no_model_for(small_run, tmp_path):
    with pytest.raises(UserError, match=r"objective\.pool: found 'first', expected 'pooler'"):
        export(small_run("classify"), tmp_path / "out")
    with pytest.raises(UserError, match=r"model\.name: found 'linear', expected a transformer"):
        export(small_run("linear"), tmp_path / "out")
    with pytest.raises(UserError, match=r"objective\.crf: found True, expected False"):
        export(small_run("ner", "tiny,crf"), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match=r"DST_DIR: .*full exists and is not empty"):
        export(small_run("linear"), tmp_path / "full")
    with pytest.raises(UserError, match=r"--workdir: no config\.json in"):
        export(tmp_path / "nowhere", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_generator_and_discriminator_are_two_checkpoints(small_run, tmp_path):
    """With the same embeddings; the generator computes what it did within the run."""
    workdir = small_run("electra", "small")
    assert export(workdir, tmp_path / "discriminator") == "ElectraForPreTraining"
    assert export(workdir, tmp_path / "generator", generator=True) == "ElectraForMaskedLM"
    tensors = [
        load_file(tmp_path / n / "model.safetensors") for n in ("discriminator", "generator")
    ]
    for name in ("word_embeddings.weight", "position_embeddings.weight", "LayerNorm.bias"):
        first, second = (x[f"electra.embeddings.{name}"] for x in tensors)
        np.testing.assert_array_equal(first, second)
    _, task = tasks.restore(workdir)
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
    params, _ = load_params(workdir, mesh)
    loaded = hf.read(tmp_path / "generator")
    assert loaded.options.hidden_size == 4 and loaded.options.embedding_width == 128
    tokens = np.arange(5, 25, dtype=np.int32)[None]
    models = {"ours": (task.objective.generator, generator_params(params))}
    models["theirs"] = (language_model("transformer", loaded.options), loaded.params)
    ours, theirs = (
        model.apply({"params": own}, model.apply({"params": own}, tokens), method="logits")
        for model, own in models.values()
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    with pytest.raises(UserError, match=r"--generator: .* has none, expected a run of electra"):
        export(small_run("bert"), tmp_path / "none", generator=True)
