"""From configs to masked language models, pairs and replaced-token detectors."""

import numpy as np
import pytest

from configs import bert, electra, roberta
from pretrain import blank, masked, tasks
from pretrain import config as configs
from pretrain.data.fast_tokenizer import FastTokenizer
from pretrain.data.pairs import SentencePairs
from pretrain.data.static_masks import StaticMasks
from pretrain.errors import UserError
from pretrain.objectives.mlm import MaskedLM
from pretrain.objectives.pairs import SentencePairLM
from tests import small_runs
from tools import params as tool


def objective_of(config, **changes):
    for key, value in changes.items():
        configs.set_key(config, key.replace("__", "."), value)
    return blank.objective(config)


@pytest.mark.parametrize(
    "arg, published", [("tiny", 4_433_468), ("base", 110_106_428), ("large", 336_226_108)]
)
def test_pairs_have_the_parameters_of_the_published_model(arg, published):
    found = tool.describe(bert.get_config(f"{arg},nsp,published"))
    assert found["total"] == published


def test_the_argument_chooses_how_rows_are_masked():
    plain, whole = objective_of(bert.get_config("tiny")), objective_of(bert.get_config("tiny,wwm"))
    assert type(plain) is type(whole) is MaskedLM
    assert plain.word_start == b"" != whole.word_start
    assert isinstance(objective_of(bert.get_config("tiny,sop")), SentencePairLM)
    with pytest.raises(UserError, match="config argument: found 'nsp' with 'sop'"):
        bert.get_config("tiny,nsp,sop")


def test_rows_are_those_of_the_objective(small_data):
    def rows(arg, **changes):
        config = small_runs.config("bert", small_data, arg, **changes)
        task = tasks.build(configs.Reader(config))
        dataset = task.splits["train"].dataset
        return dataset, dataset[np.arange(2)]

    pairs, batch = rows("tiny,nsp,static")
    assert isinstance(pairs, StaticMasks) and isinstance(pairs.rows, SentencePairs)
    assert batch["tokens"].shape == (2, 32)
    assert {"mask_seeds", "pair_labels", "pair_weights", "token_types"} < batch.keys()
    _, batch = rows("tiny,wwm")
    assert batch.keys() == {"tokens", "segment_ids", "positions"}


@pytest.mark.parametrize(
    "family, changes, said",
    [
        (
            bert,
            {"objective__sentence_pairs": "next"},
            r"found 'next', expected one of '', nsp, sop",
        ),
        (bert, {"data__packing": True}, r"data\.packing: found True with objective\.sentence_pair"),
        (bert, {"train__seq_len": 4}, r"train\.seq_len: found 4 .* expected at least 5"),
        (bert, {"model__type_vocab_size": 1}, r"model\.type_vocab_size: found 1 with .*'nsp'"),
        (roberta, {"data__packing": True, "objective__sentence_pairs": "sop"}, r"data\.packing"),
        (electra, {"objective__generator_size": -0.5}, r"generator_size: found -0\.5, expected at"),
        (bert, {"objective__short_rate": 1.0}, r"short_rate: found 1\.0, expected from 0"),
    ],
)
def test_bad_choices_are_clear_errors(family, changes, said):
    config = family.get_config("tiny,nsp" if family is bert else None)
    with pytest.raises(UserError, match=said):
        objective_of(config, **changes)
        configs.check(config)


def test_a_generator_needs_a_mask_token(small_data):
    path = {"tokenizer__path": str(small_runs.TOKENIZERS / "gpt2")}
    with pytest.raises(UserError, match=r"objective\.name: found 'rtd' with a tokenizer that has"):
        tasks.build(configs.Reader(small_runs.config("electra", small_data, "small", **path)))
    config = small_runs.config("electra", small_data, "small,random", **path)
    task = tasks.build(configs.Reader(config))
    assert task.objective.generator is None


def test_whole_words_need_pieces_that_begin_one(small_data, tmp_path):
    """As GPT-1's tokenizer and HerBERT's, which mark the end of a word, do not."""
    names = {"mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    vocab = [*names.values(), "a", "b", "a</w>", "b</w>"]
    document = {
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {
            "type": "BPE",
            "vocab": {piece: i for i, piece in enumerate(vocab)},
            "merges": [],
            "end_of_word_suffix": "</w>",
        },
    }
    pieces = FastTokenizer(document, names)
    assert [pieces.pieces[i] for i in pieces.encode("ab b")] == ["a", "b</w>", "b</w>"]
    pieces.save(tmp_path)
    config = small_runs.config("bert", small_data, "tiny,wwm", tokenizer__path=str(tmp_path))
    with pytest.raises(
        UserError, match=r"objective\.whole_words: found True with a tokenizer none"
    ):
        tasks.build(configs.Reader(config))


def test_other_options_of_a_generator_are_the_discriminators():
    config = bert.get_config("tiny,modern")
    options = tasks.backbone_options(configs.Reader(config))
    small = masked.generator_options(options, 0.5, 5)
    assert (small.num_layers, small.position, small.gated) == (5, "rotary", True)
    assert (small.hidden_size, small.num_heads, small.embedding_width) == (64, 1, 128)
